"""What the contract of encoders does not let pass."""

import pytest
import torch
from conftest import tiny_whisper

from uniaudio.checks.encoder_contract import check_batch_invariance, measure_batch_effect
from uniaudio.model.encoders.whisper import WhisperAudioEncoder


class NotFiniteInBatches(WhisperAudioEncoder):
    """The last frame of a batch is no number; those of a clip alone are right."""

    def forward(self, audio, layers=False, masks=None):
        encoded = super().forward(audio, layers, masks)
        if len(audio) > 1:
            encoded.frames.values[-1] = torch.nan
        return encoded


def test_frames_that_are_no_numbers_in_a_batch_depend_on_it():
    encoder = NotFiniteInBatches(tiny_whisper()).eval()
    assert torch.isnan(torch.tensor(measure_batch_effect(encoder)))
    with pytest.raises(AssertionError, match="a clip alone differs from the clip in a batch by nan"):
        check_batch_invariance(encoder)
    assert check_batch_invariance(WhisperAudioEncoder(tiny_whisper()).eval()).startswith(
        "relative difference"
    )
