"""The mel spectrogram of a clip as a picture."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from matplotlib import image
from numpy.typing import NDArray

from uniaudio.model.mel import REACH, LogMel
from uniaudio.ragged import Ragged

BANDS = 80
WIDEST = 1500  # columns of a picture; neighbouring frames of long clips are averaged
DEPTH = 2.0  # what is shown below the loudest value, in units of Whisper's scale: 80 dB


def mel_frames(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return Whisper's log-mel ``[F, 80]`` of int16 samples ``[S]`` at 16 kHz, 10 ms a frame, on its own scale.

    Clips beyond 30 s are cut into windows of 30 s, as the encoder does.
    """
    chunks = [torch.from_numpy(samples[i : i + REACH].copy()) for i in range(0, len(samples), REACH)]
    frames = LogMel(BANDS)(Ragged.from_rows(chunks)).values.numpy()
    return np.maximum(frames, frames.max() - DEPTH)


def mel_picture(samples: NDArray[np.int16]) -> bytes:
    """Return a PNG of the log-mel spectrogram, time to the right and low frequencies at the bottom."""
    frames = mel_frames(samples)
    step = math.ceil(len(frames) / WIDEST)
    starts = np.arange(0, len(frames), step)
    sizes = np.diff([*starts, len(frames)])
    columns = np.add.reduceat(frames, starts) / sizes[:, None]
    file = io.BytesIO()
    image.imsave(file, columns.T, format="png", origin="lower", cmap="magma")
    return file.getvalue()
