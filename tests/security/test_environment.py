"""Values of environment variables: read for whoever is at this machine, kept out of everything that is shown around."""

import pytest
import torch
import yaml

from uniaudio import errors
from uniaudio.cli import main
from uniaudio.config.path_variables import expand_path
from uniaudio.config.run_files import load_run
from uniaudio.errors import RowError, UserError, escape_text
from uniaudio.train.checkpoint.writing import Snapshot, save_checkpoint

SECRET = "s3cret-t0ken"


@pytest.fixture(autouse=True)
def hidden(monkeypatch):
    monkeypatch.setattr(errors, "HIDDEN", {})


def run_command(arguments, capsys):
    """Run a command line; return its exit code and all that it printed."""
    capsys.readouterr()
    code = 0
    try:
        main(arguments)
    except SystemExit as left:
        code = left.code or 0
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def folder_named_by_variable(tone_run, monkeypatch):
    """Let card, encoder and decoder of a run stand in a folder whose name only the environment knows."""
    home = tone_run.parent / SECRET
    home.mkdir()
    for name in ("tones", "whisper", "qwen"):
        (tone_run.parent / name).rename(home / name)
    monkeypatch.setenv("PRIVATE_PLACE", str(home))
    card = yaml.safe_load((tone_run.parent / "tones.yaml").read_text())
    card["load"] = {"jsonl": "${env:PRIVATE_PLACE}/tones"}
    (tone_run.parent / "tones.yaml").write_text(yaml.safe_dump(card))
    config = yaml.safe_load(tone_run.read_text())
    config["encoders"]["whisper"]["path"] = "${env:PRIVATE_PLACE}/whisper"
    config["decoder"]["path"] = "${env:PRIVATE_PLACE}/qwen"
    tone_run.write_text(yaml.safe_dump(config))
    return home


def test_nothing_that_a_run_writes_or_prints_holds_the_value(tone_run, monkeypatch, capsys):
    home = folder_named_by_variable(tone_run, monkeypatch)
    (home / "tones" / "0.wav").unlink()
    (home / "tones" / "1.wav").write_bytes(b"RIFF")
    for arguments in (
        ["check", str(tone_run)],
        ["train", str(tone_run), "data.max_skipped_share=0.5"],
        ["report", str(tone_run.parent / "out"), "--no-audio"],
        ["data", "stats", str(tone_run)],
    ):
        code, printed = run_command(arguments, capsys)
        assert code == 0, printed
        assert SECRET not in printed
    skips = (tone_run.parent / "out" / "skipped.jsonl").read_text()
    assert "${env:PRIVATE_PLACE}/tones/" in skips
    texts = {".jsonl", ".yaml", ".json", ".html", ".txt", ".md"}
    written = [file for file in (tone_run.parent / "out").rglob("*") if file.suffix in texts]
    assert {"config.yaml", "metrics.jsonl", "skipped.jsonl", "report.html"} <= {file.name for file in written}
    assert [file for file in written if SECRET in file.read_text()] == []
    assert "${env:PRIVATE_PLACE}/qwen" in (tone_run.parent / "out" / "config.yaml").read_text()


@pytest.mark.parametrize("lost", ["whisper/config.json", "qwen/config.json", "qwen/tokenizer.json", "tones"])
@pytest.mark.parametrize("command", ["check", "train"])
def test_messages_name_the_variable(tone_run, monkeypatch, capsys, command, lost):
    home = folder_named_by_variable(tone_run, monkeypatch)
    (home / lost).rename(home / "elsewhere")
    code, printed = run_command([command, str(tone_run)], capsys)
    assert code == 2
    assert SECRET not in printed
    assert "${env:PRIVATE_PLACE}" in " ".join(printed.split())


def test_rows_and_long_texts_are_masked_before_they_are_cut(monkeypatch, tmp_path):
    monkeypatch.setenv("BUCKET", f"https://host/{SECRET}/")
    monkeypatch.setenv("SHORT", "/a")
    place = expand_path("${env:BUCKET}/train.tar", tmp_path, "card.yaml: load")
    expand_path("${env:SHORT}/train.tar", tmp_path, "card.yaml: load")
    assert SECRET in place
    assert RowError("missing file", place).detail == "${env:BUCKET}//train.tar"
    assert str(UserError(f"{place}: 403, see /a/b")) == "${env:BUCKET}//train.tar: 403, see /a/b"
    assert SECRET[:4] not in escape_text("x" * 490 + place)


PLACES = {
    "encoder": "encoders={a: {path: '${env:PRIVATE_PLACE}/model'}}",
    "random": "encoders={a: {path: 'random:${env:PRIVATE_PLACE}/model'}}",
    "within": "encoders={a: {path: 'https://host.example/${env:PRIVATE_PLACE}'}}",
    "decoder": "decoder={path: '${env:PRIVATE_PLACE}/model'}",
    "guard": "guard={every: 1, sets: {a: '${env:PRIVATE_PLACE}/set'}}",
}


@pytest.mark.parametrize("name", PLACES)
def test_a_run_of_somebody_else_gets_no_value(tone_run, monkeypatch, capsys, name):
    """Neither read, so that nothing could send it, nor shown."""
    monkeypatch.chdir(tone_run.parent)
    monkeypatch.setenv("PRIVATE_PLACE", f"hub-user/{SECRET}")
    run = tone_run.parent / "theirs"
    config = load_run(tone_run, [PLACES[name], f"output_dir={run}"])
    state = {"stage": 0, "step": 8, "stage_done": True, "stage_seconds": 1.0}
    save_checkpoint(run, Snapshot(8, state, {}, {"encoder.w": torch.zeros(1)}), config, {})
    (run / "metrics.jsonl").write_text('{"event": "finished", "step": 8}\n')
    config.save(run / "config.yaml")
    sent = []
    monkeypatch.setattr("socket.socket.connect", lambda self, address: sent.append(address))
    for arguments in (
        ["ask", str(run), "tones/0.wav", "Which tone?"],
        ["embed", str(run), "tones/0.wav", "-o", "out.npz"],
        ["export", str(run), "exported"],
        ["report", str(run), "--no-audio"],
    ):
        code, printed = run_command(arguments, capsys)
        assert code == (2 if arguments[0] != "report" else code)
        assert name == "within" or arguments[0] == "report" or "which is not read for a run" in printed
        assert SECRET not in printed
    assert not [address for address in sent if SECRET in str(address)]
    texts = [file for file in run.rglob("*") if file.suffix in (".html", ".json", ".jsonl", ".yaml")]
    assert [file for file in texts if SECRET in file.read_text("utf-8")] == []
