"""Augmentation: what each transform does in numbers, and that it depends on the example's generator alone."""

import math
import random

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.config.records import build
from uniaudio.data.augment import Augmenter, AugmentStep
from uniaudio.data.waveform_augmentations import find_audio_files
from uniaudio.errors import UserError

RATE = 16000


def voice(seconds=1.0, hertz=220, seed=0):
    """A harmonic sound with a moving loudness, int16."""
    time = np.arange(round(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 12))
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (3000 * tones * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time)) + 30 * noise).astype(np.int16)


def augmented(samples, *steps, seed=1):
    parsed = tuple(AugmentStep.model_validate(step) for step in steps)
    return Augmenter(parsed, "test").augment(samples, random.Random(seed))


def decibels(wave):
    return 10 * np.log10(np.mean(np.asarray(wave, float) ** 2))


def band_power(wave, low, high):
    spectrum = np.abs(np.fft.rfft(wave.astype(float))) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
    return 10 * np.log10(spectrum[(hertz >= low) & (hertz < high)].sum() + 1e-9)


def peak_hertz(wave):
    return np.fft.rfftfreq(len(wave), 1 / RATE)[np.argmax(np.abs(np.fft.rfft(wave.astype(float))))]


def correlation(one, other):
    return float(np.corrcoef(one.astype(float), other.astype(float))[0, 1])


@pytest.mark.parametrize("db", [-12.0, 6.0])
def test_gain(db):
    clip = voice() // 4
    assert decibels(augmented(clip, {"gain": {"db": (db, db)}})) - decibels(clip) == pytest.approx(
        db, abs=0.05
    )


@pytest.mark.parametrize("kind", ["white", "pink", "brown"])
@pytest.mark.parametrize("snr", [0.0, 15.0])
def test_noise_has_the_ratio_that_is_set(kind, snr):
    clip = voice(2.0) // 4
    noisy = augmented(clip, {"noise": {"snr_db": (snr, snr), "kind": kind}})
    assert decibels(clip) - decibels(noisy.astype(int) - clip) == pytest.approx(snr, abs=0.1)


def test_noises_fall_with_frequency_as_their_names_say():
    clip = voice(4.0) // 8
    falls = {}
    for kind in ("white", "pink", "brown"):
        noise = augmented(clip, {"noise": {"snr_db": (-10, -10), "kind": kind}}).astype(int) - clip
        falls[kind] = band_power(noise, 500, 1000) - band_power(noise, 2000, 4000)  # four times the width
    assert falls["white"] == pytest.approx(-6, abs=0.7)
    assert falls["pink"] == pytest.approx(0, abs=0.7)
    assert falls["brown"] == pytest.approx(6, abs=0.7)


def test_noise_from_files(tmp_path):
    for n in range(2):
        soundfile.write(tmp_path / f"{n}.wav", voice(0.3, 1000 + 500 * n), RATE)
    clip = voice(2.0) // 4
    step = {"noise": {"snr_db": (10, 10), "files": str(tmp_path)}}
    noisy = augmented(clip, step)
    assert decibels(clip) - decibels(noisy.astype(int) - clip) == pytest.approx(10, abs=0.1)
    assert len({augmented(clip, step, seed=s).tobytes() for s in range(8)}) == 8
    with pytest.raises(UserError, match=r"test: files: there is no audio in"):
        augmented(clip, {"noise": {"snr_db": (10, 10), "files": str(tmp_path / "none")}})


def test_reverberation_keeps_level_and_place_and_rings_on(tmp_path):
    clip = np.concatenate([voice(0.3), np.zeros(RATE, np.int16)])
    wet = augmented(clip, {"reverb": {"rt60": (0.6, 0.6)}})
    assert len(wet) == len(clip)
    assert decibels(wet) == pytest.approx(decibels(clip), abs=0.1)
    after = [decibels(wet[int(t * RATE) : int((t + 0.05) * RATE)] + 1e-3) for t in (0.35, 0.65)]
    assert after[0] - after[1] == pytest.approx(30, abs=8)  # half of rt60 is 30 dB
    response = np.zeros(800)
    response[400] = 0.5  # a pure delay, as in a recording that begins before the sound
    soundfile.write(tmp_path / "rir.wav", response, RATE)
    assert np.abs(augmented(clip, {"reverb": {"files": str(tmp_path)}}).astype(int) - clip).max() <= 2


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_moves_length_and_pitch(factor):
    clip = (8000 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)).astype(np.int16)
    fast = augmented(clip, {"speed": {"factor": (factor, factor)}})
    assert len(fast) == pytest.approx(RATE / factor, abs=2)
    assert peak_hertz(fast) == pytest.approx(1000 * factor, abs=2)


def test_bands():
    noise = (3000 * np.random.default_rng(0).standard_normal(RATE)).astype(np.int16)
    low = augmented(noise, {"resample": {"rate": (8000, 8000)}})
    assert band_power(noise, 4500, 8000) - band_power(low, 4500, 8000) > 40
    assert band_power(noise, 0, 3500) - band_power(low, 0, 3500) == pytest.approx(0, abs=0.2)
    band = augmented(noise, {"band": {"low_hz": (300, 300), "high_hz": (3400, 3400)}})
    assert band_power(noise, 600, 2500) - band_power(band, 600, 2500) == pytest.approx(0, abs=0.3)
    assert band_power(noise, 20, 100) - band_power(band, 20, 100) > 20
    assert band_power(noise, 6000, 8000) - band_power(band, 6000, 8000) > 20


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus", "mulaw"])
def test_codecs_change_the_clip_but_keep_its_place(kind):
    clip = voice(1.5)
    coded = augmented(clip, {"codec": {"kind": kind, "quality": (0.8, 0.8)}})
    assert len(coded) == len(clip)
    assert correlation(coded, clip) > 0.9
    assert not np.array_equal(coded, clip)


def test_clipping():
    clip = voice()
    cut = augmented(clip, {"clip": {"share": (0.25, 0.25)}})
    assert np.abs(cut).max() == pytest.approx(np.abs(clip.astype(int)).max() * 0.25, abs=1)


def test_probability():
    clip = voice(0.2)
    step = {"gain": {"db": (-6, -6), "p": 0.25}}
    changed = sum(not np.array_equal(augmented(clip, step, seed=s), clip) for s in range(400))
    assert 70 <= changed <= 130


STEPS = st.lists(
    st.sampled_from(
        [
            {"gain": {"db": (-20, 20)}},
            {"noise": {"snr_db": (-5, 30)}},
            {"noise": {"snr_db": (0, 5), "kind": "brown"}},
            {"reverb": {}},
            {"speed": {"factor": (0.5, 2.0)}},
            {"resample": {"rate": (2000, 16000)}},
            {"band": {"low_hz": (50, 400), "high_hz": (2000, 7000)}},
            {"codec": {"kind": ["mulaw", "mp3", "ogg"]}},
            {"clip": {"share": (0.1, 1.0)}},
        ]
    ),
    max_size=4,
)


@settings(max_examples=40)
@given(
    steps=STEPS,
    count=st.integers(160, 20000),
    level=st.sampled_from([0, 1, 3000, 32767]),
    seed=st.integers(0, 99),
)
def test_any_chain_gives_a_clip_and_the_same_one_again(steps, count, level, seed):
    clip = (level * np.sin(np.arange(count) / 5)).astype(np.int16)
    random.seed(seed)
    once = augmented(clip, *steps, seed=seed)
    np.random.seed(seed + 1)
    random.seed(seed + 1)  # global generators have no say
    assert np.array_equal(augmented(clip, *steps, seed=seed), once)
    assert once.dtype == np.int16
    assert len(once) > 0
    if not any("speed" in step for step in steps):
        assert len(once) == count
    chain = Augmenter(tuple(map(AugmentStep.model_validate, steps)), "test")
    assert len(once) <= count * chain.longest_stretch + 2 ** len(steps)  # each change rounds to whole samples


@pytest.mark.parametrize(
    ("steps", "stretch"),
    [
        ([], 1.0),
        ([{"gain": {"db": (0, 3)}}, {"spec_augment": {}}], 1.0),
        ([{"speed": {"factor": (0.8, 1.2)}}], 1.25),
        ([{"speed": {"factor": (1.25, 2)}}], 0.8),
        ([{"speed": {"factor": (1.25, 2), "p": 0.5}}], 1.0),
        ([{"speed": {"factor": (0.5, 1), "p": 0.1}}, {"speed": {"factor": (0.8, 1)}}], 2.5),
    ],
)
def test_the_longest_clip_that_a_chain_can_make(steps, stretch):
    chain = Augmenter(tuple(map(AugmentStep.model_validate, steps)), "test")
    assert chain.longest_stretch == pytest.approx(stretch)


@pytest.mark.parametrize(
    ("steps", "stretch"),
    [
        ([], 1.0),
        ([{"gain": {"db": (0, 3)}}, {"spec_augment": {}}], 1.0),
        ([{"speed": {"factor": (0.8, 0.8)}}], 1.25),
        ([{"speed": {"factor": (0.8, 1.2)}}], math.log(1.5) / 0.4),
        ([{"speed": {"factor": (0.5, 1), "p": 0.25}}], 0.75 + 0.25 * 2 * math.log(2)),
        ([{"speed": {"factor": (0.5, 0.5), "p": 0.5}}, {"speed": {"factor": (0.8, 0.8)}}], 1.5 * 1.25),
    ],
)
def test_the_expected_length_after_a_chain(steps, stretch):
    chain = Augmenter(tuple(map(AugmentStep.model_validate, steps)), "test")
    assert chain.mean_stretch == pytest.approx(stretch)
    assert chain.mean_stretch <= chain.longest_stretch * (1 + 1e-12)


def test_the_expected_length_is_the_mean_of_those_that_are_drawn():
    chain = Augmenter((AugmentStep.model_validate({"speed": {"factor": (0.5, 2), "p": 0.5}}),), "test")
    rng, clip = random.Random(0), np.zeros(1600, np.int16)
    lengths = [len(chain.augment(clip, rng)) / 1600 for _ in range(2000)]
    assert np.mean(lengths) == pytest.approx(chain.mean_stretch, rel=0.02)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({}, "name exactly one transform per step, found none"),
        ({"gain": {"db": (0, 1)}, "clip": {"share": (0.5, 1)}}, "found gain, clip"),
        ({"gain": {"db": (3, 1)}}, "the range must increase, got 3 to 1"),
        ({"gian": {"db": (0, 1)}}, "did you mean 'gain'"),
        ({"speed": {"factor": (0.1, 1)}}, "factor must stay between 0.5 and 2"),
        ({"band": {"low_hz": (100, 4000), "high_hz": (3000, 5000)}}, "in ranges that do not overlap"),
        ({"codec": {"kind": "amr"}}, "kind"),
        ({"noise": {"snr_db": (0, 1), "p": 0}}, "p: input should be greater than 0"),
    ],
)
def test_mistakes_name_the_key(step, message):
    with pytest.raises(UserError) as mistake:
        build(AugmentStep, step, "augment")
    assert message in str(mistake.value)


def test_folders_of_noise_are_read_as_folders_of_clips(tmp_path):
    for name in ("one/a.WAV", "far/b.wav", "one/._a.wav", "one/readme.txt", "one/LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, voice(0.1), RATE, format="WAV")
    (tmp_path / "one" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "one" / "c.wav").symlink_to(tmp_path / "far" / "b.wav")
    step = AugmentStep.model_validate({"noise": {"snr_db": (5, 5), "files": str(tmp_path / "one")}})
    files, _ = find_audio_files(str(tmp_path / "one"))
    assert [str(file.relative_to(tmp_path / "one")) for file in files] == ["a.WAV", "c.wav", "link/b.wav"]
    assert Augmenter((step,), "test").list_notes() == [
        f"test: files: of {tmp_path / 'one'}, skipped: file with suffix .txt (1), file without suffix (1), "
        f"hidden file or folder (1)"
    ]
    for file in files:
        file.unlink()
    find_audio_files.cache_clear()
    with pytest.raises(
        UserError, match=r"there is no audio in \S+one; skipped: file with suffix \.txt \(1\)"
    ):
        Augmenter((step,), "test")
