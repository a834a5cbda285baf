"""Where commands write is tried before anything slow, and what they write has the user's permissions."""

import errno
import json
import os
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from uniaudio import outputs
from uniaudio.checks.cache_settings import describe_unusable_cache
from uniaudio.cli import main
from uniaudio.commands import check as checking
from uniaudio.commands import launch as launching
from uniaudio.commands import train as training
from uniaudio.commands import tune_batch
from uniaudio.config.decoder import MiniatureConfig
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.outputs import (
    apply_umask,
    check_output_file,
    check_output_folder,
    remove_on_failure,
    require_new_folder,
    write_json,
)
from uniaudio.tiny import text_lm
from uniaudio.tiny.run_assets import ensure_parts
from uniaudio.train.run_lock import hold_run_folder


@pytest.fixture
def read_only(monkeypatch):
    """A disk that takes no new files; the tests may run as root, whom permissions do not stop."""

    def refuse(file):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(outputs, "write_trial", refuse)


def places(tmp_path):
    (tmp_path / "file").write_text("kept")
    return {
        "under a file": tmp_path / "file" / "run",
        "a file": tmp_path / "file",
        "too long a name": tmp_path / ("n" * 300),
        "too long a name below": tmp_path / ("n" * 300) / "run",
        "no name": tmp_path / "a\0b",
        "somebody unknown": Path("~nobody-of-this-name/run"),
    }


KINDS = ("under a file", "a file", "too long a name", "too long a name below", "no name", "somebody unknown")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_cannot_be_written_is_one_sentence_and_nothing_changes(tmp_path, kind):
    folder = places(tmp_path)[kind]
    with pytest.raises(UserError) as refused:
        check_output_folder(folder, "output_dir")
    assert "output_dir" in str(refused.value)
    assert "cannot be written" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(UserError, match="cannot be"), hold_run_folder(folder):
        pass


def test_a_folder_that_another_process_tried_and_removed_is_made_again(tmp_path, monkeypatch):
    write_trial, removals = outputs.write_trial, []

    def write_after_removal(file):
        if not removals:
            removals.append(file.parent.rmdir())
        write_trial(file)

    monkeypatch.setattr(outputs, "write_trial", write_after_removal)
    assert check_output_folder(tmp_path / "new" / "run", "output_dir") == tmp_path / "new" / "run"
    assert removals == [None]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_folder_is_tried_before_anything_is_read(tone_run, tmp_path, kind, monkeypatch):
    run = load_run(tone_run).model_copy(update={"output_dir": str(places(tmp_path)[kind])})
    for module, later in (
        (checking, "check_encoder_sizes"),
        (training, "load_stage_recipes"),
        (launching, "run_launcher"),
    ):
        monkeypatch.setattr(module, later, None)
    for attempt in (
        lambda: checking.check_run(run, Console(quiet=True)),
        lambda: training.run_training(run, None),
        lambda: training.run_training(run, "auto"),
        lambda: launching.launch_training("single", run, [], 1, launching.Machines()),
    ):
        with pytest.raises(UserError, match=r"^output_dir: .* cannot be written \("):
            attempt()


def test_a_run_folder_is_tried_before_the_largest_batch_is_searched(tone_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(tune_batch, "tune_overrides", None)
    with pytest.raises(SystemExit) as left:
        main(["train", str(tone_run), f"output_dir={tmp_path}/file/run", "--tune-batch"])
    assert left.value.code == 2
    assert f"output_dir: {tmp_path}/file/run cannot be written" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_named_before_anything_slow(tone_run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(text_lm, "train_text_lm", None)
    for write in (lambda: text_lm.build_miniature_decoder(MiniatureConfig(), []), ensure_parts):
        with pytest.raises(
            UserError, match=r"^UNIAUDIO_CACHE: .*/file/cache/miniature.* cannot be written \("
        ):
            write()
    cached = ["encoders.whisper.train=frozen", "encoders.whisper.cache=true"]
    for overrides in (cached, ["decoder={miniature: {}}"]):
        (sentence,) = describe_unusable_cache(load_run(tone_run, overrides))
        assert sentence.startswith(f"UNIAUDIO_CACHE: {tmp_path}/file/cache cannot be written (")
    assert describe_unusable_cache(load_run(tone_run)) == []
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    assert describe_unusable_cache(load_run(tone_run, cached)) == []


def test_a_file_is_tried_too_and_one_that_exists_stays(tmp_path, read_only):
    with pytest.raises(UserError, match="Read-only file system"):
        check_output_folder(tmp_path / "new", "--out")
    with pytest.raises(UserError, match="Read-only file system"):
        check_output_file(tmp_path / "new" / "scores.json", "--out")
    with pytest.raises(UserError, match="is a folder; name a file"):
        check_output_file(tmp_path, "--out")
    assert not list(tmp_path.iterdir())


def test_a_result_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    file = tmp_path / "new" / "scores.json"
    write_json(file, {"score": 1})
    (tmp_path / "link.json").symlink_to(file)
    write_json(tmp_path / "link.json", {"score": 2})
    assert json.loads(file.read_text()) == {"score": 2}
    assert (tmp_path / "link.json").is_symlink()

    def fill_disk(self, text, **more):
        with self.open("w") as stream:
            stream.write(text[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        write_json(file, {"score": 3})
    assert json.loads(file.read_text()) == {"score": 2}
    assert [path.name for path in file.parent.iterdir()] == ["scores.json"]


def test_a_result_can_be_written_to_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        text = pool.submit((tmp_path / "pipe").read_text)
        write_json(tmp_path / "pipe", [1])
        assert json.loads(text.result()) == [1]
    assert (tmp_path / "pipe").is_fifo()


def test_what_can_be_written_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "old.json").write_text("{}")
    assert check_output_file(Path("~/old.json"), "--out") == tmp_path / "old.json"
    assert check_output_file(tmp_path / "a" / "b" / "new.json", "--out") == tmp_path / "a" / "b" / "new.json"
    assert check_output_folder(Path("~/runs/one"), "--out") == tmp_path / "runs" / "one"
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "{}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["probe", "nothing", "--data", "a=b", "--out"],
        ["eval", "nothing", "--out"],
        ["eval", "nothing", "--answers"],
        ["embed", "nothing", "clip.wav", "-o"],
        ["export", "nothing"],
        ["report", "nothing", "-o"],
        ["routes", "nothing", "-o"],
        ["forgetting", "nothing", "-o"],
        ["soup", "nothing", "-o"],
        ["add-task", "nothing", "recipe", "-o"],
        ["demo", "--out"],
        ["data", "pack", "nothing", "--out"],
        ["data", "stats", "nothing", "--out"],
        ["data", "stats", "nothing", "--plot"],
    ],
    ids=lambda arguments: " ".join(a for a in arguments if a not in ("nothing", "a=b", "recipe")),
)
def test_every_command_tries_its_output_before_it_looks_for_a_model(tmp_path, capsys, arguments):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as left:
        main([*arguments, str(tmp_path / "file" / "out")])
    assert left.value.code == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"uniaudio: output: {tmp_path}/file/out cannot be written")


def test_the_home_folder_may_be_written_as_a_tilde(tone_run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_run(tone_run, ["output_dir=~/run"]).output_dir == str(tmp_path / "run")


@pytest.mark.parametrize(("mask", "of_file", "of_folder"), [(0o022, 0o644, 0o755), (0o007, 0o660, 0o770)])
def test_weights_and_folders_get_the_users_permissions(tmp_path, mask, of_file, of_folder):
    before = os.umask(mask)
    try:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
        apply_umask(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) == of_file
    assert stat.S_IMODE(folder.stat().st_mode) == of_folder


@pytest.mark.parametrize("is_there", [False, True])
def test_what_a_failed_command_wrote_is_removed_and_nothing_else(tmp_path, is_there):
    folder = tmp_path / "out"
    if is_there:
        folder.mkdir()
        (folder / "run.lock").write_text("kept")

    def write_and_fail():
        (folder / "datasets").mkdir(parents=True)
        (folder / "datasets" / "a.yaml").write_text("a: 1")
        (folder / "link").symlink_to(tmp_path)
        raise UserError("a mistake")

    with pytest.raises(UserError, match="a mistake"), remove_on_failure(folder):
        write_and_fail()
    assert [path.name for path in folder.glob("*")] == (["run.lock"] if is_there else [])
    assert folder.exists() == is_there
    with remove_on_failure(folder):
        folder.mkdir(exist_ok=True)
    assert folder.exists()


def test_a_folder_that_is_to_be_new_may_be_empty_but_hold_nothing(tmp_path):
    require_new_folder(tmp_path, "--out")
    require_new_folder(tmp_path / "missing", "--out")
    (tmp_path / "a.txt").touch()
    for taken in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(UserError, match=f"{taken} is not empty; give --out a new folder"):
            require_new_folder(taken, "--out")
