"""``uniaudio.load_encoder`` and what it gives."""

import copy
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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


@dataclass
class Samples:
    data: torch.Tensor
    sample_rate: int


class Decoder:
    """As torchcodec's, which `datasets` gives."""

    def __init__(self, samples):
        self.samples = samples

    def get_all_samples(self):
        return self.samples


def test_what_libraries_hold_clips_in_is_the_same_clip_alone_and_in_a_list(embedder, tmp_path):
    clip = CLIPS[0]
    soundfile.write(tmp_path / "clip.flac", clip, 16_000)
    encoded = (tmp_path / "clip.flac").read_bytes()
    floats = torch.from_numpy(clip.astype(np.float32) / 32768)
    audio = {"array": floats.double().numpy(), "sampling_rate": 16_000, "path": None}
    kinds = [encoded, bytearray(encoded), memoryview(encoded), io.BytesIO(encoded), (floats[None], 16_000),
             audio, {**audio, "array": floats.tolist()}, {"bytes": encoded, "path": "clip.flac"},
             {"bytes": None, "path": str(tmp_path / "clip.flac")}, {"audio": audio, "label": "dog"},
             Decoder(Samples(torch.stack([floats, floats]), 16_000)), Samples(floats[None], 16_000)]  # fmt: skip
    wanted = embedder.embed([clip])[0]
    for kind in kinds:
        vector = embedder.embed(kind)
        assert vector.shape == (64,)
        np.testing.assert_allclose(vector, wanted, atol=1e-6)
        if isinstance(kind, io.BytesIO):
            kind.seek(0)
    np.testing.assert_allclose(embedder.embed(iter(kinds)), [wanted] * len(kinds), atol=1e-6)
    (frames,) = embedder.embed([clip], pool="none")
    np.testing.assert_array_equal(embedder.embed(clip, "none"), frames)
    assert embedder.embed(np.array([str(tmp_path / "clip.flac")])).shape == (1, 64)


def test_channels_are_averaged_however_they_lie(embedder):
    left, right = (clip[:8000].astype(np.float32) / 32768 for clip in CLIPS[1:4:2])
    wanted = embedder.embed([(left + right) / 2])
    for stereo in (np.stack([left, right]), np.stack([left, right], 1)):
        np.testing.assert_allclose(embedder.embed([stereo]), wanted, atol=1e-5)


def test_a_layer_and_the_size_of_a_batch(embedder):
    last = len(embedder.layer_dims) - 1
    np.testing.assert_array_equal(embedder.embed(CLIPS, layer=last), embedder.embed(CLIPS))
    np.testing.assert_array_equal(embedder.embed(CLIPS, layer=-1), embedder.embed(CLIPS))
    first = embedder.embed(CLIPS, layer=0)
    assert np.abs(first - embedder.embed(CLIPS)).max() > 0.01
    seen = []
    hook = embedder.encoder.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    np.testing.assert_allclose(embedder.embed(CLIPS, layer=0, batch_size=3), first, atol=1e-5)
    hook.remove()
    assert seen == [3, 1]
    for options, message in (({"layer": last + 1}, f"0 to {last}"), ({"batch_size": 0}, "above 0")):
        with pytest.raises(UserError, match=message):
            embedder.embed(CLIPS, **options)


def test_as_a_module_it_has_gradients_modes_and_a_state(embedder, tmp_path):
    waves = [torch.from_numpy(clip.astype(np.float32) / 32768) for clip in CLIPS]
    module = uniaudio.load_encoder(tmp_path / "whisper", device="cpu", trainable=True)
    assert module.training
    output = module(waves, output_hidden_states=True)
    assert output.last_hidden_state.shape == (4, 100, 64)
    assert output.frame_mask.sum(1).tolist() == [25, 60, 1, 100]
    assert [state.shape[-1] for state in output.hidden_states] == list(module.layer_dims)
    np.testing.assert_allclose(output.pooler_output.detach(), embedder.embed(CLIPS), atol=1e-5)
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    same = module(padded, [len(wave) for wave in waves])
    torch.testing.assert_close(same.pooler_output, output.pooler_output)
    output.pooler_output.square().mean().backward()
    fixed = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert [name.split(".")[-2] for name in fixed] == [
        "embed_positions"
    ]  # Whisper's sinusoids are no weights
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert np.abs(module.embed(CLIPS) - embedder.embed(CLIPS)).max() > 1e-4
    assert module.training  # embed leaves the mode as it was
    copied = copy.deepcopy(module)
    copied.load_state_dict(embedder.state_dict())
    np.testing.assert_array_equal(copied.embed(CLIPS), embedder.embed(CLIPS))
    assert not embedder.training
    assert not any(parameter.requires_grad for parameter in embedder.parameters())
    assert not embedder(waves).pooler_output.requires_grad


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([],), "give a list of waveforms"),
        (([torch.zeros(0)],), "give a list of waveforms"),
        ((torch.zeros(5),), r"is \[B, S\]"),
        ((torch.zeros(2, 5), [5]), "2 clips have 1 to 5 samples"),
        ((torch.zeros(2, 5), [5, 6]), "2 clips have 1 to 5 samples"),
        (([torch.zeros(5)], [5]), "only a padded tensor needs them"),
        ((["dog.flac"],), "give a list of waveforms .*`embed` takes files"),
        (([torch.zeros(5, dtype=torch.int32)],), "not torch.int32"),
        ((torch.zeros(2, 5, dtype=torch.int32),), "not torch.int32"),
        ((torch.zeros(2, 5, dtype=torch.bool), [5, 5]), "not torch.bool"),
    ],
)
def test_what_a_module_cannot_take_is_refused(embedder, given, message):
    with pytest.raises(UserError, match=message):
        embedder(*given)


def test_a_list_may_hold_int16_and_floats(embedder):
    waves = [torch.from_numpy(clip) for clip in CLIPS]
    mixed = [waves[0], waves[1].float() / 32768, waves[2], waves[3].double() / 32768]
    wanted = embedder(waves).pooler_output
    torch.testing.assert_close(embedder(mixed).pooler_output, wanted, atol=1e-5, rtol=1e-5)


def test_other_rates_are_resampled(embedder):
    high = soxr.resample(CLIPS[1].astype(np.float32) / 32768, 16_000, 44_100)
    vector = embedder.embed([high], sampling_rate=44_100)[0]
    down = soxr.resample(high, 44_100, 16_000, quality="HQ")
    np.testing.assert_array_equal(vector, embedder.embed([down])[0])
    np.testing.assert_allclose(vector, embedder.embed([CLIPS[1]])[0], atol=0.1)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (["no such file.wav"], "missing file"),
        ("no such file.wav", "missing file"),
        ("https://host/dog.flac", "clip: https://host/dog.flac is a URL, not a file"),
        (str(Path(__file__).parent), "is a folder"),
        ((CLIPS[0], float("nan")), "the sampling rate: give a number above 0, not nan"),
        (np.zeros((2, 100), np.float32), r"give \[array\] for one clip, list\(array\) for many"),
        ([np.zeros((2, 100, 2), np.float32)], r"clips\[0\].*one axis"),
        ([b"no audio"], r"clips\[0\]"),
        ([{"text": "a bird"}], r"clips\[0\]: a mapping with the keys text"),
        ([{"array": np.zeros(10)}], "without a `sampling_rate`"),
        ([3.5], "float is not audio"),
        (7, "not a list of clips"),
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
    for name, values in {
        "sampling_rate": (0, "x"),
        "layer": ("1", 1.0, True),
        "batch_size": (0, 1.5),
        "batch_seconds": (0, "60", float("nan")),
    }.items():
        for value in values:
            with pytest.raises(UserError, match=f"{name.replace('_', '.')}: give a"):
                embedder.embed(CLIPS, **{name: value})
    for dtype in (torch.int8, "bfloat16"):
        with pytest.raises(UserError, match="dtype: give a floating-point dtype"):
            uniaudio.load_encoder(tmp_path / "whisper", dtype=dtype)
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
    heavy = ("torch", "numpy", "transformers", "pandas", "pydantic", "rich")
    code = f"import sys, uniaudio; uniaudio.train; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
