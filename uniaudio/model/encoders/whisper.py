"""Whisper's encoder over packed clips of any length, with the stock weights and modules of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoder, WhisperEncoderLayer

from uniaudio.errors import UserError
from uniaudio.model.attention import Segments, packed_attention
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.mel import FRAME, REACH, LogMel, encoder_frames
from uniaudio.model.spec_augment import mask_mel
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE, Encoded

RANDOM = "random:"  # prefix of a path: the same architecture with random weights
PREFIXES = ("model.encoder.", "encoder.", "")  # where a full or an encoder-only checkpoint keeps the tensors
GAP = 2  # zero mel frames between clips in the convolutions; even, so that every clip starts on the stride


class WhisperAudioEncoder(AudioEncoder):
    """Whisper's encoder (Radford et al. 2022) without the 30 s padding.

    At exactly 30 s the frames equal the stock encoder's. Shorter clips see no silence after them, so their frames
    differ from those of the padded encoder; ``pad_to=30`` restores its behaviour. Longer clips are cut into chunks of
    30 s that attend to themselves only.

    Args:
        whisper: the stock module; its parameters are trained in place.
        pad_to: seconds up to which silence is appended before encoding; its frames are dropped after.
        tail_frames: encoder frames of silence appended to every chunk (up to 30 s in all), dropped after.
    """

    frame_rate = SAMPLE_RATE / FRAME  # 50 frames per second
    takes_masks = True

    def __init__(self, whisper: WhisperEncoder, pad_to: float | None = None, tail_frames: int = 0) -> None:
        super().__init__()
        if pad_to is not None and not 0 < pad_to <= REACH / SAMPLE_RATE:
            raise UserError(f"pad_to: {pad_to:g} s is not between 0 and Whisper's 30 s")
        self.whisper = whisper
        self.mel = LogMel(whisper.config.num_mel_bins)
        self.dim = whisper.config.d_model
        self.pad_to = pad_to
        self.tail_frames = tail_frames

    def num_frames(self, samples: int) -> int:
        """Return ``ceil(samples / 320)``, at least 1: chunks of 30 s hold whole frames, so cutting changes nothing."""
        return encoder_frames(samples)

    def forward(self, audio: Ragged, layers: bool = False, masks: Tensor | None = None) -> Encoded:
        """Encode C clips of int16 or float samples to frames ``[A, E]``."""
        frames_per_clip = torch.tensor(
            [self.num_frames(n) for n in audio.lengths.tolist()], dtype=torch.int64
        )
        if not len(audio):
            return Encoded(Ragged(self.mel.filters.new_zeros(0, self.dim), frames_per_clip))
        chunks = cut_into_chunks(audio)
        kept = torch.tensor([encoder_frames(n) for n in chunks.lengths.tolist()], dtype=torch.int64)
        mel = self.mel(self.with_silence(chunks))
        if masks is not None and len(masks):
            mel = mask_mel(mel, [max(1, -(-n // REACH)) for n in audio.lengths.tolist()], masks)
        states = self.encode(mel, layers)
        cut = [keep_first(state, kept).with_lengths(frames_per_clip) for state in states]
        return Encoded(cut[-1], tuple(cut) if layers else None)

    def with_silence(self, chunks: Ragged) -> Ragged:
        """Append the silence that ``pad_to`` and ``tail_frames`` ask for."""
        if self.pad_to is None and not self.tail_frames:
            return chunks
        least = round((self.pad_to or 0) * SAMPLE_RATE)
        wanted = torch.tensor(
            [
                min(
                    REACH,
                    max(least, n, (encoder_frames(n) + self.tail_frames) * FRAME if self.tail_frames else 0),
                )
                for n in chunks.lengths.tolist()
            ]
        )
        padded = chunks.values.new_zeros(int(wanted.sum()))
        starts = wanted.cumsum(0) - wanted
        target = torch.arange(len(chunks.values)) + torch.repeat_interleave(
            starts - chunks.offsets[:-1], chunks.lengths
        )
        padded[target.to(padded.device, non_blocking=True)] = chunks.values
        return Ragged(padded, wanted)

    def encode(self, mel: Ragged, layers: bool) -> list[Ragged]:
        """Run convolutions and layers over mel frames ``[F, M]``; the last state is the layer-normed output."""
        stem = self.convolve(mel)
        segments = Segments.of(stem.lengths, stem.device)
        hidden = stem.values
        states = []
        for layer in self.whisper.layers:
            if layers:
                states.append(stem.with_values(hidden))
            if self.training and self.whisper.layerdrop and torch.rand(()).item() < self.whisper.layerdrop:
                continue
            hidden = encoder_layer(layer, hidden, segments)
        return [*states, stem.with_values(self.whisper.layer_norm(hidden))]

    def convolve(self, mel: Ragged) -> Ragged:
        """Apply both convolutions and add the positions, all clips in one buffer with zero gaps between them."""
        frames = mel.lengths // 2
        sizes = mel.lengths + GAP
        starts = sizes.cumsum(0) - sizes
        place = torch.arange(len(mel.values)) + torch.repeat_interleave(
            starts - mel.offsets[:-1], mel.lengths
        )
        place = place.to(mel.device, non_blocking=True)
        total = int(sizes.sum())
        buffer = mel.values.new_zeros(total, mel.values.shape[1]).index_copy(0, place, mel.values)
        real = mel.values.new_zeros(total, 1).index_fill(0, place, 1.0)
        hidden = F.gelu(self.whisper.conv1(buffer.t()[None])) * real.t()
        hidden = F.gelu(self.whisper.conv2(hidden))[0].t()
        position = torch.arange(int(frames.sum())) - torch.repeat_interleave(
            frames.cumsum(0) - frames, frames
        )
        rows = (position + torch.repeat_interleave(starts // 2, frames)).to(mel.device, non_blocking=True)
        position = position.to(mel.device, non_blocking=True)
        hidden = hidden[rows] + self.whisper.embed_positions.weight[position]
        return Ragged(F.dropout(hidden, self.whisper.dropout, self.training), frames)


def encoder_layer(
    layer: WhisperEncoderLayer, hidden: Float[Tensor, "A E"], segments: Segments
) -> Float[Tensor, "A E"]:
    """Apply one stock pre-norm layer to packed frames."""
    training = layer.training
    attended = self_attention(layer.self_attn, layer.self_attn_layer_norm(hidden), segments)
    hidden = hidden + F.dropout(attended, layer.dropout, training)
    inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
    inner = layer.fc2(F.dropout(inner, layer.activation_dropout, training))
    return hidden + F.dropout(inner, layer.dropout, training)


def self_attention(
    attention: WhisperAttention, hidden: Float[Tensor, "A E"], segments: Segments
) -> Float[Tensor, "A E"]:
    """Apply the stock projections around packed attention."""
    heads = (len(hidden), attention.num_heads, attention.head_dim)
    query, key, value = (
        projection(hidden).view(heads)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    dropout = attention.dropout if attention.training else 0.0
    mixed = packed_attention(query, key, value, segments, causal=False, dropout=dropout)
    return attention.out_proj(mixed.reshape(len(hidden), -1))


def cut_into_chunks(audio: Ragged) -> Ragged:
    """Cut clips longer than 30 s; the samples stay where they are, only the lengths change."""
    lengths = []
    for samples in audio.lengths.tolist():
        whole, rest = divmod(samples, REACH)
        lengths += [REACH] * whole + ([rest] if rest or not whole else [])
    return audio.with_lengths(torch.tensor(lengths, dtype=torch.int64))


def keep_first(frames: Ragged, kept: Tensor) -> Ragged:
    """Keep the first ``kept[i]`` frames of every row."""
    if torch.equal(frames.lengths, kept):
        return frames
    index = torch.arange(int(kept.sum())) + torch.repeat_interleave(
        frames.offsets[:-1] - (kept.cumsum(0) - kept), kept
    )
    return Ragged(frames.values[index.to(frames.device, non_blocking=True)], kept)


def load_whisper(
    path: str, revision: str | None = None, pad_to: float | None = None, tail_frames: int = 0, seed: int = 0
) -> WhisperAudioEncoder:
    """Load an encoder in float32 from a full or encoder-only Whisper checkpoint, by folder or Hub name.

    ``random:PATH`` gives the architecture of PATH with weights drawn from ``seed``.

    Raises:
        UserError: when there is no such folder, it is no Whisper, or a tensor of the encoder is missing or unknown.
    """
    folder = checkpoint_folder(path.removeprefix(RANDOM), revision)
    config = read_config(folder)
    config._attn_implementation = "sdpa"
    if path.startswith(RANDOM):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            whisper = WhisperEncoder(config)
    else:
        with torch.random.fork_rng(devices=[]):  # loading weights must not move the run's generator
            whisper = WhisperEncoder(config)
        fill(whisper, read_encoder_tensors(folder), folder)
    return WhisperAudioEncoder(whisper.float(), pad_to, tail_frames)


def checkpoint_folder(path: str, revision: str | None) -> Path:
    """Return a local folder: the path itself, or the files of a Hub repository in the local cache."""
    if Path(path).is_dir():
        return Path(path)
    if path.count("/") > 1 or path.startswith((".", "/", "~")):
        raise UserError(f"there is no folder {path}")
    try:
        return Path(
            snapshot_download(path, revision=revision, allow_patterns=["config.json", "*.safetensors*"])
        )
    except (OSError, ValueError) as problem:
        reason = str(problem).splitlines()[0]
        raise UserError(
            f"{path} is neither a folder nor a model that could be fetched ({reason})"
        ) from problem


def read_config(folder: Path) -> WhisperConfig:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as problem:
        raise UserError(f"{folder}: config.json cannot be read ({problem})") from problem
    if config.get("model_type") != "whisper":
        raise UserError(f"{folder} holds a {config.get('model_type')} model, not a Whisper")
    return WhisperConfig.from_pretrained(folder)


def read_encoder_tensors(folder: Path) -> dict[str, Tensor]:
    """Read only the encoder's tensors from the safetensors files of a folder, names without prefix."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors file; convert the checkpoint to safetensors first")
    names = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            names.update(dict.fromkeys(tensors.keys(), file))
    prefix = next(p for p in PREFIXES if not p or any(name.startswith(p) for name in names))
    found = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is not a dict)
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] = tensors.get_tensor(name)
    return found


def fill(whisper: WhisperEncoder, tensors: dict[str, Tensor], folder: Path) -> None:
    """Load strictly, and say which tensors do not fit."""
    expected = set(whisper.state_dict())
    missing, unknown = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    if missing or unknown:
        raise UserError(
            f"{folder}: the encoder's tensors do not fit: "
            f"missing {missing[:3] or 'none'}, unknown {unknown[:3] or 'none'}"
        )
    whisper.load_state_dict(tensors)
