"""One ONNX file: the transformers module of an encoder through torch's exporter, compared with the encoder."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.models.audioflamingo3.modeling_audioflamingo3 import AudioFlamingo3Encoder
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.export.hf import make_noise
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.chunking import convert_to_float
from uniaudio.model.encoders.w2v_bert import W2vBertAudioEncoder
from uniaudio.model.encoders.wav2vec2 import WaveAudioEncoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.fusion.encoder import FusedEncoder
from uniaudio.model.fusion.mowe import MoweEncoder
from uniaudio.model.mel import REACH
from uniaudio.model.model_hash import is_foreign
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

FILE = "encoder.onnx"
OUTPUT = "last_hidden_state"
OPSET = 20
TOLERANCE = 1e-4  # largest difference from torch, relative to the largest value of the batch
EXAMPLE = (24_000, 17_000)  # samples of the clips that the exporter traces
BATCHES = ((16_000,), (48_000, 7_777, 12_345))  # samples of the clips that are compared
POOLING = (Qwen2AudioEncoder, AudioFlamingo3Encoder)  # towers that average pairs of frames themselves
FUSED = (
    "--to onnx: a fused encoder cannot be exported, because no single module of transformers computes its frames; "
    "use --to hf"
)


@dataclass(frozen=True)
class StockModule:
    """A module of transformers whose last hidden state is the frames of an encoder.

    Args:
        extractor: turns float waveforms at 16 kHz into the inputs of the module, which get its names.
        whole: it takes inputs of 30 s only, with silence after shorter clips.
        masked: it takes an attention mask. A module without one needs clips of one length in a batch, unless ``whole``.
    """

    module: nn.Module
    extractor: Any
    whole: bool
    masked: bool

    @property
    def options(self) -> dict[str, Any]:
        """What the extractor is called with."""
        padding = "max_length" if self.whole else self.masked
        return {"sampling_rate": SAMPLE_RATE, "padding": padding, "return_attention_mask": self.masked}

    def prepare(self, clips: list[Tensor]) -> dict[str, Tensor]:
        """Return the inputs for clips ``[S]``, in the order of the module's arguments."""
        return dict(self.extractor([clip.numpy() for clip in clips], **self.options, return_tensors="pt"))

    def make_clips(self, lengths: tuple[int, ...], reach: float | None) -> list[Tensor]:
        """Return float noise: clips of these lengths, of the first where there is no mask, of 30 s where all are."""
        longest = REACH if reach is None else int(reach * SAMPLE_RATE)
        lengths = tuple(min(length, longest) for length in lengths)
        if not self.masked and not self.whole:
            lengths = lengths[:1] * len(lengths)
        clips = [convert_to_float(clip) for clip in make_noise(lengths).rows()]
        return [F.pad(clip, (0, REACH - len(clip))) for clip in clips] if self.whole else clips


def find_stock_module(encoder: AudioEncoder) -> StockModule:
    """Return the module of transformers that an ONNX file can hold, on the weights of the encoder.

    Raises:
        UserError: when there is none: the encoder is fused, or makes its frames otherwise than such a module.
    """
    if type(encoder) is WhisperAudioEncoder:
        if encoder.pool > 1 and not isinstance(encoder.whisper, POOLING):
            raise UserError(
                f"--to onnx: the encoder averages frames (pool: {encoder.pool}), which "
                f"{type(encoder.whisper).__name__} of transformers does not; use --to hf"
            )
        extractor = WhisperFeatureExtractor(feature_size=encoder.whisper.config.num_mel_bins)
        masked = isinstance(encoder.whisper, AudioFlamingo3Encoder)
        return StockModule(encoder.whisper, extractor, whole=True, masked=masked)
    if type(encoder) is WaveAudioEncoder:
        extractor = Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE, do_normalize=encoder.normalize)
        return StockModule(encoder.model, extractor, whole=False, masked=can_mask(encoder))
    if type(encoder) is W2vBertAudioEncoder:
        return StockModule(encoder.model, encoder.extractor, whole=False, masked=True)
    if isinstance(encoder, FusedEncoder | MoweEncoder):
        raise UserError(FUSED)
    if foreign := [type(part) for part in encoder.modules() if is_foreign(type(part).__module__)]:
        raise UserError(
            f"--to onnx: {foreign[0].__name__} of {foreign[0].__module__} is neither code of uniaudio nor of "
            "transformers, and no export holds it"
        )
    raise UserError(
        f"--to onnx: encoders of the model type {encoder.model_type} cannot be exported, because their frames are not "
        "the output of a module of transformers but computed from it; use --to hf"
    )


def can_mask(encoder: WaveAudioEncoder) -> bool:
    """Return whether the stock module gives a padded clip, with its mask, the frames of the clip alone.

    A group norm over time takes in the padding, and the stacked positional convolutions of data2vec fill it.
    """
    model = encoder.model
    normed_over_time = any(isinstance(part, nn.GroupNorm) for part in model.feature_extractor.modules())
    return not normed_over_time and not hasattr(model.encoder.pos_conv_embed, "layers")


class LastHiddenState(nn.Module):
    """A stock module with one output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the frames ``[B, A, E]``."""
        return self.module(features, mask).last_hidden_state


def write_onnx(encoder: AudioEncoder, folder: Path, facts: Mapping[str, Any]) -> StockModule:
    """Write ``encoder.onnx`` and ``preprocessor_config.json``, the feature extractor that makes its inputs.

    The inputs are those of the stock module; the number of clips is free, and their length unless it is 30 s. The
    metadata holds sampling rate, frame rate, width and ``facts`` as JSON under ``uniaudio``.

    Raises:
        UserError: when the encoder cannot be exported. RuntimeError: when onnxruntime differs from the encoder.
    """
    encoder = encoder.cpu().float().eval().requires_grad_(False)
    stock = find_stock_module(encoder)
    inputs = stock.prepare(stock.make_clips(EXAMPLE, encoder.reach))
    free = {0: "batch"} if stock.whole else {0: "batch", 1: "time"}
    name = type(stock.module).__name__
    with (
        convert_to_user_error(f"--to onnx: torch.onnx.export cannot export {name}", "use --to hf"),
        silence_exporter(),
        torch.no_grad(),
    ):
        program = torch.onnx.export(
            LastHiddenState(stock.module).eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[OUTPUT],
            dynamic_shapes=tuple(free for _ in inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    metadata = {"sampling_rate": SAMPLE_RATE, "dim": encoder.dim, "frame_rate": encoder.frame_rate, **facts}
    program.model.metadata_props["uniaudio"] = json.dumps(metadata)
    folder.mkdir(parents=True, exist_ok=True)
    program.save(folder / FILE)
    stock.extractor.save_pretrained(folder)
    compare_outputs(encoder, stock, folder / FILE)
    return stock


@contextmanager
def silence_exporter() -> Iterator[None]:
    """Keep the exporter's messages about its own internals off the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            yield
    finally:
        logging.disable(level)


@torch.no_grad()
def compare_outputs(encoder: AudioEncoder, stock: StockModule, path: Path) -> float:
    """Compare onnxruntime with the encoder on clips alone and in a batch.

    Returns:
        The largest difference, relative to the largest value of its batch.

    Raises:
        RuntimeError: when it is above 1e-4, or there are fewer frames.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for lengths in BATCHES:
        clips = stock.make_clips(lengths, encoder.reach)
        inputs = {name: value.numpy() for name, value in stock.prepare(clips).items()}
        (frames,) = session.run([OUTPUT], inputs)
        expected = encoder(Ragged.from_rows(clips)).frames
        if frames.shape[1] < int(expected.lengths.max()):
            raise RuntimeError(f"{path}: {frames.shape[1]} frames, torch gives {int(expected.lengths.max())}")
        largest = float(expected.values.abs().max())
        for row, clip in zip(frames, expected.rows(), strict=True):
            # max() of Python would pass over values that are no numbers
            worst = float(np.maximum(worst, np.abs(row[: len(clip)] - clip.numpy()).max() / largest))
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"{path}: onnxruntime differs from torch by {worst:.1e} of the largest value, allowed {TOLERANCE:g}"
        )
    return worst
