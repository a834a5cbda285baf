"""The benchmark of silence: what its decoder reads, and cells that are kept."""

import json

import pytest
import silence
import torch
from conftest import tiny_whisper
from safetensors.torch import save_file

from uniaudio.model.encoders.whisper import WhisperAudioEncoder


@pytest.mark.parametrize(
    ("settings", "samples"),
    [
        ({}, 5_000),
        ({"tail_frames": 25}, 5_120 + 25 * 320),  # a whole frame, then those of the silence
        ({"pad_to": 30}, 480_000),
        ({"pad_to": 0.2}, 5_000),
        ({"tail_frames": 1600}, 480_000),
    ],
)
def test_the_decoder_reads_the_frames_of_the_silence_of_its_encoder(settings, samples):
    encoder = WhisperAudioEncoder(tiny_whisper(), **settings).eval()
    bare = WhisperAudioEncoder(tiny_whisper()).eval()
    clip = torch.randint(-3000, 3000, (5_000,), dtype=torch.int16)
    longer = silence.append_silence(clip, encoder)
    assert len(longer) == samples
    assert torch.equal(longer[:5_000], clip)
    assert not longer[5_000:].any()
    (frames,), (whole,) = silence.encode_clips(encoder, [clip]), silence.encode_clips(bare, [longer])
    torch.testing.assert_close(whole[: len(frames)], frames, atol=2e-5, rtol=2e-5)


def test_a_cell_is_measured_once_and_its_vectors_are_compared_with_those_at_30_seconds(tmp_path, monkeypatch):
    best, other = (
        silence.Measurement("m/w", options, "digits, 1 s") for options in (silence.BEST, "tail_frames=5")
    )
    assert (other.spec, silence.Measurement("m/w", "", "s").spec) == ("m/w?tail_frames=5", "m/w")
    for cell, vector in ((best, [1.0, 0.0]), (other, [3.0, 4.0])):
        cell.file(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        assert silence.compare_vectors(other, tmp_path) == {}
        save_file({"vectors": torch.tensor([vector])}, cell.file(tmp_path).with_suffix(".safetensors"))
    assert silence.compare_vectors(other, tmp_path)["cosine"] == pytest.approx(0.6)
    other.file(tmp_path).write_text(json.dumps({"knn": 0.5}))
    monkeypatch.setattr(silence, "measure_probes", None)
    assert silence.measure(other, None, tmp_path) == {"knn": 0.5}
