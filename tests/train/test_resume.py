"""What may change when a run goes on: nothing is written before everything is checked, and what changed is named."""

import json
import os
import re
import shutil
import stat
import tarfile

import pytest
import torch
from helpers.remote_model import give_decoder_code, save_remote_model
from helpers.run_folders import latest_checkpoint

from uniaudio.build.model import load_model
from uniaudio.commands.check import check_run
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.config.trust import Trust
from uniaudio.data.sources.file_fingerprints import hash_ends
from uniaudio.errors import UserError
from uniaudio.model.decoder_loading import load_decoder
from uniaudio.train.resume import Effect, SettingChange, compare_configs, is_finished, print_changes
from uniaudio.train.state import TrainState

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def train(tone_run, *overrides, resume=None):
    return run_training(load_run(tone_run, ["train.max_steps=4", "train.save_every=2", *overrides]), resume)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def events(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["event"] for row in rows if "event" in row]


@pytest.fixture
def begun_run(tone_run):
    """A run that stopped at step 4 of 8."""
    assert train(tone_run) == 0
    return tone_run.parent / "out"


REFUSED = {
    "seed=1": "seed: 0 -> 1",
    "encoders.whisper.train=frozen": "encoders.whisper.train: full -> frozen",
    "stages.0.budget.audio_seconds=8": "stages.0.budget.audio_seconds: 6.0 -> 8.0",
    "stages.0.steps=3": "stages.0.steps: 8 -> 3",
    "stages.0.name=two": "stages.0.name: one -> two",
    "data.pool=8": "data.pool: 16 -> 8",
    "train.micro_batches=4": "train.micro_batches: 2 -> 4",
    "decoder.train=lora": "decoder.train: frozen -> lora",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_refused_resume_names_what_changed_and_leaves_every_file_as_it_was(begun_run, tone_run, override):
    before = contents(begun_run)
    with pytest.raises(UserError) as refused:
        train(tone_run, "train.max_steps=8", override, resume="yes")
    assert REFUSED[override] in str(refused.value)
    assert str(latest_checkpoint(begun_run)) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert contents(begun_run) == before


def test_other_data_and_another_base_are_refused_before_anything_is_written(begun_run, tone_run):
    manifest = tone_run.parent / "tones" / "manifest.jsonl"
    whole = manifest.read_text()
    before = contents(begun_run)
    manifest.write_text("".join(whole.splitlines(keepends=True)[2:]))
    with pytest.raises(UserError, match=r"dataset tones: .* is not what it was at the checkpoint"):
        train(tone_run, "train.max_steps=8", resume="yes")
    assert contents(begun_run) == before
    manifest.write_text(whole)
    config = tone_run.parent / "qwen" / "config.json"
    stated = config.read_text()
    config.write_text(stated.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(UserError, match="was trained with the decoder"):
        train(tone_run, "train.max_steps=8", resume="yes")
    assert contents(begun_run) == before
    config.write_text(stated)
    for part, file in (
        ("encoder whisper", tone_run.parent / "whisper" / "preprocessor_config.json"),
        ("decoder", tone_run.parent / "qwen" / "tokenizer.json"),
    ):
        stated = file.read_bytes() if file.is_file() else None
        file.write_bytes((stated or b"{}") + b"\n")
        with pytest.raises(
            UserError, match=rf"was trained with other files of the {part} .*restore the folder"
        ):
            train(tone_run, "train.max_steps=8", resume="yes")
        assert contents(begun_run) == before
        if stated is None:
            file.unlink()
        else:
            file.write_bytes(stated)


def test_a_tar_that_was_edited_in_place_is_refused_before_anything_is_written(tone_run, capsys):
    folder = tone_run.parent
    tar = folder / "tones.tar"
    with tarfile.open(tar, "w") as archive:
        for line in (folder / "tones" / "manifest.jsonl").read_text().splitlines():
            row = json.loads(line)
            (folder / "row.json").write_text(line)
            archive.add(folder / "tones" / row["audio"], row["audio"])
            archive.add(folder / "row.json", row["audio"].replace(".wav", ".json"))
    card = folder / "tones.yaml"
    card.write_text(card.read_text().replace("jsonl: tones", "webdataset: tones.tar"))
    assert train(tone_run) == 0
    run = folder / "out"
    (contents_of_files,) = json.loads((latest_checkpoint(run) / "state.json").read_text())["stream"][
        "contents"
    ].values()
    assert contents_of_files == [hash_ends(str(tar))]
    before, whole = contents(run), tar.read_bytes()
    tar.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])  # within a clip
    with pytest.raises(
        UserError, match=r"tones\.tar is not what it was at the checkpoint \(the first or last"
    ):
        train(tone_run, "train.max_steps=8", resume="yes")
    assert contents(run) == before
    tar.write_bytes(whole)
    os.utime(tar, (1_000_000_000, 1_000_000_000))
    notice = f"dataset tones: {tar} has been written since the checkpoint, or copied"
    assert train(tone_run, "train.max_steps=6", resume="yes") == 0
    assert notice in capsys.readouterr().out
    assert train(tone_run, "train.max_steps=8", resume="yes") == 0  # since the checkpoint at step 6
    assert notice not in capsys.readouterr().out


def test_other_code_of_a_model_is_printed_and_applies_from_here_on(tone_run, fresh_model_code, capsys):
    little = tone_run.parent / "little"
    save_remote_model(little)

    def go_on(steps, resume="yes"):
        model = ["encoders.whisper.path=little", "encoders.whisper.trust_remote_code=true"]
        config = load_run(tone_run, [*model, f"train.max_steps={steps}"], Trust(remote_code=True))
        assert run_training(config, resume) == 0
        return capsys.readouterr().err

    go_on(2, resume=None)
    code = little / "modeling_little.py"
    code.write_text(code.read_text().replace("self.line(input_values)", "self.line(input_values * 2)"))
    assert re.search(
        r"^the code of the encoder whisper \S*little has changed since \S*step-000002 was trained; the present code is "
        r"used$",
        go_on(4),
        re.MULTILINE,
    )
    assert "has changed" not in go_on(6)  # since step 4


def test_other_code_of_a_decoder_is_printed(tone_run, fresh_model_code, capsys):
    code = give_decoder_code(tone_run.parent / "qwen")

    def go_on(steps, resume="yes"):
        trusting = ["decoder.trust_remote_code=true", f"train.max_steps={steps}"]
        assert run_training(load_run(tone_run, trusting, Trust(remote_code=True)), resume) == 0
        return capsys.readouterr().err

    go_on(2, resume=None)
    code.write_text(code.read_text() + "\n# another version\n")
    printed = go_on(4)
    assert re.search(
        r"^the code of the decoder \S*qwen has changed since \S*step-000002 was trained; the present code is used$",
        printed,
        re.MULTILINE,
    )
    assert printed.count("has changed") == 1
    assert "has changed" not in go_on(6)


def test_a_finished_run_says_so_once_and_goes_on_with_more_steps(begun_run, tone_run, capsys, monkeypatch):
    before = contents(begun_run)
    with monkeypatch.context() as patched:
        patched.setattr("uniaudio.commands.train.build_model", None)  # no model is loaded for it
        assert train(tone_run, "data.workers=1", "train.log_every=3", resume="yes") == 0
        assert train(tone_run, resume="auto") == 0
        assert train(tone_run, "train.max_steps=3", resume="yes") == 0  # it is beyond that
    assert "already finished at step 4" in capsys.readouterr().out
    assert contents(begun_run) == before
    assert events(begun_run).count("finished") == 1
    with pytest.raises(
        UserError, match=r"finished run.*encoders.whisper.lr: 0.001 -> 0.01; raise train.max_steps to"
    ):
        train(tone_run, "encoders.whisper.lr=0.01", resume="yes")
    assert contents(begun_run) == before
    assert train(tone_run, "train.max_steps=6", "encoders.whisper.lr=0.01", resume="yes") == 0
    assert (
        "from step 5 on with another setting: encoders.whisper.lr: 0.001 -> 0.01" in capsys.readouterr().out
    )
    assert events(begun_run)[-1] == "finished"
    assert events(begun_run).count("finished") == 1
    assert latest_checkpoint(begun_run).name == "step-000006"
    assert "lr: 0.01" in (begun_run / "config.yaml").read_text()


def test_a_stage_that_is_shortened_to_what_is_done_leaves_nothing_to_do(begun_run, tone_run):
    before = contents(begun_run)
    with pytest.raises(UserError) as refused:
        train(tone_run, "train.max_steps=null", "stages.0.steps=4", "train.clip=2", resume="yes")
    assert str(refused.value) == (
        "nothing is left to do: with train.clip: 1.0 -> 2.0; stages.0.steps: 8 -> 4, the run is finished at step 4, "
        f"which is done ({latest_checkpoint(begun_run)}); raise stages.0.steps to continue, or restore the settings"
    )
    with pytest.raises(UserError, match=r"raise stages.0.steps and train.max_steps to continue"):
        train(tone_run, "train.max_steps=4", "stages.0.steps=4", resume="yes")
    with pytest.raises(UserError, match=r"have no effect: stages.0.steps: 8 -> 9; raise train.max_steps to"):
        train(tone_run, "train.max_steps=4", "stages.0.steps=9", resume="yes")
    assert contents(begun_run) == before


def test_everything_in_a_run_folder_has_the_users_permissions(begun_run):
    mask = os.umask(0)
    os.umask(mask)
    for path in begun_run.rglob("*"):
        usual = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == usual & ~mask, path


def test_a_run_killed_before_it_said_that_it_is_finished_says_it_when_it_is_resumed(begun_run, tone_run):
    metrics = begun_run / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.open() if '"finished"' not in line))
    assert train(tone_run, resume="yes") == 0
    assert events(begun_run)[-1] == "finished"
    assert events(begun_run).count("finished") == 1


def test_a_run_whose_files_were_moved_goes_on(begun_run, tone_run):
    """Paths are compared by what they lead to."""
    moved = tone_run.parent / "elsewhere"
    moved.mkdir()
    for name in ("whisper", "qwen", "tones", "out", "run.yaml"):
        shutil.move(tone_run.parent / name, moved / name)
    for file in list(tone_run.parent.glob("*.yaml")):
        shutil.move(file, moved / file.name)
    out = moved / "out"
    assert train(moved / "run.yaml", f"output_dir={out}", "train.max_steps=6", resume="yes") == 0
    assert latest_checkpoint(out).name == "step-000006"


def changes(tone_run, position, before, now):
    return {
        change.key: change.effect
        for change in compare_configs(load_run(tone_run, before), load_run(tone_run, now), position)
    }


def stage(name, **settings):
    return {"name": name, "recipe": "tone_recipe", "steps": 4, "budget": {"audio_seconds": 6}} | settings


def stages(*records):
    return [f"stages={json.dumps(records)}"]


def test_what_a_change_does_depends_on_where_the_run_is(tone_run):
    two = stages(stage("a"), stage("b"))
    later = stages(stage("a"), stage("b", steps=9, train={"^adapter": "frozen"}), stage("c"))
    lower = stages(stage("a", lr={"^adapter": 1e-4}), stage("b"))
    assert changes(tone_run, TrainState(stage=0, stage_step=2), two, later) == {}  # b and c have not begun
    assert changes(tone_run, TrainState(stage=1, stage_step=2), two, later) == {
        "stages.1.steps": Effect.FROM_HERE_ON,
        "stages.1.train.^adapter": Effect.REFUSED,
    }
    assert changes(tone_run, TrainState(stage=0), two, lower) == {
        "stages.0.lr.^adapter": Effect.FROM_HERE_ON,
    }
    assert changes(tone_run, TrainState(stage=1), two, lower) == {"stages.0.lr.^adapter": Effect.REFUSED}
    one, less = (stages(stage("a", steps=None, hours=hours)) for hours in (2.0, 1.0))
    assert changes(tone_run, TrainState(stage_seconds=3600.0), one, less) == {
        "stages.0.hours": Effect.FROM_HERE_ON
    }
    assert changes(tone_run, TrainState(stage_seconds=3601.0), one, less) == {
        "stages.0.hours": Effect.REFUSED
    }
    ewc = {"weight": 1.0, "recipe": "tone_recipe"}
    with_ewc = stages(stage("a", continual={"ewc": ewc}))
    more = stages(stage("a", continual={"ewc": ewc | {"examples": 9}}))
    assert changes(tone_run, TrainState(), stages(stage("a")), with_ewc) == {
        "stages.0.continual.ewc": Effect.FROM_HERE_ON,
    }
    assert changes(tone_run, TrainState(), with_ewc, more) == {
        "stages.0.continual.ewc.examples": Effect.REFUSED  # what was measured is kept
    }


def test_changes_are_printed_by_the_main_process_alone(capsys, monkeypatch):
    change = SettingChange("train.clip", 1.0, 2.0, Effect.FROM_HERE_ON)
    print_changes([change], 4)
    assert capsys.readouterr().out == "from step 5 on with another setting: train.clip: 1.0 -> 2.0\n"
    monkeypatch.setattr("uniaudio.train.resume.is_main", lambda: False)
    print_changes([change], 4)
    assert capsys.readouterr().out == ""


def test_what_does_not_alter_the_run_is_no_change(tone_run):
    free = [
        "output_dir=x",
        "data.workers=7",
        "train.log_every=3",
        "train.max_steps=99",
        "evaluate.batch_seconds=9",
        "encoders.whisper.recompute=true",
    ]
    assert changes(tone_run, TrainState(), [], free) == {}


def test_a_run_is_finished_at_the_end_of_its_last_stage_or_at_its_cap(tone_run):
    hours = load_run(tone_run, stages(stage("a"), stage("b", steps=None, hours=1)))
    assert not is_finished(TrainState(step=4, stage_step=4), hours)
    assert not is_finished(TrainState(step=9, stage=1, stage_step=5, stage_seconds=3599), hours)
    assert is_finished(TrainState(step=9, stage=1, stage_step=5, stage_seconds=3600), hours)
    capped = load_run(tone_run, ["train.max_steps=3"])
    assert is_finished(TrainState(step=3, stage_step=3), capped)
    assert not is_finished(TrainState(step=2, stage_step=2), capped)


def test_another_cap_is_a_change_where_the_rate_decays_towards_it(tone_run):
    """Steps of the stage: 8; a cap beyond them moves nothing."""
    position = TrainState(step=4, stage_step=4)

    def list_changes(before, now, *overrides):
        configs = [
            load_run(tone_run, ["stages.0.steps=8", f"train.max_steps={cap}", *overrides])
            for cap in (before, now)
        ]
        return [(str(change), change.effect) for change in compare_configs(*configs, position)]

    assert list_changes(4, 6) == [("train.max_steps: 4 -> 6", Effect.FROM_HERE_ON)]
    assert list_changes(6, "null") == [("train.max_steps: 6 -> null", Effect.FROM_HERE_ON)]
    assert list_changes("null", 6) == [("train.max_steps: null -> 6", Effect.FROM_HERE_ON)]
    assert list_changes(8, "null") == list_changes(9, 10) == []
    assert list_changes(6, 4) == []  # finished
    assert list_changes(4, 6, "stages.0.schedule=constant") == []


def test_a_decoder_of_random_weights_is_the_same_after_loading(tone_run, capsys):
    random_lm = f"decoder.path=random:{tone_run.parent / 'qwen'}"
    check_run(load_run(tone_run, [random_lm]))
    assert "not a folder here" not in capsys.readouterr().out
    assert run_training(load_run(tone_run, [random_lm, "seed=3", "train.max_steps=1"]), None) == 0
    loaded = load_model(str(tone_run.parent / "out"))
    drawn = load_decoder(loaded.config.decoder.path, seed=3)
    for one, other in zip(loaded.model.decoder.parameters(), drawn.parameters(), strict=True):
        assert torch.equal(one, other)
