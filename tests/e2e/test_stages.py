"""Runs of several stages and the means against forgetting, from the config to what is on disk."""

import inspect
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import tone
from helpers.run_folders import latest_checkpoint
from safetensors.torch import load_file

from uniaudio.build import regression_guard as guarding
from uniaudio.build.encoders import load_encoder
from uniaudio.build.model import load_model
from uniaudio.build.stage_data import StageData
from uniaudio.commands import train as training
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.held_probes import HeldScores
from uniaudio.model.lora import list_lora_modules
from uniaudio.ragged import Ragged
from uniaudio.train.checkpoint.folders import find_stage_ends
from uniaudio.train.checkpoint.reading import load_checkpoint
from uniaudio.train.signals import CONTINUE_LATER

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

STAGE = {"recipe": "tone_recipe", "steps": 2, "schedule": "constant", "budget": {"audio_seconds": 4}}
CPU = torch.device("cpu")


def run(tone_run, out, stages, *overrides, resume=None):
    """Train and return the exit code and the run's folder."""
    named = [STAGE | {"name": f"s{i}"} | stage for i, stage in enumerate(stages)]
    folder = tone_run.parent / out
    config = load_run(
        tone_run, [f"stages={json.dumps(named)}", f"output_dir={folder}", "data.log_ids=false", *overrides]
    )
    return training.run_training(config, resume), folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder, kind):
    return [row for row in metrics(folder) if row.get("event") == kind]


def at(folder, step):
    return str(folder / "checkpoints" / f"step-{step:06d}")


def audio():
    return Ragged.from_rows([torch.from_numpy(tone(0.8, 300, 0)), torch.from_numpy(tone(0.4, 900, 1))])


def frames(encoder):
    with torch.no_grad():
        return encoder.eval()(audio()).frames.values


def weights(spec):
    return {name: p.detach() for name, p in load_encoder(str(spec), CPU).named_parameters()}


def moved(spec, base):
    """How far the weights of an encoder are from those it started from."""
    start = weights(base)
    return sum((p - start[name]).square().sum().item() for name, p in weights(spec).items()) ** 0.5


def assert_same_end(one, other):
    """Two runs ended with the same tensors, averages included."""
    first, second = (latest_checkpoint(folder) for folder in (one, other))
    assert first.name == second.name
    names = [name for name in ("model.safetensors", "ema.safetensors") if (first / name).is_file()]
    for name in names:
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), key


@pytest.fixture
def built(monkeypatch):
    """The models that the next runs train, one for each stage."""
    models = []
    real = training.train_stages

    def spied(source, *rest):
        build = source.build

        def note():
            models.append(build())
            return models[-1]

        source.build = note
        return real(source, *rest)

    monkeypatch.setattr(training, "train_stages", spied)
    return models


# ---------------------------------------------------------------------- stages


def test_adapter_first_then_all(tone_run):
    """The encoder keeps every bit through the first stage; rates of the second go by expression."""
    stages = [{"train": {"^encoder": "frozen"}}, {"lr": {"whisper.layers\\.1": 5e-4}, "layer_decay": 0.5}]
    code, out = run(tone_run, "out", stages)
    assert code == 0
    start, first, last = weights(tone_run.parent / "whisper"), weights(at(out, 2)), weights(out)
    assert all(torch.equal(first[name], value) for name, value in start.items())
    changed = {name for name in start if not torch.equal(start[name], last[name])}
    assert "whisper.conv1.weight" in changed
    assert "whisper.layers.1.fc1.weight" in changed
    adapters = [load_checkpoint(latest_checkpoint(out).parent / f"step-00000{s}").model for s in (2, 4)]
    assert any(
        not torch.equal(adapters[0][n], adapters[1][n]) for n in adapters[0] if n.startswith("adapter")
    )
    rows = [row for row in metrics(out) if "lr" in row]
    assert [row["stage"] for row in rows] == ["s0", "s0", "s1", "s1"]
    assert rows[1]["lr"] == {"adapter": 1e-3}
    assert rows[3]["lr"] == pytest.approx(
        {
            "adapter": 1e-3,
            "whisper": 1e-3,  # the norm behind the layers
            "whisper[whisper.layers\\.1]": 5e-4,
            "whisper-1": 5e-4,
            "whisper-2": 2.5e-4,
        }
    )
    output = events(out, "stage")
    assert [row["stage"] for row in output] == ["s0", "s1"]
    assert output[0]["trained"] < output[1]["trained"]


LORA = {"train": {"^encoder": "frozen", "^encoder.*(q_proj|fc1)": "lora"}}


def test_low_rank_stage_then_merged(tone_run, built):
    """What is loaded from disk is the model that was trained, in each stage."""
    merged = {"merge_lora": True, "train": {"^encoder": "frozen", "^encoder.*layers\\.1": "full"}}
    again = {"train": {"^encoder": "frozen", "^encoder.*fc2": "lora"}}
    code, out = run(tone_run, "out", [LORA, merged, again])
    assert code == 0
    assert len(built) == 3
    assert [len(list_lora_modules(model)) for model in built] == [4, 0, 2]
    base = frames(load_encoder(str(tone_run.parent / "whisper"), CPU))
    for model, spec in zip(built, (at(out, 2), at(out, 4), str(out)), strict=True):
        trained = frames(model.encoder)
        assert (trained - base).abs().max() > 1e-4
        torch.testing.assert_close(frames(load_encoder(spec, CPU)), trained, atol=1e-6, rtol=0)
        loaded = load_model(spec, CPU).model
        torch.testing.assert_close(frames(loaded.encoder), trained, atol=1e-6, rtol=0)
        clips = Ragged(trained, torch.tensor([40, 20]))
        with torch.no_grad():
            torch.testing.assert_close(loaded.adapter(clips).values, model.adapter.eval()(clips).values)
    # the merge kept what stage one learned: weights of layer 0 are those of then, with their updates added
    first = load_checkpoint(latest_checkpoint(out).with_name("step-000002")).model
    name = "encoder.whisper.layers.0.fc1"
    a, b = (first[f"{name}.lora_{side}.default.weight"] for side in "AB")
    start = dict(load_encoder(str(tone_run.parent / "whisper"), CPU).named_parameters())
    wanted = start["whisper.layers.0.fc1.weight"].detach() + 2 * b @ a
    assert b.abs().max() > 0
    torch.testing.assert_close(weights(out)["whisper.layers.0.fc1.weight"], wanted, atol=1e-6, rtol=0)


def test_a_run_stopped_in_any_stage_goes_on_to_the_same_end(tone_run):
    stages = [LORA, {"merge_lora": True, "train": {"^encoder": "full"}}]
    code, whole = run(tone_run, "whole", stages)
    assert code == 0
    for steps in (1, 2, 3):  # in the first stage, at its end, in the second
        name = f"part{steps}"
        run(tone_run, name, stages, f"train.max_steps={steps}")
        code, part = run(tone_run, name, stages, resume="yes")
        assert code == 0
        assert_same_end(whole, part)


def test_mistakes_of_expressions_are_reported_before_the_first_step(tone_run):
    for stage, message in [
        (
            {"train": {"^encoder\\.wisper": "full"}},
            "stages.s1.train: '^encoder\\.wisper' matches no parameter",
        ),
        ({"train": {"layers": "full"}}, "set decoder.train, or begin the expression with ^encoder"),
    ]:
        with pytest.raises(UserError) as output:
            run(tone_run, "out", [stage | {"name": "s1"}])
        assert message in str(output.value)
        assert not (tone_run.parent / "out" / "checkpoints").exists()


# ---------------------------------------------------------------------- against forgetting


def test_averages_are_kept_and_can_be_loaded(tone_run):
    stage = {"steps": 4, "continual": {"ema": {"decay": 0.6}}}
    settings = ["train.save_every=1", "train.keep_last=9"]
    code, out = run(tone_run, "out", [stage], *settings)
    assert code == 0
    wanted = weights(tone_run.parent / "whisper")
    for step in (1, 2, 3, 4):
        now = weights(at(out, step))
        wanted = {name: 0.6 * value + 0.4 * now[name] for name, value in wanted.items()}
        for name, value in weights(at(out, step) + ":ema").items():
            torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=0)
    assert moved(f"{out}:ema", tone_run.parent / "whisper") < moved(out, tone_run.parent / "whisper")
    one, other = (load_model(spec, CPU).model for spec in (str(out), f"{out}:ema"))
    for part in ("encoder", "adapter"):
        pairs = zip(getattr(one, part).parameters(), getattr(other, part).parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
    code, plain = run(tone_run, "plain", [{"steps": 1}])
    with pytest.raises(UserError, match="contains no moving averages"):
        load_encoder(f"{plain}:ema", CPU)


@pytest.mark.parametrize("way", ["l2sp", "distill"])
def test_it_holds_the_encoder_where_the_stage_began(tone_run, way):
    stage = {"steps": 6, "schedule": "cosine"}
    _, free = run(tone_run, "free", [stage])
    settings = {"l2sp": {"weight": 1e4}, "distill": {"weight": 100.0}}[way]
    code, held = run(tone_run, "held", [stage | {"continual": {way: settings}}])
    assert code == 0
    base = tone_run.parent / "whisper"
    if way == "l2sp":
        assert moved(held, base) < 0.5 * moved(free, base)
        values = [row["auxiliary"]["l2sp"] for row in metrics(held) if "auxiliary" in row]
        assert values[0] == 0
        assert max(values) > 0
        # the penalty that was told is the one of the weights then
        last = moved(at(held, 4), base) ** 2 * 1e4 / 2
        assert values[4] == pytest.approx(last, rel=1e-3)
    start, one, other = (frames(load_encoder(str(spec), CPU)) for spec in (base, free, held))
    assert (other - start).square().sum() < 0.5 * (one - start).square().sum()


def test_all_ways_together_measure_from_the_start_of_their_stage_after_a_resume(tone_run):
    ways = {
        "l2sp": {"weight": 1.0},
        "ewc": {"weight": 10.0, "examples": 4},
        "distill": {"weight": 0.5, "distance": "cosine"},
        "ema": {"decay": 0.7},
    }
    stages = [{}, {"steps": 4, "continual": ways}]
    settings = ["train.save_every=2"]
    code, whole = run(tone_run, "whole", stages, *settings)
    assert code == 0
    fisher = load_file(whole / "fisher" / "s1.safetensors")
    names = {n for n in load_checkpoint(latest_checkpoint(whole)).model if n.startswith("encoder.")}
    assert set(fisher) == names
    assert all(torch.isfinite(t).all() and t.min() >= 0 for t in fisher.values())
    assert fisher["encoder.whisper.layers.0.fc1.weight"].max() > 0
    rows = [row for row in metrics(whole) if row.get("stage") == "s1" and "auxiliary" in row]
    assert len(rows) == 4
    assert [set(row["auxiliary"]) for row in rows] == [{"l2sp", "ewc"}] * 4
    assert (rows[0]["auxiliary"]["l2sp"], rows[0]["auxiliary"]["ewc"]) == (0, 0)
    assert rows[3]["auxiliary"]["ewc"] > 0
    run(tone_run, "part", stages, *settings, "train.max_steps=4")
    measured = (tone_run.parent / "part" / "fisher" / "s1.safetensors").stat().st_mtime_ns
    code, part = run(tone_run, "part", stages, *settings, resume="yes")
    assert code == 0
    assert (part / "fisher" / "s1.safetensors").stat().st_mtime_ns == measured
    assert_same_end(whole, part)


@pytest.mark.parametrize("way", ["l2sp", "distill", "ridge"])
def test_the_first_stage_measures_from_its_start_after_a_resume(tone_run, way):
    """It begins with no checkpoint; with ``ridge`` the adapter is held to the start that was fitted for it."""
    ways = {
        "l2sp": {"l2sp": {"weight": 100.0}},
        "distill": {"distill": {"weight": 10.0}},
        "ridge": {"l2sp": {"weight": 100.0, "on": "^adapter"}},
    }
    stages = [{"steps": 4, "continual": ways[way]}]
    settings = ["adapter={kind: pool, start: ridge, start_examples: 6, lr: 1e-3}"] if way == "ridge" else []
    code, whole = run(tone_run, "whole", stages, *settings)
    assert code == 0
    run(tone_run, "part", stages, *settings, "train.max_steps=2")
    code, part = run(tone_run, "part", stages, *settings, resume="yes")
    assert code == 0
    assert_same_end(whole, part)


def test_a_stage_that_is_ended_where_it_is_has_an_end(tone_run):
    """Its steps are lowered to those that are done; the next stage measures from there, also after a resume."""
    held = {"steps": 4, "continual": {"l2sp": {"weight": 1.0}}}
    run(tone_run, "part", [{"steps": 9}, held], "train.max_steps=3")
    run(tone_run, "part", [{"steps": 3}, held], "train.max_steps=5", "train.keep_last=1", resume="yes")
    folder = tone_run.parent / "part"
    assert find_stage_ends(folder)[0] == {0: folder / "checkpoints" / "step-000003"}
    code, part = run(tone_run, "part", [{"steps": 3}, held], "train.keep_last=1", resume="yes")
    assert code == 0
    code, whole = run(tone_run, "whole", [{"steps": 3}, held])
    assert_same_end(whole, part)


def state_durations(tone_run):
    """State the length of every clip in the manifest, so that nobody opens the files before they are decoded."""
    folder = tone_run.parent / "tones"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for row in rows:
        row["duration"] = soundfile.info(folder / row["audio"]).duration
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_starts_and_ewc_pass_over_clips_that_cannot_be_decoded(tone_run):
    folder = state_durations(tone_run)
    for broken in (0, 1, 2):
        (folder / f"{broken}.wav").write_bytes(b"broken")
    ewc = {"weight": 1.0, "recipe": "tone_recipe", "examples": 30}
    settings = ["adapter={kind: pool, start: ridge, start_examples: 30}", "data.max_skipped_share=0.5"]
    code, out = run(tone_run, "out", [{"continual": {"ewc": ewc}}], *settings)
    assert code == 0
    assert (out / "fisher" / "s0.safetensors").is_file()


def copy_tones(tone_run, name, is_broken):
    """Write a recipe ``old`` over a copy of the tones, some of whose clips are broken."""
    folder = tone_run.parent
    shutil.copytree(state_durations(tone_run), folder / name)
    for clip in (folder / name).glob("*.wav"):
        if is_broken(clip.name):
            clip.write_bytes(b"broken")
    card = yaml.safe_load((folder / "tones.yaml").read_text()) | {"dataset": name, "load": {"jsonl": name}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    recipe = {"recipe": "old", "train": [{"dataset": name, "template": "tone"}]}
    (folder / "old.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


@pytest.mark.parametrize("begins_again", [False, True])
def test_rows_that_ewc_passes_over_are_listed_once(tone_run, capsys, begins_again):
    copy_tones(tone_run, "before", lambda name: name in ("0.wav", "1.wav", "2.wav"))
    manifest = (tone_run.parent / "before" / "manifest.jsonl").read_text().splitlines()
    trained = {row["audio"] for row in map(json.loads, manifest) if row["split"] == "train"}
    broken = trained & {"0.wav", "1.wav", "2.wav"}
    assert broken
    ewc = {"weight": 1.0, "recipe": "old", "examples": 60}  # more than an epoch
    stages = [{"steps": 2}, {"steps": 1, "continual": {"ewc": ewc}}]
    code, out = run(tone_run, "out", stages)
    assert code == 0
    if begins_again:
        shutil.rmtree(out / "checkpoints" / "step-000003")
        assert run(tone_run, "out", stages, resume="yes")[0] == 0
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {row["row"] for row in listed} == broken
    assert len(listed) == len(broken)
    assert {(row["step"], row["source"], row["reason"]) for row in listed} == {(3, "before", "broken audio")}
    assert "dataset before: row" in capsys.readouterr().out


def test_old_data_without_a_clip_that_can_be_used_are_refused(tone_run, monkeypatch):
    """Fisher information of nothing would hold nothing, in silence."""
    copy_tones(tone_run, "gone", lambda name: True)
    ewc = {"weight": 1.0, "recipe": "old", "examples": 2}
    message = (
        r"ewc\.recipe: old: none of the clips tried of gone:tone, split train can be decoded \(0\.wav: broken"
    )
    with pytest.raises(UserError, match=message):
        run(tone_run, "out", [{"continual": {"ewc": ewc}}])
    monkeypatch.setattr(
        training, "check_stage_rows", lambda *given: None
    )  # as if the first rows could be used
    with pytest.raises(
        UserError, match=r"recipe old: none of 16 rows in a row can be used \(gone: .*; repair them$"
    ):
        run(tone_run, "out", [{"continual": {"ewc": ewc}}])


def test_what_ewc_measured_in_a_try_that_was_lost_does_not_count(tone_run):
    """A kill before the first checkpoint of a stage: its examples may be others in the next try."""
    stages = [[{}, {"continual": {"ewc": {"weight": 10.0, "examples": count}}}] for count in (2, 5)]
    code, whole = run(tone_run, "whole", stages[0])
    assert code == 0
    run(tone_run, "part", stages[1], "train.max_steps=3")
    part = tone_run.parent / "part"
    shutil.rmtree(part / "checkpoints" / "step-000003")
    code, part = run(tone_run, "part", stages[0], resume="yes")
    assert code == 0
    assert_same_end(whole, part)
    fishers = [load_file(folder / "fisher" / "s1.safetensors") for folder in (whole, part)]
    assert all(torch.equal(fishers[0][name], value) for name, value in fishers[1].items())


def test_ewc_in_the_first_stage_needs_an_old_recipe(tone_run):
    ewc = {"weight": 1.0, "examples": 2}
    with pytest.raises(
        UserError, match=r"stages\.s0\.continual\.ewc\.recipe: the first stage has no previous stage"
    ):
        run(tone_run, "out", [{"continual": {"ewc": ewc}}])
    code, out = run(tone_run, "named", [{"continual": {"ewc": ewc | {"recipe": "tone_recipe"}}}])
    assert code == 0
    assert (out / "fisher" / "s0.safetensors").is_file()


# ---------------------------------------------------------------------- mixture and guard


@pytest.fixture
def two_tasks(tone_run):
    """A recipe of two datasets with a task each, both with a validation set."""
    folder = tone_run.parent
    template = yaml.safe_load((folder / "tone.yaml").read_text())
    template |= {"task": "name", "prompts": ["user assistant <audio>"]}
    (folder / "name.yaml").write_text(yaml.safe_dump(template, sort_keys=False))
    card = yaml.safe_load((folder / "tones.yaml").read_text()) | {"dataset": "others"}
    (folder / "others.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    pairs = [{"dataset": "tones", "template": "tone"}, {"dataset": "others", "template": "name"}]
    recipe = {"recipe": "two", "train": pairs, "evaluate": pairs}
    (folder / "two.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tone_run


def test_the_mixture_moves_within_its_bounds_and_resumes_where_it_was(two_tasks):
    balance = {"every": 2, "bound": 6.0, "rate": 50.0, "examples": 4}
    stage = {"recipe": "two", "steps": 6, "balance": balance}
    settings = ["train.save_every=2", "data.log_ids=true"]
    code, whole = run(two_tasks, "whole", [stage], *settings)
    assert code == 0
    output = events(whole, "balance")
    assert [(row["step"], row["round"]) for row in output] == [(2, 1), (4, 2)]
    assert set(output[0]["factors"].values()) == {1.0}
    assert set(output[0]["losses"]) == {"tone", "name"}
    assert sorted(output[1]["factors"].values()) == pytest.approx([1 / 6, 6])
    assert all(1 / 6 <= f <= 6 for row in output for f in row["factors"].values())
    rows = [row for row in metrics(whole) if "ids" in row]
    drawn = [i.split("/")[0] for row in rows[4:6] for ids in row["ids"] for i in ids]
    more = max(output[1]["factors"], key=output[1]["factors"].get)
    name = next(n for n in ("tones", "others") if more.startswith(n))
    assert drawn.count(name) > 0.8 * len(drawn)  # 36 to 1
    before = [i.split("/")[0] for row in rows[:4] for ids in row["ids"] for i in ids]
    assert 0.3 < before.count(name) / len(before) < 0.7
    run(two_tasks, "part", [stage], *settings, "train.max_steps=5")  # within a round
    code, part = run(two_tasks, "part", [stage], *settings, resume="yes")
    assert code == 0
    assert [row["factors"] for row in events(part, "balance")] == [row["factors"] for row in output]
    assert_same_end(whole, part)


def mute_others(two_tasks, numbers):
    """Give the second dataset clips of its own, of which some cannot be decoded."""
    folder = two_tasks.parent
    shutil.copytree(folder / "tones", folder / "others")
    card = (folder / "others.yaml").read_text().replace("jsonl: tones", "jsonl: others")
    (folder / "others.yaml").write_text(card)
    for number in numbers:  # the header alone is read before a run begins
        samples = np.full(4800, np.nan)
        soundfile.write(folder / "others" / f"{number}.wav", samples, 16000, subtype="FLOAT")


def test_a_mixture_moves_without_a_validation_set_that_cannot_be_used(two_tasks, capsys):
    mute_others(two_tasks, range(30, 40))
    stage = {"recipe": "two", "steps": 4, "balance": {"every": 1, "examples": 4}}
    code, folder = run(two_tasks, "out", [stage])
    assert code == 0
    output = events(folder, "balance")
    assert [set(row["losses"]) for row in output] == [{"tone"}] * 3
    assert all(row["factors"]["others:name"] == 1 for row in output)
    printed = "".join(capsys.readouterr())
    reason = (
        "balance: others:name: no row of split 'test' can be used (non-finite samples); the set is left out"
    )
    assert printed.count(reason) == 3
    assert "tones:tone: no row" not in printed
    assert "no validation loss could be measured" not in printed
    assert metrics(folder)[-1]["event"] == "finished"


def test_a_mixture_without_any_validation_loss_stays_as_it_is(two_tasks, capsys, monkeypatch):
    mute_others(two_tasks, range(30, 40))
    recipe = yaml.safe_load((two_tasks.parent / "two.yaml").read_text())
    (two_tasks.parent / "two.yaml").write_text(yaml.safe_dump(recipe | {"evaluate": recipe["evaluate"][1:]}))
    monkeypatch.setattr(
        training, "check_stage_rows", lambda *given: None
    )  # as if the first rows could be used
    stage = {"recipe": "two", "steps": 3, "balance": {"every": 1, "examples": 4}}
    code, folder = run(two_tasks, "out", [stage])
    assert code == 0
    output = events(folder, "balance")
    assert [(row["losses"], set(row["factors"].values())) for row in output] == [({}, {1.0})] * 2
    sentence = "balance: no validation loss could be measured, so the mixture stays as it is"
    assert "".join(capsys.readouterr()).count(sentence) == 2


def test_a_label_that_is_markup_is_refused_before_the_first_step(tone_run):
    template = tone_run.parent / "tone.yaml"
    values = yaml.safe_load(template.read_text())
    template.write_text(yaml.safe_dump(values | {"labels": ["low", "high", "<|im_end|>"]}, sort_keys=False))
    message = r"^tones:tone: labels: special token in text .*; write the label differently$"
    with pytest.raises(UserError, match=message):
        run(tone_run, "out", [{}], "train.evaluate_every=1")
    assert not (tone_run.parent / "out" / "metrics.jsonl").exists()


def test_a_checkpoint_at_the_beginning_of_a_round_knows_its_data(two_tasks):
    stage = {"recipe": "two", "steps": 6, "balance": {"every": 2, "examples": 4}}
    run(two_tasks, "part", [stage], "train.max_steps=2")
    manifest = two_tasks.parent / "tones" / "manifest.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[2:]))
    with pytest.raises(UserError, match=r"dataset tones: .* is not what it was at the checkpoint"):
        run(two_tasks, "part", [stage], resume="yes")


def test_the_data_of_a_round_are_closed_before_those_of_the_next_are_opened(two_tasks, monkeypatch):
    """Both would have workers."""
    opened = []
    real = StageData.open_steps

    def spied(self, *given):
        assert {inspect.getgeneratorstate(steps) for steps in opened} <= {inspect.GEN_CLOSED}
        position, steps = real(self, *given)
        opened.append(steps)
        return position, steps

    monkeypatch.setattr(StageData, "open_steps", spied)
    code, _ = run(two_tasks, "out", [{"recipe": "two", "steps": 5, "balance": {"every": 2, "examples": 4}}])
    assert code == 0
    assert len(opened) == 3


def test_notes_on_the_data_of_a_stage_are_printed_once_and_not_in_every_round(two_tasks, capsys):
    balance = {"every": 1, "examples": 2}
    stage = {"recipe": "two", "steps": 3, "balance": balance}
    code, folder = run(two_tasks, "out", [stage], "data.workers=3", "data.streams=2")
    assert code == 0
    assert len(events(folder, "balance")) == 2
    assert capsys.readouterr().out.count("1 workers are not started") == 1


@pytest.mark.parametrize("action", ["alarm", "stop"])
def test_a_guarded_set_that_gets_worse_is_reported_or_ends_the_run(tone_run, action, capsys, monkeypatch):
    """The score stands in for a probe: how near the encoder's frames are to those of the start, 1 to 0."""
    start = frames(load_encoder(str(tone_run.parent / "whisper"), CPU))

    def scores(encoder, sets, seeds, kinds):
        assert kinds == ("knn",)
        apart = (frames(encoder) - start).norm() / start.norm()
        return HeldScores({one.name: {"knn": {"mean": max(0.0, 1 - float(apart))}} for one in sets}, {}, [])

    monkeypatch.setattr(guarding, "probe_held", scores)
    guard = f"guard={{sets: {{tones: tones}}, every: 2, max_drop: 20, action: {action}}}"
    if action == "stop":  # what hardly changes goes through
        mild = run(tone_run, "mild", [{"steps": 2}], guard, "encoders.whisper.lr=1e-7")
        assert (mild[0], [row["broken"] for row in events(mild[1], "guard")]) == (0, [[]])
    breaking = [guard, "encoders.whisper.lr=1.0", "train.max_loss_ratio=1e9", "train.save_every=100"]
    code, out = run(tone_run, "out", [{"steps": 4}], *breaking)
    assert json.loads((out / "guard.json").read_text())["scores"]["tones"] == pytest.approx(1, abs=1e-4)
    output = events(out, "guard")
    assert output[0]["step"] == 2
    (sentence,) = output[0]["broken"]
    assert sentence.startswith("tones fell from 1.000 to ")
    assert sentence.endswith("more than 20 points below its score at the start")
    assert "guard: tones fell from 1.000" in " ".join("".join(capsys.readouterr()).split())
    step = load_checkpoint(latest_checkpoint(out)).state["step"]
    if action == "alarm":
        assert (code, step, len(output)) == (0, 4, 2)
        assert not events(out, "stopped")
    else:
        assert (code, step, len(output)) == (CONTINUE_LATER, 2, 1) == (75, 2, 1)
        assert [row["step"] for row in events(out, "stopped")] == [2]


@pytest.mark.parametrize("action", ["alarm", "stop"])
def test_a_guarded_set_that_cannot_be_scored_any_more_is_reported_or_ends_the_run(
    tone_run, action, capsys, monkeypatch
):
    probed = []

    def scores(encoder, sets, seeds, kinds):
        probed.append(encoder)
        if len(probed) == 1:
            return HeldScores({"tones": {"knn": {"mean": 0.9}}}, {}, [])
        return HeldScores({}, {"tones": "embeddings of 40 of 40 clips are not finite"}, ["tones: a note"])

    monkeypatch.setattr(guarding, "probe_held", scores)
    guard = f"guard={{sets: {{tones: tones}}, every: 2, action: {action}}}"
    code, out = run(tone_run, "out", [{"steps": 4}], guard)
    steps = [2, 4] if action == "alarm" else [2]
    broken = ["tones cannot be scored: embeddings of 40 of 40 clips are not finite"]
    assert [(row["step"], row["broken"]) for row in events(out, "guard")] == [
        (step, broken) for step in steps
    ]
    assert code == (0 if action == "alarm" else CONTINUE_LATER)
    printed = "".join(capsys.readouterr())
    assert printed.count(f"guard: {broken[0]}") == printed.count("guard: tones: a note") == len(steps)


def test_a_run_does_not_begin_without_any_set_to_guard(tone_run, monkeypatch):
    monkeypatch.setattr(guarding, "probe_held", lambda *given: HeldScores({}, {"tones": "no clip"}, []))
    with pytest.raises(UserError, match=r"^guard: tones cannot be scored: no clip$"):
        run(tone_run, "out", [{}], "guard={sets: {tones: tones}, every: 2}")
    assert not (tone_run.parent / "out" / "metrics.jsonl").exists()
    name_one_class(tone_run.parent / "tones", tone_run.parent / "tones")
    with pytest.raises(UserError, match=r"^task tones: 'label' names 1 class, too few to probe$"):
        run(tone_run, "out", [{}], "guard={sets: {tones: tones}, every: 2}")


def name_one_class(source, folder):
    """Write a folder with the clips of another one, all of one class."""
    rows = [json.loads(line) for line in (source / "manifest.jsonl").read_text().splitlines()]
    folder.mkdir(exist_ok=True)
    lines = [row | {"audio": f"{source}/{row['audio']}", "label": "low"} for row in rows]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


def test_a_guarded_set_is_probed_as_the_run_began(tone_run, monkeypatch, capsys):
    monkeypatch.setattr(guarding, "SEEDS", 1)
    few = tone_run.parent / "few"  # the probes' own training takes most of the time
    few.mkdir()
    rows = [json.loads(line) for line in (tone_run.parent / "tones/manifest.jsonl").read_text().splitlines()]
    chosen = [row | {"audio": f"../tones/{row['audio']}"} for row in (*rows[:6], *rows[-4:])]
    (few / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    name_one_class(tone_run.parent / "tones", tone_run.parent / "one")
    guard = "guard={sets: {one: one, few: few}, every: 2, max_drop: 0, action: stop}"
    frozen = {"train": {"^encoder": "frozen"}}
    code, out = run(tone_run, "out", [frozen], guard)
    assert code == 0
    assert [row["broken"] for row in events(out, "guard")] == [[]]
    reference = json.loads((out / "guard.json").read_text())
    assert reference["probe"] == "knn"
    assert 0.5 <= reference["scores"]["few"] <= 1
    assert (list(reference["scores"]), reference["left_out"]) == (["few"], ["one"])
    left_out = "guard: one is left out: 'label' names 1 class, too few to probe"
    assert "".join(capsys.readouterr()).count(left_out) == 1
    assert run(tone_run, "out", [frozen | {"steps": 4}], guard, resume="yes")[0] == 0
    assert "guard: one is not guarded: it was left out when the run began" in "".join(capsys.readouterr())
    other = guard.replace("every", "probe: linear, every")
    with pytest.raises(UserError, match=r"guard\.probe is linear, but the run began with knn"):
        run(tone_run, "out", [frozen | {"steps": 6}], other, resume="yes")
