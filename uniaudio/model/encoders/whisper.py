"""Whisper's encoder over packed clips of any length, with the stock weights and modules of transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from uniaudio.errors import UserError
from uniaudio.model.activation_checkpointing import run_layer
from uniaudio.model.attention import Segments, packed_attention, project_heads, weigh_keys
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.chunking import cut_into_chunks, cut_lengths, keep_first
from uniaudio.model.encoders.padded import encode_whisper_padded
from uniaudio.model.encoders.shared_silence import SilenceGrid, encode_silent_frames
from uniaudio.model.encoders.towers import fill_tower
from uniaudio.model.mel import FRAME, REACH, LogMel
from uniaudio.model.mel_masks import mask_mel
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

# where whole models keep the tensors
PREFIXES = ("model.audio_tower.", "audio_tower.", "model.encoder.", "encoder.")
PAIR = 2  # frames that Qwen2-Audio and Audio Flamingo 3 average: 50 to 25 per second
GAP = 2  # zero mel frames between clips in the convolutions; even, so that every clip starts on the stride


class WhisperAudioEncoder(AudioEncoder):
    """Whisper's encoder (Radford et al. 2022) without the 30 s padding.

    At exactly 30 s the frames equal the stock encoder's. Shorter clips see no silence after them, so their frames
    differ from those of the padded encoder; ``pad_to=30`` restores its behaviour. Longer clips are cut into chunks of
    30 s that attend to themselves only.

    Args:
        whisper: the stock module; its parameters are trained in place.
        pad_to: seconds up to which silence is appended before encoding; its frames are dropped after.
        pad_stride: with ``pad_to``, the silence is not appended: all clips of a batch attend to every n-th frame of
            it, see ``shared_silence``. A short tail lets the convolutions see where the clip ends.
        tail_frames: encoder frames of silence appended to every chunk (up to 30 s in all), dropped after.
        keep_tail: give out the tail of a clip with its frames, for a reader that learned where speech ends by the
            silence behind it, as Whisper's own decoder did.
        pool: neighbouring frames averaged before the last LayerNorm, as in the towers of Qwen2-Audio.
        masked_padding: frames as the towers of Qwen2-Audio and Audio Flamingo 3 give them for a clip padded to 30 s
            with a mask: the convolutions see silence behind the clip, attention sees none of it, and of pooled frames
            a last one that is not full is dropped.
    """

    reach = REACH / SAMPLE_RATE
    takes_masks = True
    calls_by_clip = False

    def __init__(
        self,
        whisper: PreTrainedModel,
        pad_to: float | None = None,
        tail_frames: int = 0,
        pool: int = 1,
        pad_stride: int | None = None,
        keep_tail: bool = False,
        masked_padding: bool = False,
    ) -> None:
        super().__init__()
        if pad_to is not None and not 0 < pad_to <= REACH / SAMPLE_RATE:
            raise UserError(f"pad_to: {pad_to:g} s is not between 0 and Whisper's 30 s")
        if pad_stride is not None and pad_to is None:
            raise UserError("pad_stride: needs pad_to, the length up to which clips are padded")
        if keep_tail and not tail_frames:
            raise UserError(
                "keep_tail: needs tail_frames, the frames of silence after a clip that are output"
            )
        if masked_padding and (pad_to is not None or tail_frames):
            raise UserError("masked_padding: works without silence; leave out pad_to and tail_frames")
        if (REACH // FRAME) % pool:
            raise UserError(f"pool: {pool} does not divide the {REACH // FRAME} frames of 30 s")
        self.whisper = whisper
        self.mel = LogMel(whisper.config.num_mel_bins)
        self.dim = whisper.conv1.out_channels
        self.layer_dims = (self.dim,) * (len(whisper.layers) + 1)
        self.pad_to = pad_to
        self.pad_frames = -(-round((pad_to or 0) * SAMPLE_RATE) // FRAME)  # that it fills, before pooling
        self.tail_frames = tail_frames
        self.pad_stride = pad_stride
        self.keep_tail = keep_tail
        self.masked_padding = masked_padding
        self.pool = pool
        self.frame = FRAME * pool  # samples of one frame that is given out
        self.frame_rate = SAMPLE_RATE / self.frame  # 50 frames per second without pooling
        self.layer: Callable[..., Tensor] = apply_encoder_layer

    def num_frames(self, samples: int) -> int:
        """Return ``ceil(samples / 320)``, at least 1: chunks of 30 s hold whole frames, so cutting changes nothing.

        Pooled frames are so many times longer. With ``keep_tail`` those of the tail are added, as far as the last
        chunk has room for them.
        """
        frames = self.count_frames(samples)
        return frames + min(self.tail_frames, -frames % (REACH // self.frame)) * self.keep_tail

    def count_frames(self, samples: int) -> int:
        """Return the frames of a clip without any silence behind it."""
        if self.masked_padding:
            return self.count_attending(samples) // self.pool
        return max(-(-samples // self.frame), 1)

    def count_attending(self, samples: int) -> int:
        """Return the frames of a clip before pooling, at least those of one pooled frame."""
        return max(-(-samples // FRAME), self.pool)

    def encode_clips(self, audio: Ragged, layers: bool, masks: Tensor | None) -> list[Tensor]:
        chunks = cut_into_chunks(audio, REACH)
        attending = self.list_attending(audio) if self.masked_padding else None
        if attending is None:
            kept = chunks.map_lengths(self.num_frames)
        else:
            kept = torch.div(attending, self.pool, rounding_mode="floor")
        mel = self.mel(self.fill_up(chunks, attending))
        if masks is not None and len(masks):
            mel = mask_mel(mel, [max(1, -(-n // REACH)) for n in audio.lengths.tolist()], masks)
        return [keep_first(state, kept).values for state in self.encode(mel, layers, attending)]

    def forward_padded(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode padded clips of any length, see ``AudioEncoder``."""
        return encode_whisper_padded(self, samples, lengths)

    def list_attending(self, audio: Ragged) -> Tensor:
        """Return for every chunk of the clips the frames before pooling."""
        return cut_lengths(audio.map_lengths(self.count_attending), REACH // FRAME)

    def fill_up(self, chunks: Ragged, attending: Tensor | None = None) -> Ragged:
        """Append the silence that ``pad_to`` and ``tail_frames`` ask for, and what fills the last pooled frame.

        Args:
            attending: with ``masked_padding``, frames of every chunk; one of silence is put behind them, which is
                as far as the convolutions see.
        """
        if attending is not None:
            return chunks.extend_rows(((attending + 1) * FRAME).clamp(max=REACH))
        if self.pad_to is None and not self.tail_frames and self.pool == 1:
            return chunks
        least = 0 if self.pad_stride else self.pad_frames * FRAME
        filled = self.tail_frames > 0 or self.pool > 1
        wanted = chunks.map_lengths(
            lambda n: max(least, n, (self.count_frames(n) + self.tail_frames) * self.frame * filled)
        )
        return chunks.extend_rows(wanted.clamp(max=REACH))

    def encode(self, mel: Ragged, layers: bool, attending: Tensor | None = None) -> list[Ragged]:
        """Run convolutions and layers over mel frames ``[F, M]``; the last state is the layer-normed output.

        Args:
            attending: frames of every chunk that reach the layers; None: all.
        """
        stem = self.convolve(mel)
        if attending is not None:
            stem = keep_first(stem, attending)
        hidden = stem.values
        if self.pad_stride is not None:
            grid = SilenceGrid(self.pad_frames, self.pad_stride)
            segments = grid.add_to(stem.lengths, stem.device)
            silence = encode_silent_frames(self.whisper, grid.positions).to(hidden.dtype)
            hidden = torch.cat([hidden, silence])
        else:
            segments = Segments.of(stem.lengths, stem.device)
        states = []
        for layer in self.whisper.layers:
            if layers:
                states.append(self.pool_frames(hidden, stem.lengths))
            hidden = run_layer(self.recomputes, self.layer, layer, hidden, segments)
        last = self.pool_frames(hidden, stem.lengths)
        return [*states, last.with_values(self.whisper.layer_norm(last.values))]

    def pool_frames(self, hidden: Float[Tensor, "T E"], lengths: Tensor) -> Ragged:
        """Average neighbouring frames; where their number is no multiple (``masked_padding``), the rest is dropped."""
        hidden = hidden[: int(lengths.sum())]  # shared silence stands behind them
        pooled = torch.div(lengths, self.pool, rounding_mode="floor")
        if self.pool > 1:
            hidden = keep_first(Ragged(hidden, lengths), pooled * self.pool).values
            hidden = hidden.unflatten(0, (-1, self.pool)).mean(1)
        return Ragged(hidden, pooled)

    def convolve(self, mel: Ragged) -> Ragged:
        """Apply both convolutions and add the positions, all clips in one buffer with zero gaps between them."""
        frames = mel.lengths // 2
        sizes = mel.lengths + GAP
        starts = Ragged.find_row_starts(sizes)
        place = Ragged.index_slices(starts, mel.lengths).to(mel.device, non_blocking=True)
        total = int(sizes.sum())
        values = mel.values.to(self.whisper.conv1.weight.dtype)
        buffer = values.new_zeros(total, values.shape[1]).index_copy(0, place, values)
        real = values.new_zeros(total, 1).index_fill(0, place, 1.0)
        hidden = F.gelu(self.whisper.conv1(buffer.t()[None])) * real.t()
        hidden = F.gelu(self.whisper.conv2(hidden))[0].t()
        rows = Ragged.index_slices(starts // 2, frames).to(mel.device, non_blocking=True)
        return self.add_positions(Ragged(hidden[rows], frames))

    def add_positions(self, stem: Ragged) -> Ragged:
        """Add the embeddings of the positions within every chunk to convolved frames.

        Raises:
            UserError: when a chunk has more frames than there are positions, which all published models have for 30 s.
        """
        known = self.whisper.config.max_source_positions * FRAME / SAMPLE_RATE
        if stem.lengths.max() * FRAME / SAMPLE_RATE > known:
            raise UserError(
                f"max_source_positions of the encoder are those of {known:g} s, but a clip is longer; set "
                f"data.max_seconds: {known:g}"
            )
        position = Ragged.count_within_rows(stem.lengths).to(stem.device, non_blocking=True)
        hidden = stem.values + self.whisper.embed_positions.weight[position]
        return stem.with_values(F.dropout(hidden, self.whisper.dropout, self.training))


def apply_encoder_layer(layer: Any, hidden: Float[Tensor, "A E"], segments: Segments) -> Float[Tensor, "A E"]:
    """Apply one stock pre-norm layer (Whisper's, or one of the same names) to packed frames."""
    training = layer.training
    attended = apply_whisper_attention(layer.self_attn, layer.self_attn_layer_norm(hidden), segments)
    hidden = hidden + F.dropout(attended, layer.dropout, training)
    inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
    inner = layer.fc2(F.dropout(inner, layer.activation_dropout, training))
    return hidden + F.dropout(inner, layer.dropout, training)


def apply_whisper_attention(
    attention: Any, hidden: Float[Tensor, "A E"], segments: Segments
) -> Float[Tensor, "A E"]:
    """Apply the stock projections around packed attention."""
    query, key, value = project_heads(attention, hidden)
    dropout = attention.dropout if attention.training else 0.0
    key, value, keys = segments.select_keys(key, value)
    scale = attention.head_dim**-0.5
    if segments.log_counts is not None:
        query, key, value = weigh_keys(query, key, value, segments.log_counts, scale)
    mixed = packed_attention(
        query, key, value, segments, causal=False, scale=scale, dropout=dropout, key_segments=keys
    )
    return attention.out_proj(mixed[..., : attention.head_dim].reshape(len(hidden), -1))


def load_whisper_tower(
    stock: str, path: str, revision: str | None = None, seed: int = 0, **settings: Any
) -> WhisperAudioEncoder:
    """Load Whisper's encoder in float32, alone or out of a larger model, of which nothing else is read.

    ``random:PATH`` gives the architecture of PATH with weights drawn from ``seed``. Whisper and Voxtral hear 30 s with
    silence behind the clip and no mask, which is ``pad_to=30``; Ultravox a clip as it is.

    Args:
        stock: class of the encoder, see ``fill_tower``. settings: those of ``WhisperAudioEncoder``.

    Raises:
        UserError: when there is no such folder, or a tensor of the encoder is missing or unknown.
    """
    tower, _ = fill_tower(stock, path, revision, seed, PREFIXES, ("audio_config",))
    return WhisperAudioEncoder(tower, **settings)


load_whisper = partial(load_whisper_tower, "whisper:WhisperEncoder")
load_voxtral = partial(load_whisper_tower, "voxtral:VoxtralEncoder")
load_qwen2_audio = partial(load_whisper_tower, "qwen2_audio:Qwen2AudioEncoder", pool=PAIR)
load_audio_flamingo3 = partial(load_whisper_tower, "audioflamingo3:AudioFlamingo3Encoder", pool=PAIR)
