"""``uniaudio.load_encoder`` and what it gives."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import soxr
import torch
from conftest import tiny_whisper, tone
from helpers.checkpoints import save_miniature

import uniaudio
from uniaudio.build.embedder import Embedder
from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged

CLIPS = [tone(seconds, 300 + 50 * i, i) for i, seconds in enumerate((0.5, 1.2, 0.02, 2.0))]


@pytest.fixture
def embedder(tmp_path):
    tiny_whisper().save_pretrained(tmp_path / "whisper")
    return uniaudio.load_encoder(tmp_path / "whisper", device="cpu")


def alone(clip: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return (
            WhisperAudioEncoder(tiny_whisper())
            .eval()(Ragged.from_rows([torch.from_numpy(clip)]))
            .frames.values.numpy()
        )


def test_the_mean_and_the_frames_of_every_clip_in_order(embedder):
    assert (embedder.dim, embedder.frame_rate) == (64, 50)
    vectors = embedder.embed(CLIPS)
    frames = embedder.embed(CLIPS, pool="none", batch_seconds=1.0)
    assert vectors.shape == (4, 64)
    assert vectors.dtype == np.float32
    assert [len(f) for f in frames] == [25, 60, 1, 100]
    for clip, vector, single in zip(CLIPS, vectors, frames, strict=True):
        np.testing.assert_allclose(single, alone(clip), atol=1e-5)
        np.testing.assert_allclose(vector, alone(clip).mean(0), atol=1e-5)
    assert embedder.embed([]).shape == (0, 64)
    assert embedder.embed([], pool="none") == []


def test_options_of_a_model_are_those_of_a_config(embedder, tmp_path):
    config = EncoderConfig(path=str(tmp_path / "whisper"), pad_to=2, tail_frames=3)
    wanted = Embedder(load_audio_encoder(config, "encoders.w")).embed(CLIPS)
    padded = uniaudio.load_encoder(f"{tmp_path}/whisper?pad_to=2&tail_frames=3", device="cpu").embed(CLIPS)
    np.testing.assert_array_equal(padded, wanted)
    assert np.abs(padded - embedder.embed(CLIPS)).max() > 0.01
    drawn = uniaudio.load_encoder(f"random:{tmp_path}/whisper?pad_to=2", device="cpu")
    assert drawn.encoder.pad_to == 2
    with pytest.raises(UserError, match=r"whisper: pad_to: 40 s is not between 0 and Whisper's 30 s$"):
        uniaudio.load_encoder(f"{tmp_path}/whisper?pad_to=40")
    with pytest.raises(UserError, match=r"whisper\.chunk_seconds: a whisper encoder has no such setting"):
        uniaudio.load_encoder(f"{tmp_path}/whisper?chunk_seconds=4")


def test_files_arrays_and_tensors_are_the_same_clip(embedder, tmp_path):
    clip = CLIPS[0]
    soundfile.write(tmp_path / "clip.wav", clip, 16_000)
    floats = clip.astype(np.float32) / 32768
    kinds = [str(tmp_path / "clip.wav"), tmp_path / "clip.wav", clip, floats, floats.astype(np.float64),
             torch.from_numpy(clip), torch.from_numpy(floats)]  # fmt: skip
    vectors = [embedder.embed([kind])[0] for kind in kinds]
    for vector in vectors:
        np.testing.assert_array_equal(vector, vectors[0])


def test_other_rates_are_resampled(embedder):
    high = soxr.resample(CLIPS[1].astype(np.float32) / 32768, 16_000, 44_100)
    vector = embedder.embed([high], sampling_rate=44_100)[0]
    down = soxr.resample(high, 44_100, 16_000, quality="HQ")
    np.testing.assert_array_equal(vector, embedder.embed([down])[0])
    np.testing.assert_allclose(vector, embedder.embed([CLIPS[1]])[0], atol=0.1)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ("dog.wav", r"give a list"),
        (["no such file.wav"], "missing file"),
        ([np.zeros((2, 100), np.float32)], r"clips\[0\].*one axis"),
        ([np.zeros(0, np.float32)], "at least one sample"),
        ([CLIPS[0], np.zeros(10, np.int64)], r"clips\[1\].*int64"),
        ([np.full(10, np.nan, np.float32)], "finite"),
        ([CLIPS[0].astype(np.float32)], r"in \[-1, 1\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(embedder, clips, message):
    with pytest.raises(UserError, match=message):
        embedder.embed(clips)


def test_wrong_words_are_refused(embedder, tmp_path):
    with pytest.raises(UserError, match="neither mean nor none"):
        embedder.embed(CLIPS, pool="max")
    with pytest.raises(UserError, match="above 0"):
        embedder.embed(CLIPS, sampling_rate=0)
    with pytest.raises(UserError, match="device"):
        uniaudio.load_encoder(tmp_path / "whisper", device="nowhere")


@pytest.mark.parametrize("kind", ["whisper", "w2v_bert", "clap"])
def test_eight_threads_get_the_same_numbers(tmp_path, kind):
    """w2v-BERT keeps the rotary angles of the last length, and the embedder switches modes: both would be races."""
    save_miniature(kind, tmp_path / kind)
    embedder = uniaudio.load_encoder(tmp_path / kind, device="cpu")
    orders = [np.random.default_rng(i).permutation(len(CLIPS)) for i in range(8)]
    wanted = [embedder.embed([CLIPS[i] for i in order]) for order in orders]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            result = pool.map(lambda order: embedder.embed([CLIPS[i] for i in order]), orders)
            for one, other in zip(wanted, result, strict=True):
                np.testing.assert_array_equal(one, other)


def test_bfloat16_is_near(tmp_path, embedder):
    rough = uniaudio.load_encoder(tmp_path / "whisper", device="cpu", dtype=torch.bfloat16)
    exact, near = embedder.embed(CLIPS), rough.embed(CLIPS)
    assert near.dtype == np.float32
    assert 0 < np.abs(near - exact).mean() < 0.05 * np.abs(exact).mean()


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, uniaudio; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
