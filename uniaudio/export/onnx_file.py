"""An encoder as one ONNX file, from waveforms to frames, compared with torch before it is given away."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from uniaudio.export.padded import PaddedTwin
from uniaudio.export.trial import padded_noise
from uniaudio.export.twins import padded_twin
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

FILE = "encoder.onnx"
INPUTS, OUTPUTS = ("samples", "lengths"), ("frames", "frame_counts")
OPSET = 20
ALLOWED = 1e-4  # greatest difference from torch's value, relative to the largest value of the clip's batch
MOST_BYTES = 1_900_000_000  # of one protobuf; larger weights go to a file beside it
TRIALS: Sequence[Sequence[int]] = (  # lengths of the clips of each batch that is compared
    (16_000,),
    (1,),
    (401, 8_000),
    (48_000, 320, 12_345),
    (7, 33_333, 16_000, 159, 20_000),
)


def write_onnx(encoder: AudioEncoder, folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write ``encoder.onnx``: ``samples [B, S]`` float32 in [-1, 1] at 16 kHz and ``lengths [B]`` int64 to ``frames
    [B, A, E]`` and ``frame_counts [B]``; B and S are free, the log-mel or the filters are in the graph.

    Raises:
        UserError: for an encoder that has no padded twin. RuntimeError: when onnxruntime differs from torch.
    """
    encoder = copy.deepcopy(encoder).cpu().float().eval().requires_grad_(False)
    twin = padded_twin(encoder).eval()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    size = sum(p.numel() * p.element_size() for p in twin.parameters())
    samples, lengths = padded_noise((24_000, 17_000))
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    with quiet(), torch.no_grad():
        torch.onnx.export(
            twin,
            (samples, lengths),
            path,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes={"samples": {0: batch, 1: time}, "lengths": {0: batch}},
            opset_version=OPSET,
            external_data=size > MOST_BYTES,
            dynamo=True,
            verbose=False,
        )
    told = {"sampling_rate": SAMPLE_RATE, "dim": encoder.dim, "frame_rate": encoder.frame_rate}
    told |= {"longest_samples": twin.longest, **facts}
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {"uniaudio": json.dumps(told)})
    path.write_bytes(model.SerializeToString())
    compare(encoder, twin, path)
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own insides off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def compare(encoder: AudioEncoder, twin: PaddedTwin, path: Path) -> float:
    """Compare onnxruntime with the encoder on several lengths and batches.

    Returns:
        The greatest difference, relative to the largest value of its batch.

    Raises:
        RuntimeError: when it is above 1e-4, or a count differs.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for lengths in (*TRIALS, (twin.longest,)):
        samples, counts = padded_noise(lengths)
        frames, frame_counts = session.run(None, {"samples": samples.numpy(), "lengths": counts.numpy()})
        wanted = encoder(Ragged.from_padded(samples, counts)).frames
        if frame_counts.tolist() != wanted.lengths.tolist():
            raise RuntimeError(
                f"{path}: {frame_counts.tolist()} frames, torch gives {wanted.lengths.tolist()}"
            )
        largest = float(wanted.values.abs().max())
        for row, own in enumerate(wanted.rows()):
            away = float(np.abs(frames[row, : len(own)] - own.numpy()).max())
            worst = max(worst, away / largest)
    if not worst <= ALLOWED:
        raise RuntimeError(
            f"{path}: onnxruntime differs from torch by {worst:.1e} of the largest value, allowed {ALLOWED:g}"
        )
    return worst
