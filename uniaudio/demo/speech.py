"""Spoken words from espeak-ng, which the optional wheel ``espeakng-loader`` carries with its voices."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import soxr
from numpy.typing import NDArray

from uniaudio.types import SAMPLE_RATE

# Constants of espeak-ng's speak_lib.h.
SYNCHRONOUS = 2  # audio output: samples go to a callback, synthesis returns when all are there
CHARACTERS = 1  # position type
UTF8 = 1
RATE, PITCH, RANGE = 1, 3, 4  # parameters: words a minute, 0..100, 0..100

SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """One way of speaking: an espeak-ng voice such as ``en-us+f4``, words a minute, pitch, range 0..100."""

    name: str
    rate: int = 170
    pitch: int = 50
    range: int = 50


def is_speech_available() -> bool:
    """Whether the optional wheel is installed (``pip install uniaudio[speech]``)."""
    return importlib.util.find_spec("espeakng_loader") is not None


@cache
def load_espeak() -> tuple[ctypes.CDLL, int]:
    """The library, initialised once in this process, and its sample rate.

    Raises:
        RuntimeError: when espeak-ng does not start.
    """
    import espeakng_loader  # the wheel is optional

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng did not start (code {rate}) with {espeakng_loader.get_data_path()}")
    return library, rate


def collect_samples(synthesize: Callable[[], int], library: ctypes.CDLL) -> NDArray[np.int16]:
    """Run one synthesis and return what the callback was handed, int16 ``[S]``."""
    parts: list[NDArray[np.int16]] = []

    def receive(samples: ctypes._Pointer[ctypes.c_short], count: int, events: int) -> int:
        if samples and count > 0:
            parts.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    callback = SynthCallback(receive)  # kept alive in this frame while espeak-ng calls it
    library.espeak_SetSynthCallback(callback)
    code = synthesize()
    if code:
        raise RuntimeError(f"espeak-ng could not speak (code {code})")
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


def speak(text: str, voice: Voice) -> NDArray[np.float32]:
    """Say a text: float32 ``[S]`` in -1..1 at 16 kHz, silence at both ends cut off.

    Raises:
        RuntimeError: when espeak-ng does not know the voice or gives no sound.
    """
    library, rate = load_espeak()
    if library.espeak_SetVoiceByName(voice.name.encode()):
        raise RuntimeError(f"espeak-ng has no voice {voice.name}")
    for parameter, value in ((RATE, voice.rate), (PITCH, voice.pitch), (RANGE, voice.range)):
        library.espeak_SetParameter(parameter, value, 0)
    data = text.encode() + b"\0"
    samples = collect_samples(
        lambda: library.espeak_Synth(data, len(data), 0, CHARACTERS, 0, UTF8, None, None), library
    )
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > 150)
    if not len(loud):
        raise RuntimeError(f"espeak-ng gave no sound for {text!r} with {voice.name}")
    spoken = samples[loud[0] : loud[-1] + 1].astype(np.float32) / 32768
    return soxr.resample(spoken, rate, SAMPLE_RATE, quality="HQ").astype(np.float32)
