"""Code that a model or a run brings is run only when whoever opens it says so, by every command."""

import json
import os
import sys

import pytest
import torch
from helpers import forked_processes

import uniaudio
from uniaudio.cli import main
from uniaudio.config.run_files import load_run, load_stored_run
from uniaudio.config.trust import NO_TRUST, Trust, find_trust_file, read_remembered_trust, remember_run
from uniaudio.errors import UserError
from uniaudio.train.checkpoint.writing import Snapshot, save_checkpoint

OWN_CLASS = "encoders={a: {kind: 'marker_encoder:Encoder', settings: {}}}"
REMOTE = "encoders={a: {kind: remote, path: hostile, trust_remote_code: true}}"
DECODER = "decoder={path: hostile, trust_remote_code: true}"
CALLBACK = "train.callbacks=['marker_encoder:Encoder']"
NEEDS = {"class": OWN_CLASS, "encoder": REMOTE, "decoder": DECODER}
ALL_NEEDS = {**NEEDS, "callback": CALLBACK}
OPTIONS = {"class": "--allow-code", "encoder": "--trust-remote-code", "decoder": "--trust-remote-code",
           "callback": "--allow-code"}  # fmt: skip

READS_ENCODER = {
    "embed": ["embed", "RUN", "tones/0.wav", "-o", "out.npz"],
    "probe": ["probe", "RUN", "--data", "tones=tones"],
    "export": ["export", "RUN", "exported"],
    "check-encoder": ["check-encoder", "RUN"],
    "soup": ["soup", "RUN", "-o", "mixed", "--alpha", "0.5"],
}
READS_ALL = {
    "ask": ["ask", "RUN", "tones/0.wav", "Which tone is it?"],
    "eval": ["eval", "RUN"],
    "forgetting": ["forgetting", "RUN"],
    "serve": ["serve", "RUN", "--port", "0"],
    "train": ["train", "RUN/config.yaml", "--resume"],
    "tune-batch": ["tune-batch", "RUN/config.yaml"],
}
READS_NOTHING = {
    "report": ["report", "RUN", "--no-audio"],
    "check": ["check", "RUN/config.yaml"],
    "plan": ["plan", "RUN/config.yaml"],
    "preview": ["preview", "RUN/config.yaml"],
    "add-task": ["add-task", "RUN", "tone_recipe.yaml", "-o", "more"],
    "data stats": ["data", "stats", "RUN/config.yaml"],
    "routes": ["routes", "RUN"],
}


@pytest.fixture
def here(tone_run, monkeypatch, fresh_model_code):
    """A working folder with a module and a model that leave a marker when their code runs."""
    folder = tone_run.parent
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "marker_encoder", raising=False)
    code = f"open({str(folder / 'ran')!r}, 'w')\n"
    (folder / "marker_encoder.py").write_text(f"{code}class Encoder: ...\n")
    hostile = folder / "hostile"
    hostile.mkdir()
    (hostile / "code.py").write_text(code)
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoFeatureExtractor", "AutoProcessor")
    auto_map = {name: f"code.{name}" for name in names}
    (hostile / "config.json").write_text(json.dumps({"model_type": "hostile", "auto_map": auto_map}))
    (hostile / "preprocessor_config.json").write_text(json.dumps({"auto_map": auto_map}))
    tokens = {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    (hostile / "tokenizer_config.json").write_text(json.dumps(tokens))
    return folder


def somebodys_run(folder, need):
    """Write a run folder with a whole checkpoint whose config needs code."""
    run = folder / "theirs"
    config = load_run(folder / "run.yaml", [ALL_NEEDS[need], f"output_dir={run}"])
    state = {"stage": 0, "step": 8, "stage_done": True, "stage_seconds": 1.0}
    save_checkpoint(run, Snapshot(8, state, {}, {"encoder.w": torch.zeros(1)}), config, {})
    config.save(run / "config.yaml")
    (run / "metrics.jsonl").write_text('{"event": "finished", "step": 8}\n')
    return run


def exit_of(arguments, capsys):
    """Run a command line; return its exit code and all that it printed, in one line."""
    capsys.readouterr()
    code = 0
    try:
        main(arguments)
    except SystemExit as left:
        code = left.code or 0
    output = capsys.readouterr()
    return code, " ".join(f"{output.out} {output.err}".split())


COMMANDS = [
    *((name, need) for name in READS_ENCODER for need in ("class", "encoder")),
    *((name, need) for name in READS_ALL for need in NEEDS),
    ("train", "callback"),
]


@pytest.mark.parametrize(("command", "need"), COMMANDS)
def test_a_run_of_somebody_else_names_the_option_that_its_code_needs(here, capsys, command, need):
    run = somebodys_run(here, need)
    arguments = (READS_ENCODER | READS_ALL)[command]
    code, output = exit_of([part.replace("RUN", str(run)) for part in arguments], capsys)
    assert code == 2
    assert OPTIONS[need] in output
    assert not (here / "ran").exists()


@pytest.mark.parametrize("need", ALL_NEEDS)
@pytest.mark.parametrize("command", READS_NOTHING)
def test_what_needs_no_model_runs_no_code(here, capsys, command, need):
    run = somebodys_run(here, need)
    code, output = exit_of([part.replace("RUN", str(run)) for part in READS_NOTHING[command]], capsys)
    assert code in (0, 2)
    if command in ("report", "add-task") or (command == "check" and need != "decoder"):
        assert code == 0, output
    assert not (here / "ran").exists()


@pytest.mark.parametrize("need", NEEDS)
def test_the_option_allows_it_for_this_call(here, capsys, need):
    """The marker would be there if the code ran: that the tests above see none means something."""
    run = somebodys_run(here, need)
    exit_of(["ask", str(run), "tones/0.wav", "Which tone?", "--allow-code", "--trust-remote-code"], capsys)
    assert (here / "ran").exists()
    (here / "ran").unlink()
    code, output = exit_of(["ask", str(run), "tones/0.wav", "Which tone?"], capsys)
    assert (code, OPTIONS[need] in output) == (2, True)


@pytest.mark.parametrize("command", ["embed", "probe", "export", "check-encoder"])
@pytest.mark.parametrize("model_type", ["hostile", "wav2vec2", "whisper", "encodec"])
def test_a_model_folder_with_code_is_opened_without_it(here, capsys, command, model_type):
    config = json.loads((here / "hostile" / "config.json").read_text())
    (here / "hostile" / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    code, output = exit_of([part.replace("RUN", "hostile") for part in READS_ENCODER[command]], capsys)
    assert code == 2
    assert model_type != "hostile" or "give --trust-remote-code" in output
    assert not (here / "ran").exists()


def test_the_python_function_takes_the_same_two_words(here):
    run = somebodys_run(here, "class")
    with pytest.raises(UserError, match=r"allow_code=True in Python"):
        uniaudio.load_encoder(run, device="cpu")
    assert not (here / "ran").exists()
    with pytest.raises(UserError, match="is not a subclass of uniaudio's AudioEncoder"):
        uniaudio.load_encoder(run, device="cpu", allow_code=True)
    with pytest.raises(UserError, match="comes with its own Python code"):
        uniaudio.load_encoder("hostile", device="cpu", allow_code=True)


def test_a_run_named_as_an_encoder_brings_no_trust(here):
    run = somebodys_run(here, "class")
    config = load_run(here / "run.yaml", [f"encoders.whisper.path={run}", f"output_dir={here / 'mine'}"])
    mine = here / "mine"
    save_checkpoint(mine, Snapshot(1, {"stage": 0, "step": 1}, {}, {"encoder.w": torch.zeros(1)}), config, {})
    with pytest.raises(UserError, match=r"encoders\.a: needs code of its own"):
        uniaudio.load_encoder(mine, device="cpu")
    assert not (here / "ran").exists()


def test_a_run_made_here_is_remembered_with_its_settings_its_place_and_its_code(here):
    run = somebodys_run(here, "class")

    def trust():
        return load_stored_run(run / "config.yaml", run).trust

    assert trust() == NO_TRUST
    remember_run(run, load_stored_run(run / "config.yaml", run).collect_trust_settings(), Trust(code=True))
    assert trust() == Trust(code=True)
    moved = run.rename(here / "elsewhere")
    assert load_stored_run(moved / "config.yaml", moved).trust == NO_TRUST
    moved.rename(run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("marker_encoder:Encoder", "other_encoder:Encoder"))
    assert trust() == NO_TRUST
    (run / "config.yaml").write_text(text)
    assert trust() == Trust(code=True)
    (here / "marker_encoder.py").write_text("class Encoder: ...  # another one")
    assert trust() == NO_TRUST
    assert not (here / "ran").exists()


def test_callbacks_are_code_of_a_run_and_not_of_its_model(here, capsys):
    run = somebodys_run(here, "callback")

    def trust():
        return load_stored_run(run / "config.yaml", run).trust

    exit_of(["ask", str(run), "tones/0.wav", "Which tone?"], capsys)
    assert not (here / "ran").exists()
    remember_run(run, load_stored_run(run / "config.yaml", run).collect_trust_settings(), Trust(code=True))
    assert trust() == Trust(code=True)
    (here / "marker_encoder.py").write_text("class Encoder: ...  # another one")
    assert trust() == NO_TRUST
    assert "callbacks" not in load_run(here / "run.yaml").collect_trust_settings()


def test_code_of_the_hub_is_remembered_only_at_a_commit(tmp_path):
    """The code at a branch or tag may be another one tomorrow."""
    part = {"kind": "remote", "path": "somebody/model", "trust_remote_code": True}
    for revision, kept in ((None, False), ("main", False), ("v1.0", False), ("0a1b" * 10, True)):
        settings = {"encoders": {"a": {**part, "revision": revision}}, "decoder": {}}
        remember_run(tmp_path, settings, Trust(remote_code=True))
        assert read_remembered_trust(tmp_path, settings) == Trust(remote_code=kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_what_another_user_wrote_into_a_shared_cache_does_not_count(tmp_path):
    settings = {"encoders": {"a": {"kind": "marker_encoder:Encoder"}}, "decoder": {}}
    remember_run(tmp_path, settings, Trust(code=True))
    record = find_trust_file(tmp_path, settings)
    assert read_remembered_trust(tmp_path, settings) == Trust(code=True)
    os.chown(record, 12345, -1)
    assert read_remembered_trust(tmp_path, settings) is None


def test_the_record_of_one_run_is_none_of_another(tmp_path):
    """Whoever may rename files of a shared cache cannot give a permission to another folder."""
    settings = {"encoders": {"a": {"kind": "marker_encoder:Encoder"}}, "decoder": {}}
    (tmp_path / "other").mkdir()
    remember_run(tmp_path, settings, Trust(code=True))
    find_trust_file(tmp_path, settings).rename(find_trust_file(tmp_path / "other", settings))
    assert read_remembered_trust(tmp_path / "other", settings) is None


def test_a_config_that_nobody_allowed_to_run_code_leaves_the_search_for_modules_alone(here, monkeypatch):
    """A package that is looked for later could else come from a folder that is not trusted."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(here))])
    run = somebodys_run(here, "class")
    settings = load_stored_run(run / "config.yaml", run).collect_trust_settings()
    assert str(here) not in sys.path
    before = find_trust_file(run, settings)
    (here / "marker_encoder.py").write_text("class Encoder: ...  # another one")
    assert find_trust_file(run, settings) != before


WAITS_FOR_BOTH = """
import os, pathlib, time
here = pathlib.Path(__file__).parent
(here / f"ran-{os.environ['RANK']}").touch()
until = time.monotonic() + 60
while len(list(here.glob("ran-*"))) < 2 and time.monotonic() < until:
    time.sleep(0.1)
class Encoder: ...
"""


@pytest.mark.slow
def test_every_process_of_a_launch_is_given_the_same_trust(here):
    (here / "marker_encoder.py").write_text(WAITS_FOR_BOTH)
    done = forked_processes.run(
        ["-m", "uniaudio.train", "run.yaml", OWN_CLASS, "--allow-code"], folder=here, processes=2, timeout=200
    )
    assert done.returncode != 0
    assert "is not a subclass of uniaudio's AudioEncoder" in done.stderr
    assert {file.name for file in here.glob("ran-*")} == {"ran-0", "ran-1"}
