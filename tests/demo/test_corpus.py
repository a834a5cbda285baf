"""The generated corpus, listened to by numbers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from uniaudio.demo.corpus import QUICK, TEST_VOICES, TRAIN_VOICES, Sizes, build_corpus
from uniaudio.demo.sounds import EVENTS, INSTRUMENTS
from uniaudio.demo.speech import Voice, is_speech_available, speak

needs_speech = pytest.mark.skipif(not is_speech_available(), reason="espeakng-loader is not installed")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("corpus"), seed=3, sizes=QUICK)


def read(folder):
    """(facts, int16 samples) of every row of a set."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [(row, soundfile.read(folder / row["audio"], dtype="int16")[0]) for row in rows]


def test_no_clip_is_silent_clipped_or_of_another_format(corpus):
    for folder in corpus.values():
        for facts, samples in read(folder):
            info = soundfile.info(folder / facts["audio"])
            assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
            assert 0.2 < facts["duration"] < 3
            assert facts["duration"] == pytest.approx(len(samples) / 16_000, abs=1e-4)
            assert 3_000 < np.abs(samples.astype(int)).max() < 32_000
            assert np.sqrt(np.mean(samples.astype(float) ** 2)) > 50


def test_every_label_is_in_both_splits(corpus):
    for name, labels in (("sounds", EVENTS), ("instruments", INSTRUMENTS)):
        facts = [facts for facts, _ in read(corpus[name])]
        for split, count in (("train", QUICK.train), ("test", QUICK.test)):
            result = sorted(row["label"] for row in facts if row["split"] == split)
            assert result == sorted(list(labels) * count)


def test_classes_differ_in_spectrum_and_clips_within_a_class_differ(corpus):
    def centroid(samples):
        power = np.abs(np.fft.rfft(samples.astype(float))) ** 2
        return float((power * np.fft.rfftfreq(len(samples), 1 / 16_000)).sum() / power.sum())

    rows = read(corpus["sounds"])
    mean = {
        label: np.mean([centroid(samples) for facts, samples in rows if facts["label"] == label])
        for label in EVENTS
    }
    assert mean["engine"] < mean["dog"] < mean["rain"]
    assert mean["knock"] < mean["bell"] < mean["whistle"]
    engines = [samples.tobytes() for facts, samples in rows if facts["label"] == "engine"]
    assert len(set(engines)) == len(engines)


def test_loudness_does_not_tell_the_class(tmp_path):
    folder = build_corpus(tmp_path, sizes=Sizes(train=30, test=1, train_strings=1, test_strings=1))["sounds"]
    peaks = {}
    for facts, samples in read(folder):
        peaks.setdefault(facts["label"], []).append(np.abs(samples.astype(int)).max())
    means = [np.mean(values) for values in peaks.values()]
    spread = np.mean([np.std(values) for values in peaks.values()])
    assert np.std(means) < 0.5 * spread


def test_the_same_seed_gives_the_same_sounds_and_the_same_words(corpus, tmp_path):
    again = build_corpus(tmp_path / "again", seed=3, sizes=QUICK)
    other = build_corpus(tmp_path / "other", seed=4, sizes=QUICK)
    for name in ("sounds", "instruments"):
        first, second, third = (
            [samples.tobytes() for _, samples in read(each[name])] for each in (corpus, again, other)
        )
        assert first == second
        assert first != third
    for name in set(corpus) - {"sounds", "instruments"}:
        first, second, third = (
            [(facts.get("text"), facts["speaker"]) for facts, _ in read(each[name])]
            for each in (corpus, again, other)
        )
        assert first == second
        assert first != third


@needs_speech
@pytest.mark.slow
def test_speech_is_the_same_in_every_fresh_process(tmp_path):
    program = (
        "import sys; from pathlib import Path; from uniaudio.demo.corpus import QUICK, build_corpus; "
        "build_corpus(Path(sys.argv[1]), sizes=QUICK)"
    )
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], check=True)
    for name in ("digits", "strings"):
        one, two = ([samples.tobytes() for _, samples in read(tmp_path / run / name)] for run in ("a", "b"))
        assert one == two


@needs_speech
def test_test_strings_and_voices_are_never_trained(corpus):
    facts = [facts for facts, _ in read(corpus["strings"])]
    strings = {split: {row["text"] for row in facts if row["split"] == split} for split in ("train", "test")}
    assert not strings["train"] & strings["test"]
    assert all(2 <= len(text.split()) <= 4 for text in strings["train"] | strings["test"])
    for row in facts:
        voices = TRAIN_VOICES if row["split"] == "train" else TEST_VOICES
        assert row["speaker"].split("+")[1] in voices
    assert not set(TRAIN_VOICES) & set(TEST_VOICES)


@needs_speech
def test_all_voices_speak_and_sound_different():
    said = {name: speak("seven", Voice(f"en-us+{name}")) for name in (*TRAIN_VOICES, *TEST_VOICES)}
    for samples in said.values():
        assert 0.15 < len(samples) / 16_000 < 1.5
        assert 0.05 < np.abs(samples).max() <= 1
    assert len({samples.tobytes() for samples in said.values()}) == len(said)


@needs_speech
def test_faster_speech_is_shorter_and_more_words_are_longer():
    slow, fast = (speak("three four", Voice("en-us", rate=rate)) for rate in (120, 240))
    assert len(fast) < 0.7 * len(slow)
    assert len(speak("three", Voice("en-us", rate=120))) < 0.7 * len(slow)


@needs_speech
def test_an_unknown_voice_is_named():
    with pytest.raises(RuntimeError, match="no voice xx-none"):
        speak("one", Voice("xx-none"))


def test_without_espeak_the_corpus_has_its_synthetic_half(monkeypatch, tmp_path):
    monkeypatch.setattr("uniaudio.demo.corpus.is_speech_available", lambda: False)
    assert sorted(build_corpus(tmp_path, sizes=QUICK)) == ["instruments", "sounds"]
