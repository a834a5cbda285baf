"""The log-mel spectrogram of a clip as a figure."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from transformers.audio_utils import hertz_to_mel

from uniaudio.model.mel import REACH, LogMel
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

BANDS = 80
MAX_COLUMNS = 1500  # neighbouring frames of long clips are averaged
DYNAMIC_RANGE = 2.0  # shown below the loudest value, in units of Whisper's scale: 80 dB
TICKS = np.array([500, 1000, 2000, 4000, 8000])  # Hz
INK = "#808893"  # of axes and labels: legible on light and dark pages


def compute_log_mel(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return Whisper's log-mel ``[F, 80]`` of int16 samples ``[S]`` at 16 kHz, 10 ms a frame, on its own scale.

    Clips beyond 30 s are cut into chunks of 30 s, as the encoder does.
    """
    chunks = [torch.from_numpy(samples[i : i + REACH].copy()) for i in range(0, len(samples), REACH)]
    frames = LogMel(BANDS)(Ragged.from_rows(chunks)).values.numpy()
    return np.maximum(frames, frames.max() - DYNAMIC_RANGE)


def draw_spectrogram(samples: NDArray[np.int16]) -> Figure:
    """Draw the log-mel spectrogram of int16 samples ``[S]`` at 16 kHz, low frequencies at the bottom."""
    frames = compute_log_mel(samples)
    step = math.ceil(len(frames) / MAX_COLUMNS)
    starts = np.arange(0, len(frames), step)
    columns = np.add.reduceat(frames, starts) / np.diff([*starts, len(frames)])[:, None]
    figure = Figure(figsize=(7, 2.6), dpi=150, layout="constrained", facecolor="none")
    axes = figure.subplots()
    seconds = len(samples) / SAMPLE_RATE
    axes.imshow(columns.T, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, BANDS))
    axes.set_title("Log-mel spectrogram", color=INK, loc="left", fontsize="medium")
    axes.set_xlabel("time (s)", color=INK)
    axes.set_ylabel("frequency (kHz)", color=INK)
    places = hertz_to_mel(TICKS, mel_scale="slaney") / hertz_to_mel(SAMPLE_RATE / 2, mel_scale="slaney")
    axes.set_yticks(BANDS * places, [f"{hertz / 1000:g}" for hertz in TICKS])
    axes.tick_params(colors=INK)
    axes.spines[:].set_visible(False)
    return figure
