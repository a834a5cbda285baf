"""Runs whose frozen encoders keep their frames on disk: the same losses, and nothing is encoded twice."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import soundfile
import torch
from conftest import tiny_whisper, tone
from safetensors.torch import load_file

from uniaudio import feature_cache
from uniaudio.build.encoders import build_encoder, load_encoder
from uniaudio.build.model import load_model
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.feature_cache import FeatureWriter
from uniaudio.model.cached_encoder import make_feature_stores
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

CPU = torch.device("cpu")
CACHED = ["encoders.whisper.train=frozen", "encoders.whisper.cache=true"]
LONG = ["stages.0.steps=16", "data.pool=2"]  # four clips each: twice through the 30


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "LEAST_FREE", 0)
    return tmp_path / "cache" / "features"


@pytest.fixture
def encoded(monkeypatch):
    """How many clips each encoder, by its first weight, has encoded."""
    counts = Counter()
    real = WhisperAudioEncoder.forward

    def forward(self, audio, **more):
        counts[float(self.whisper.conv1.weight.detach().flatten()[0])] += len(audio)
        return real(self, audio, **more)

    monkeypatch.setattr(WhisperAudioEncoder, "forward", forward)
    return counts


@pytest.fixture
def second(tone_run):
    tiny_whisper(seed=1).save_pretrained(tone_run.parent / "second")
    return "encoders.second={path: second, train: frozen, cache: true}"


def run(tone_run, out, *overrides, resume=None):
    folder = tone_run.parent / out
    assert run_training(load_run(tone_run, [f"output_dir={folder}", *overrides]), resume) == 0
    return rows_of(folder)


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def losses(rows):
    return [row["loss"] for row in rows]


def hits(rows):
    return [row["feature_cache_hits"] for row in rows]


def files(cache):
    return sorted(cache.glob("*/*/*.safetensors"))


# ---------------------------------------------------------------------- the same losses


def test_losses_are_those_without_a_cache_and_nothing_is_encoded_twice(tone_run, cache, encoded):
    plain = run(tone_run, "plain", "encoders.whisper.train=frozen", *LONG)
    assert "feature_cache_hits" not in plain[0]
    encoded.clear()
    first = run(tone_run, "first", *CACHED, *LONG)
    assert losses(first) == pytest.approx(losses(plain), rel=1e-6)
    assert 30 <= sum(encoded.values()) <= 40  # of 64: one that comes again at once may not be written yet
    assert len(files(cache)) == 30
    assert hits(first)[0] == 0
    assert hits(first)[-1] == 1
    encoded.clear()
    second = run(tone_run, "second", *CACHED, *LONG)
    assert losses(second) == pytest.approx(losses(plain), rel=1e-6)
    assert not encoded
    assert set(hits(second)) == {1.0}


def test_a_continued_run_goes_on_with_its_cache(tone_run, encoded):
    settings = [*CACHED, *LONG, "stages.0.schedule=constant"]
    whole = run(tone_run, "whole", *settings, "encoders.whisper.cache=false")
    run(tone_run, "part", *settings, "train.max_steps=5", "data.workers=1")
    encoded.clear()
    part = run(tone_run, "part", *settings, resume="yes")
    assert losses(part) == pytest.approx(losses(whole), rel=1e-6)
    assert [row["ids"] for row in part] == [row["ids"] for row in whole]
    assert sum(encoded.values()) < 30
    assert hits(part)[-1] == 1


def test_rounded_frames_are_the_same_in_every_epoch(tone_run, cache):
    plain = run(tone_run, "plain", "encoders.whisper.train=frozen", *LONG)
    rounded = [*CACHED, "encoders.whisper.cache=bfloat16", *LONG]
    first, second = run(tone_run, "first", *rounded), run(tone_run, "second", *rounded)
    assert losses(first) == pytest.approx(losses(second), rel=1e-6)
    assert losses(first) != pytest.approx(losses(plain), rel=1e-6)
    assert losses(first) == pytest.approx(losses(plain), rel=1e-2)
    assert {load_file(file)["frames"].dtype for file in files(cache)} == {torch.bfloat16}


FUSIONS = {
    "both frozen": ["fusion={kind: mix, start: random}"],
    "one trained": ["fusion={kind: gate}", "encoders.whisper={path: whisper, train: full, cache: false}"],
    "mowe": ["fusion.kind=mowe", "encoders.weak={path: second, train: frozen, cache: true, tail_frames: 5}"],
}


@pytest.mark.parametrize("name", FUSIONS)
def test_encoders_of_a_fused_one_keep_separate_frames(tone_run, second, encoded, name):
    settings = [*CACHED, second, *FUSIONS[name], *LONG]
    off = [f"encoders.{part}.cache=false" for part in load_run(tone_run, settings).encoders]
    plain = run(tone_run, "plain", *settings, *off)
    assert losses(run(tone_run, "first", *settings)) == pytest.approx(losses(plain), rel=1e-5)
    encoded.clear()
    rows = run(tone_run, "second", *settings)
    assert losses(rows) == pytest.approx(losses(plain), rel=1e-5)
    if name == "one trained":
        assert len(encoded) == len(rows)  # its first weight is another one in every step
        assert set(hits(rows)) == {1.0}
    else:
        assert not encoded
    if "choices" in plain[0]:
        assert rows[0]["choices"]["tone"] == pytest.approx(plain[0]["choices"]["tone"], abs=1e-5)


def test_an_encoder_that_a_stage_before_has_trained_has_other_frames(tone_run, cache, encoded):
    """Frozen, trained, frozen: no frames of the first stage are met in the third one, also not by a resumed run."""
    stage = {"recipe": "tone_recipe", "steps": 9, "schedule": "constant", "budget": {"audio_seconds": 6}}
    frozen = stage | {"train": {"^encoder": "frozen"}}
    named = json.dumps([frozen | {"name": "a"}, stage | {"name": "b"}, frozen | {"name": "c"}])
    settings = [f"stages={named}", "data.pool=2"]
    plain = run(tone_run, "plain", *settings)
    cached = [*settings, "encoders.whisper.cache=true"]
    rows = run(tone_run, "first", *cached)
    assert losses(rows) == pytest.approx(losses(plain), rel=1e-5)
    assert hits(rows[:1]) == hits(rows[18:19]) == [0]
    assert hits(rows[8:9]) == hits(rows[26:]) == [1]
    assert not any("feature_cache_hits" in row for row in rows[9:18])
    assert len(list(cache.iterdir())) == 2
    run(tone_run, "part", *cached, "train.max_steps=22")
    encoded.clear()
    part = run(tone_run, "part", *cached, resume="yes")
    assert losses(part) == pytest.approx(losses(plain), rel=1e-5)
    assert len(list(cache.iterdir())) == 2
    assert not encoded


def test_the_copy_that_distillation_listens_to_uses_the_cache_as_well(tone_run, second, encoded):
    settings = [
        *CACHED,
        second,
        *FUSIONS["both frozen"],
        "stages.0.continual.distill={weight: 1.0}",
        "stages.0.steps=6",
    ]
    plain = run(tone_run, "plain", *settings, "encoders.whisper.cache=false", "encoders.second.cache=false")
    run(tone_run, "first", *settings)
    encoded.clear()
    assert losses(run(tone_run, "second", *settings)) == pytest.approx(losses(plain), rel=1e-5)
    assert not encoded


# ---------------------------------------------------------------------- misses


def test_another_clip_is_a_miss_and_another_run_of_the_same_is_none(tone_run, cache, encoded):
    run(tone_run, "first", *CACHED, *LONG)
    before = files(cache)
    samples = tone(0.5, 440, 99)
    soundfile.write(tone_run.parent / "tones" / "3.wav", samples, 16000)
    encoded.clear()
    run(tone_run, "second", *CACHED, *LONG, "seed=7", "stages.0.lr={^adapter: 0.01}")
    new = [file for file in files(cache) if file not in before]
    assert len(new) == 1
    assert 1 <= sum(encoded.values()) <= 3
    encoder = build_encoder(load_run(tone_run))
    with torch.no_grad():
        wanted = encoder(Ragged.from_rows([torch.from_numpy(samples)])).frames.values
    torch.testing.assert_close(load_file(new[0])["frames"], wanted, atol=1e-5, rtol=0)


def test_weights_settings_and_precision_have_separate_frames(tone_run):
    def name(*overrides, change=0.0, precision=None):
        config = load_run(tone_run, [*CACHED, *overrides])
        encoder = build_encoder(config)
        encoder.whisper.layers[1].fc1.bias.data[3] += change
        return make_feature_stores(encoder, config, precision, CPU)["whisper"].name

    tiny_whisper(seed=1).save_pretrained(tone_run.parent / "second")
    names = [
        name(),
        name(change=1e-3),
        name("encoders.whisper.path=second"),
        name("encoders.whisper.tail_frames=3"),
        name("encoders.whisper.pad_to=2"),
        name("encoders.whisper.cache=bfloat16"),
        name("encoders.whisper.revision=other"),
        name(precision=torch.bfloat16),
    ]
    assert len(set(names)) == len(names)
    assert name() == names[0]


# ---------------------------------------------------------------------- a disk that will not


def test_a_full_disk_ends_the_writing_and_not_the_run(tone_run, cache, monkeypatch, capsys):
    monkeypatch.setattr(feature_cache, "LEAST_FREE", 2**60)
    rows = run(tone_run, "out", *CACHED, *LONG)
    assert hits(rows)[-1] == 0
    assert files(cache) == []
    message = capsys.readouterr().out
    assert message.count("the feature cache stores no more frames") == 1
    assert "less than 1073741824" in message


def test_a_writer_that_fails_takes_on_and_tells_once(tmp_path):
    class Refusing(SimpleNamespace):
        folder = tmp_path / "file"

    Refusing.folder.write_text("in the way")
    writer = FeatureWriter()
    for _ in range(20):  # more than may wait
        writer.put(Refusing(), ["ab"], Ragged(torch.zeros(2, 3), torch.tensor([2])))
    writer.close()
    assert "could not be written" in writer.explain_problem()
    assert writer.explain_problem() is None


# ---------------------------------------------------------------------- several processes


SWITCHES = {
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


def started(tone_run, out, engine=None):
    """Start the run in a process of its own, or under an engine in two."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if engine else []
    settings = [str(tone_run), *CACHED, *LONG, f"output_dir={tone_run.parent / out}"]
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "uniaudio.train", *settings],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | SWITCHES.get(engine, {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process, expect=0):
    said = process.communicate(timeout=400)[0]
    assert (process.returncode == 0) is (expect == 0), said[-3000:]
    return said


@pytest.mark.slow
def test_a_killed_run_leaves_a_cache_that_can_be_used(tone_run, cache):
    process = started(tone_run, "killed")
    last = time.monotonic() + 120
    while len(files(cache)) < 6:
        assert process.poll() is None
        assert time.monotonic() < last
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert len(files(cache)) < 30
    plain = run(tone_run, "plain", "encoders.whisper.train=frozen", *LONG)
    rows = run(tone_run, "next", *CACHED, *LONG)
    assert losses(rows) == pytest.approx(losses(plain), rel=1e-6)
    assert sum(hits(rows)[:7]) > 0  # in the first epoch: from the run that was killed
    assert len(files(cache)) == 30


@pytest.mark.slow
def test_two_ranks_and_a_run_beside_them_share_a_cache(tone_run, cache):
    processes = started(tone_run, "pair", "ddp"), started(tone_run, "alone")
    for process in processes:
        ended(process)
    plain = run(tone_run, "plain", "encoders.whisper.train=frozen", *LONG)
    for out in ("pair", "alone"):
        rows = rows_of(tone_run.parent / out)
        assert losses(rows) == pytest.approx(losses(plain), rel=1e-5)
        assert hits(rows)[-1] == 1
    again = run(tone_run, "again", *CACHED, *LONG)
    assert losses(again) == pytest.approx(losses(plain), rel=1e-6)
    assert set(hits(again)) == {1.0}
    assert len(files(cache)) == 30


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero2", "zero3"])
def test_ranks_that_miss_other_clips_stay_in_step_under_every_engine(tone_run, cache, engine):
    plain = run(tone_run, "plain", "encoders.whisper.train=frozen", *LONG)
    run(tone_run, "some", *CACHED, *LONG, "train.max_steps=3")
    process = started(tone_run, engine, engine)
    if engine == "zero3":
        assert "under zero3 all processes must run every module" in " ".join(ended(process, expect=2).split())
        return
    ended(process)
    rows = rows_of(tone_run.parent / engine)
    assert losses(rows) == pytest.approx(losses(plain), rel=1e-5)
    assert 0 < sum(hits(rows)) < len(rows)
    assert hits(rows)[-1] == 1
    assert len(files(cache)) == 30


# ---------------------------------------------------------------------- beside the steps


STARTS = [
    "fusion={kind: gate, start: wccn, start_examples: 9}",
    "adapter={kind: pool, start: ridge, start_examples: 6}",
]


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_the_start_of_a_fusion_reads_kept_frames_and_goes_on_exactly(tone_run, second, encoded, precision):
    settings = [*CACHED, second, *STARTS, "stages.0.schedule=constant", "stages.0.steps=4"]
    settings += [f"train.precision={precision}"]
    whole = run(tone_run, "whole", *settings)
    encoded.clear()
    run(tone_run, "part", *settings, "train.max_steps=2")
    assert not encoded  # neither by the starts nor by the steps
    part = run(tone_run, "part", *settings, resume="yes")
    assert losses(part) == losses(whole)


def test_a_fusion_that_its_start_would_be_lost_of_is_refused(tone_run, second):
    settings = [*CACHED, second, STARTS[0], 'stages.0.train={"^encoder.scales": frozen}']
    with pytest.raises(UserError, match=r"fusion\.start: wccn .* encoder\.scales.* is frozen"):
        run(tone_run, "run", *settings)


def test_probes_and_answers_read_kept_frames(tone_run, second, encoded):
    settings = [*CACHED, second, STARTS[0], "stages.0.steps=2"]
    run(tone_run, "run", *settings)
    clip = Ragged.from_rows([torch.arange(5000, dtype=torch.int16)])
    folder = str(tone_run.parent / "run")
    wanted = load_encoder(folder, CPU)(clip).frames.values
    encoded.clear()
    kept = load_encoder(folder, CPU, keep_frames=True)
    for _ in range(2):
        torch.testing.assert_close(kept(clip).frames.values, wanted, atol=1e-5, rtol=0)
    model = load_model(folder, CPU, keep_frames=True).model
    torch.testing.assert_close(model.encoder(clip).frames.values, wanted, atol=1e-5, rtol=0)
    assert sorted(encoded.values()) == [1, 1]  # each of the encoders once
