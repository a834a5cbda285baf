"""Feature caches that could never be read, refused by `uniaudio check` and before a run reads any weights."""

import json

import pytest
import torch
import yaml
from conftest import tiny_whisper

from uniaudio import cli
from uniaudio.build.encoders import build_encoder
from uniaudio.commands import train as training
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.model.cached_encoder import make_feature_stores
from uniaudio.train.engines.conflicts import refuse_what_shards_cannot

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

CACHED = ["encoders.whisper.train=frozen", "encoders.whisper.cache=true"]


def checked(tone_run, capsys, *overrides):
    """Run the command and return its exit code and what it said."""
    with pytest.raises(SystemExit) as left:
        cli.main(["check", str(tone_run), *overrides])
    said = capsys.readouterr()
    return left.value.code, " ".join((said.out + said.err).split())


def stages(*trained):
    one = {"recipe": "tone_recipe", "steps": 4, "budget": {"audio_seconds": 6}}
    return "stages=" + json.dumps([one | {"name": f"s{i}", "train": how} for i, how in enumerate(trained)])


@pytest.mark.parametrize("train", ["full", "lora"])
def test_an_encoder_that_every_stage_trains_has_no_cache(tone_run, capsys, train):
    code, said = checked(tone_run, capsys, f"encoders.whisper.train={train}", "encoders.whisper.cache=true")
    assert code == 2
    assert (
        "encoders.whisper.cache stores the frames of a frozen encoder, but every stage trains this one"
        in said
    )


def test_one_frozen_stage_is_enough(tone_run, capsys):
    last = {"^encoder.*layers\\.1": "full"}
    code, said = checked(tone_run, capsys, *CACHED, stages(last, {}, last))
    assert code == 0
    # 64 * 50 * 4 * 3600
    assert "encoders.whisper.cache: 46 MB on disk per hour of distinct audio" in said
    code, said = checked(tone_run, capsys, *CACHED, stages(last, last))
    assert code == 2
    code, said = checked(tone_run, capsys, "encoders.whisper.cache=true", stages({"^encoder": "frozen"}, {}))
    assert code == 0


@pytest.mark.parametrize(
    "step", [{"gain": {"db": [-3, 3]}}, {"spec_augment": {"time_masks": 1, "time_seconds": 0.1}}]
)
def test_augmented_clips_have_no_cache_in_a_stage_that_uses_it(tone_run, capsys, step):
    file = tone_run.parent / "tone_recipe.yaml"
    recipe = yaml.safe_load(file.read_text())
    recipe["train"][0]["augment"] = [step]
    (tone_run.parent / "augmented.yaml").write_text(yaml.safe_dump(recipe | {"recipe": "augmented"}))
    code, said = checked(tone_run, capsys, *CACHED, "stages.0.recipe=augmented")
    assert code == 2
    assert "encoders.whisper.cache: stage one augments the clips of tones:tone (recipe augmented)" in said
    late = json.loads(stages({}, {"^encoder": "full"}).removeprefix("stages="))
    late[1]["recipe"] = "augmented"
    code, said = checked(tone_run, capsys, *CACHED, f"stages={json.dumps(late)}")
    assert code == 0  # the stage that augments trains the encoder


def test_crops_in_a_stage_that_keeps_frames_are_named_with_their_size(tone_run, capsys):
    file = tone_run.parent / "tone_recipe.yaml"
    recipe = yaml.safe_load(file.read_text())
    recipe["train"][0]["long_clips"] = {"how": "crop", "seconds": 0.5}
    (tone_run.parent / "cropped.yaml").write_text(yaml.safe_dump(recipe | {"recipe": "cropped"}))
    long = json.loads(stages({}, {"^encoder": "full"}).removeprefix("stages="))
    for stage in long:
        stage |= {"recipe": "cropped", "steps": 3600}
    settings = [*CACHED, f"stages={json.dumps(long)}", "train.micro_batches=2"]
    code, said = checked(tone_run, capsys, *settings)
    assert code == 0
    # 12 s of audio a step are 12 hours, of 46.08 MB each; the second stage trains the encoder
    assert said.count("encoders.whisper.cache: stage s0 crops long clips of tones:tone at random places") == 1
    assert "up to 553 MB in this stage" in said
    assert "stage s1 crops" not in said
    code, said = checked(tone_run, capsys, *CACHED)
    assert "crops long clips" not in said


@pytest.mark.parametrize("kind", ["layers", "hconv"])
def test_operators_that_read_hidden_states_have_no_cache(tone_run, capsys, kind):
    tiny_whisper(seed=1).save_pretrained(tone_run.parent / "second")
    second = "encoders.second={path: second, train: frozen, cache: true}"
    code, said = checked(tone_run, capsys, second, f"fusion.kind={kind}")
    assert code == 2
    assert (
        f"encoders.second.cache stores only the output frames, but fusion.kind {kind} reads all "
        "hidden states" in said
    )


def test_what_no_sketch_shows_is_refused_before_the_first_step(tone_run, monkeypatch):
    """Encoders of the Hub and of runs are looked at when they are loaded."""
    monkeypatch.setattr("uniaudio.checks.stages.sketch_encoder", lambda config: None)
    monkeypatch.setattr(training, "train_stages", lambda *given: pytest.fail("it began"))
    with pytest.raises(UserError, match="but every stage trains this one"):
        training.run_training(load_run(tone_run, ["encoders.whisper.cache=true"]), None)


def test_an_encoder_that_reads_the_question_has_no_cache(tone_run):
    config = load_run(tone_run, CACHED)
    encoder = build_encoder(config)
    encoder.takes_prompts = True
    with pytest.raises(UserError, match=r"encoders.whisper.cache: this encoder reads the question"):
        make_feature_stores(encoder, config, None, torch.device("cpu"))


def test_zero3_must_run_every_module(tone_run):
    config = load_run(tone_run, CACHED)
    refuse_what_shards_cannot("fsdp2", config.stages[0], config)
    with pytest.raises(UserError, match="under zero3 all processes must run every module"):
        refuse_what_shards_cannot("zero3", config.stages[0], config)
