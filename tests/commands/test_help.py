"""The help of every command: its panel, what it reads, writes and prints, and an example that parses."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from uniaudio.cli import app, with_resume_value

ROOT = Path(__file__).parents[2]
ROOT_COMMAND = typer.main.get_command(app)


def leaf_commands(command, name=""):
    """Every command by its full name."""
    if not hasattr(command, "commands"):
        return {name: command}
    return {
        full: leaf
        for part, inner in command.commands.items()
        for full, leaf in leaf_commands(inner, f"{name} {part}".strip()).items()
    }


COMMANDS = leaf_commands(ROOT_COMMAND)


def parse_line(line):
    """Parse a command line as the shell and typer do, without running it; return the command's name."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "uniaudio"
    command, context, names = ROOT_COMMAND, typer.Context(ROOT_COMMAND), []
    arguments = with_resume_value(arguments)
    while hasattr(command, "commands"):
        name, command, arguments = command.resolve_command(context, arguments)
        names.append(name)
    command.make_context(" ".join(names), arguments, parent=context)
    return " ".join(names)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_reads_writes_and_prints(name):
    first, *others = COMMANDS[name].help.split("\n\n")
    assert len(first) <= 62, "one line of the list of commands"
    assert re.fullmatch(r"Reads: .+\nWrites: .+\nPrints: .+", "\n\n".join(others).strip())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_parses(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # options that name what is written look at their folder
    label, _, line = COMMANDS[name].epilog.partition(": ")
    assert (label, parse_line(line)) == ("Example", name)


def test_what_is_written_is_named_by_the_same_option_everywhere():
    named = {
        name: [p.opts for p in command.params if "--out" in p.opts] for name, command in COMMANDS.items()
    }
    assert {"probe", "eval", "data pack", "soup"} <= {name for name, options in named.items() if options}
    assert {name: options for name, options in named.items() if options not in ([], [["-o", "--out"]])} == {}


def test_every_command_is_in_a_panel():
    panels = {name: command.rich_help_panel for name, command in ROOT_COMMAND.commands.items()}
    assert set(panels.values()) == {"Train", "Evaluate", "Data", "Use"}
    assert list(dict.fromkeys(panels.values())) == ["Train", "Evaluate", "Data", "Use"]


DOCUMENTED = sorted(
    {
        (page.name, line.strip())
        for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for block in re.findall(r"```(?:bash|sh|text|console)?\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.splitlines()
        if line.startswith("uniaudio ")
    }
)


@pytest.mark.parametrize(("page", "line"), DOCUMENTED)
def test_command_lines_of_the_documentation_parse(page, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_line(line) in COMMANDS


def test_help_imports_no_heavy_package():
    code = "import sys, uniaudio.cli; print([m for m in ('torch', 'numpy', 'pydantic', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_mistake_in_a_config_is_answered_before_the_slow_imports():
    """One process for all commands: nothing that one of them imports may hide what the next one does."""
    code = """
import sys
from uniaudio.cli import main
for command in (["train"], ["check"], ["plan"], ["tune-batch"], ["launch", "ddp"]):
    for mistake in (["configs/nowhere.yaml"], ["whisper_small_qwen3", "train.log_evry=1"]):
        try:
            main([*command, *mistake])
        except SystemExit as end:
            print(end.code, [name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == 10 * ["2 []"]
    first, second = done.stderr.splitlines()[:2]
    assert first == "uniaudio: there is no config file configs/nowhere.yaml"
    assert second.endswith("train.log_evry: unknown key (did you mean 'log_every'?)")
    assert done.stderr.splitlines() == 5 * [first, second]


def test_a_path_that_is_not_there_is_answered_before_the_slow_imports(tmp_path):
    """One process for all commands, as above; nothing of what they name exists, but for one run and one clip."""
    (tmp_path / "runs" / "birds" / "checkpoints").mkdir(parents=True)
    (tmp_path / "clip.wav").touch()
    run, folder = "there is no folder runs/brids (did you mean 'birds'?)", "there is no folder ./none"
    cases = {
        "eval runs/brids": run,
        "eval none": "there is no folder none",
        "eval runs/birds nothing.d/r.yaml": "there is no recipe file nothing.d/r.yaml",
        "probe runs/brids --data x=.": run,
        "probe some/model ./none --data x=.": folder,
        "probe random:./none --data x=.": folder,
        "probe some/model --data x=none": "--data x=none: there is no such folder",
        "probe some/model --data none": "--data none: write NAME=FOLDER",
        "ask runs/birds none.wav what?": "missing file: none.wav",
        "ask runs/brids clip.wav what?": run,
        "embed some/model none.wav no.wav -o e.npz": "none of 2 file(s) can be used; the first: missing file: none.wav",
        "embed runs/brids:ema clip.wav -o e.npz": run,
        "export ./none?pad_to=30 out": folder,
        "soup runs/birds runs/brids -o out": run,
        "soup runs/birds --start runs/brids -o out": run,
        "soup runs/birds --data x=none -o out": "--data x=none: there is no such folder",
        "forgetting runs/brids": run,
        "forgetting runs/birds --data x=none": "--data x=none: there is no such folder",
        "report runs/birds runs/brids": run,
        "report runs/birds --probes none.json": "--probes: there is no file none.json",
        "check-encoder ./none": folder,
        "add-task runs/brids r -o out": run,
        "preview none.d/r.yaml": "there is no recipe file none.d/r.yaml",
        "data stats none.d/r.yaml": "there is no recipe file none.d/r.yaml",
        "data bench none.d/r.yaml": "there is no recipe file none.d/r.yaml",
        "data pack none.d/r.yaml -o out": "there is no recipe file none.d/r.yaml",
        "data import librispeech none -o out": "none: there is no such file or folder",
        "new birds --data ./none": "--data ./none: there is no such file or folder",
        "new birds --data runs --label x --encoder ./none": folder,
    }
    config = "whisper_small_qwen3"
    of_configs = {
        "stages.0.recipe=no.d/r.yaml": "there is no recipe file no.d/r.yaml",
        "decoder.path=/none": "decoder.path: there is no folder /none",
    }
    cases |= {
        f"{command} {config} {override}": sentence
        for command in ("train", "check", "tune-batch", "launch ddp")
        for override, sentence in of_configs.items()
    }
    for command in ("train", "launch ddp"):
        cases[f"{command} {config} output_dir=runs/birds --resume"] = (
            "holds no complete checkpoint; leave --resume out"
        )
    code = """
import shlex, sys
from uniaudio.cli import main
for line in sys.stdin.read().splitlines():
    try:
        main(shlex.split(line))
    except SystemExit as end:
        print(end.code, [name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(cases),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    answers = done.stderr.splitlines()
    assert len(answers) == len(cases), done.stderr
    for (line, sentence), answer in zip(cases.items(), answers, strict=True):
        assert answer.startswith("uniaudio: "), line
        assert sentence in answer, line
    assert done.stdout.splitlines() == len(cases) * ["2 []"]


def test_an_option_that_does_not_exist_is_no_example():
    with pytest.raises(Exception, match="No such option"):
        parse_line("uniaudio train birds --nope")


@pytest.mark.parametrize("option", ["--max_steps=10", "--train.max_steps=10"])
def test_an_override_with_dashes_is_shown_how_to_write_it(option, capsys):
    for command in ("train", "check", "plan", "tune-batch", "launch"):
        with pytest.raises(SystemExit) as end:
            app(args=[command, "configs/birds.yaml", option])
        assert end.value.code == 2
        printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert "settings are written without dashes, as in train.max_steps=100" in printed
