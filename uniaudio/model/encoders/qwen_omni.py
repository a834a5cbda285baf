"""Audio towers of Qwen2.5-Omni, Qwen3-Omni and Qwen3-ASR: short windows, attention within blocks of windows."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from uniaudio.errors import UserError
from uniaudio.model.activation_checkpointing import run_layer
from uniaudio.model.attention import Segments
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.chunking import cut_into_chunks, cut_lengths, keep_first, list_chunk_lengths
from uniaudio.model.encoders.weights import build_with_random_weights, fill, read_tensors
from uniaudio.model.encoders.whisper import apply_encoder_layer
from uniaudio.model.mel import HOP, REACH, LogMel, count_encoder_frames
from uniaudio.model.mel_masks import mask_mel
from uniaudio.model.model_files import RANDOM, find_model_folder, read_model_config, use_stock_attention
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

PREFIXES = ("thinker.model.audio_tower.", "thinker.audio_tower.", "model.audio_tower.", "audio_tower.", "")
OUTPUT_MAPS = (
    "proj",
    "proj1",
    "proj2",
    "act",
    "audio_bos_eos_token",
)  # into the width of the model's own decoder
STOCK: dict[str, type[Any]] = {  # by the beginning of the model type
    "qwen2_5_omni": Qwen2_5OmniAudioEncoder,
    "qwen3_omni": Qwen3OmniMoeAudioEncoder,
    "qwen3_asr": Qwen3ASREncoder,
}
LEAST_OF_ASR = 8_000  # samples: Qwen3-ASR hears silence behind shorter clips
STRIDE_3 = 8  # mel frames of one frame of Qwen3-Omni: three convolutions of stride 2


class OmniAudioEncoder(AudioEncoder):
    """The audio tower up to its last LayerNorm; the maps into the width of its own language model are left out.

    The log-mel of a clip is cut into windows of ``2 n_window`` frames that the convolutions see alone, and frames
    attend within blocks: one window of 2 s in Qwen2.5-Omni (25 frames per second), eight of 1 s in Qwen3-Omni and
    Qwen3-ASR (13).
    Clips are cut at the last end of a block before 30 s, where Whisper's log-mel is normalised anew.
    The last window of a clip is filled up with zeros. The stock Qwen3-Omni fills up to the longest window of the batch,
    so there a clip shorter than one window depends on the batch it is in; here it is as in a batch with longer ones.
    Qwen3-ASR hears silence behind clips shorter than 0.5 s; frames of it are dropped.

    Args:
        tower: the stock module; its parameters are trained in place.
    """

    takes_masks = True
    calls_by_clip = False

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__()
        self.third = not isinstance(tower, Qwen2_5OmniAudioEncoder)
        # by name, for transformers 4, in which exports of the other two load, has no such class
        self.least = LEAST_OF_ASR if tower.config.model_type.startswith("qwen3_asr") else 0  # samples
        for name in OUTPUT_MAPS:
            if hasattr(tower, name):
                delattr(tower, name)
        self.tower = tower
        config = tower.config
        self.mel = LogMel(config.num_mel_bins)
        self.dim = config.d_model
        self.layer_dims = (self.dim,) * (config.encoder_layers + 1)
        self.window = 2 * config.n_window  # mel frames
        if self.window % 4:
            raise UserError(
                f"windows of {self.window} mel frames cannot be halved twice; n_window must be even"
            )
        windows = max(1, config.n_window_infer // self.window) if self.third else 1
        self.block = self.window * windows
        self.per_window = count_convolved_frames(self.window) if self.third else self.window // 4
        self.frame_rate = self.per_window * SAMPLE_RATE / HOP / self.window
        self.reach = self.block * HOP / SAMPLE_RATE
        self.chunk = REACH // (self.block * HOP) * self.block * HOP  # samples
        self.layer = apply_encoder_layer

    def num_frames(self, samples: int) -> int:
        """Return the frames of all windows: ``ceil(samples / 640)``, or 13 a second and one for each begun 80 ms."""
        return sum(
            self.count_frames(self.mel_frames(chunk)) for chunk in list_chunk_lengths(samples, self.chunk)
        )

    def mel_frames(self, samples: int) -> int:
        """Return the mel frames of a chunk: an even number, and one of whole pairs of pairs before the pooling."""
        frames = 2 * count_encoder_frames(samples)
        return frames if self.third else -(-frames // 4) * 4

    def count_frames(self, mel_frames: int) -> int:
        """Return the encoder frames of a chunk."""
        whole, rest = divmod(mel_frames, self.window)
        last = count_convolved_frames(rest) if self.third else rest // 4
        return whole * self.per_window + last

    def encode_clips(self, audio: Ragged, layers: bool, masks: Tensor | None) -> list[Tensor]:
        chunks = cut_into_chunks(audio, self.chunk)
        kept = chunks.map_lengths(lambda samples: self.count_frames(self.mel_frames(samples)))
        mel = self.mel(chunks.extend_rows(chunks.lengths.clamp(min=self.least)))
        if masks is not None and len(masks):
            mel = mask_mel(
                mel, [len(list_chunk_lengths(n, self.chunk)) for n in audio.lengths.tolist()], masks
            )
        stem = self.convolve(mel)
        given = mel.map_lengths(lambda frames: self.count_frames(self.round_up_to_window(frames)))
        segments = Segments.of(self.blocks(mel.lengths), stem.device)
        hidden = stem.values
        states = []
        for layer in self.tower.layers:
            if layers:
                states.append(self.pool_frames(hidden))
            hidden = run_layer(self.recomputes, self.layer, layer, hidden, segments)
        states.append(self.tower.ln_post(self.pool_frames(hidden)))
        return [keep_first(Ragged(state, given), kept).values for state in states]

    def pool_frames(self, hidden: Float[Tensor, "T E"]) -> Float[Tensor, "A E"]:
        """Average neighbours in Qwen2.5-Omni; every chunk has an even number."""
        return hidden if self.third else hidden.unflatten(0, (-1, 2)).mean(1)

    def blocks(self, mel_lengths: Tensor) -> list[int]:
        """Return the positions of every attention block, before the pooling."""
        pool = 1 if self.third else 2
        return [
            pool * self.count_frames(part)
            for n in mel_lengths.tolist()
            for part in list_chunk_lengths(self.round_up_to_window(n), self.block)
        ]

    def round_up_to_window(self, mel_frames: int) -> int:
        return mel_frames if self.third else -(-mel_frames // 4) * 4

    def convolve(self, mel: Ragged) -> Ragged:
        """Cut mel frames ``[F, M]`` into windows, convolve each alone and add positions: ``[T, E]``."""
        lengths = cut_lengths(mel.map_lengths(self.round_up_to_window), self.window).tolist()
        windows = cut_into_chunks(mel, self.window)
        full = windows.extend_rows(torch.full_like(windows.lengths, self.window))
        padded = full.values.unflatten(0, (-1, self.window))
        embedded = (
            self.apply_three_convolutions(padded)
            if self.third
            else self.apply_two_convolutions(padded, lengths)
        )
        positions = self.tower.positional_embedding.positional_embedding[: embedded.shape[1]]
        embedded = embedded + positions.to(embedded.dtype)
        counts = [count_convolved_frames(n) if self.third else n // 2 for n in lengths]
        convolved = Ragged(embedded.flatten(0, 1), torch.full((len(lengths),), embedded.shape[1]))
        return keep_first(convolved, torch.tensor(counts, dtype=torch.int64))

    def apply_two_convolutions(
        self, padded: Float[Tensor, "W F M"], lengths: list[int]
    ) -> Float[Tensor, "W T E"]:
        """Apply Qwen2.5-Omni's stem; what the first convolution says of the filling does not reach the second."""
        inside = torch.arange(padded.shape[1])[None] < torch.tensor(lengths)[:, None]
        inside = inside[:, None].to(padded.device, non_blocking=True)
        hidden = padded.transpose(1, 2).to(self.tower.conv1.weight.dtype)
        hidden = F.gelu(self.tower.conv1(hidden)) * inside
        return F.gelu(self.tower.conv2(hidden)).transpose(1, 2)

    def apply_three_convolutions(self, padded: Float[Tensor, "W F M"]) -> Float[Tensor, "W T E"]:
        """Apply Qwen3-Omni's stem over time and frequency."""
        hidden = padded.transpose(1, 2)[:, None].to(self.tower.conv2d1.weight.dtype)
        for convolution in (self.tower.conv2d1, self.tower.conv2d2, self.tower.conv2d3):
            hidden = F.gelu(convolution(hidden))
        return self.tower.conv_out(hidden.permute(0, 3, 1, 2).flatten(2))


def count_convolved_frames(mel_frames: int) -> int:
    """Return the frames that three convolutions of stride 2 leave: ``ceil(F / 8)``."""
    return -(-mel_frames // STRIDE_3)


def load_omni(path: str, revision: str | None = None, seed: int = 0) -> OmniAudioEncoder:
    """Load the audio tower in float32 from a full, thinker or tower checkpoint; nothing else of it is read.

    Raises:
        UserError: when there is no such folder, or a tensor of the tower is missing or unknown.
    """
    folder = find_model_folder(path, revision)
    config_values = read_model_config(folder)
    thinker = config_values.get("thinker_config", config_values)
    audio = thinker.get("audio_config", thinker)
    audio = {key: value for key, value in audio.items() if key != "model_type"}
    kind = next(STOCK[name] for name in STOCK if config_values["model_type"].startswith(name))
    config = use_stock_attention(kind.config_class(**audio))
    tower = build_with_random_weights(lambda: kind(config), seed)
    if not path.startswith(RANDOM):
        tensors = read_tensors(folder, PREFIXES)
        known = {name for name in OUTPUT_MAPS if hasattr(tower, name)}
        unused = set(OUTPUT_MAPS) - known  # the first checkpoints of Qwen3-ASR have them in the tower
        fill(tower, {name: t for name, t in tensors.items() if name.split(".")[0] not in unused}, folder)
    return OmniAudioEncoder(tower.float())
