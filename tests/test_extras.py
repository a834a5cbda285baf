"""Without the packages of an extra: the core works, and a feature that needs them names the extra."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from uniaudio.cli import main
from uniaudio.errors import UserError
from uniaudio.extras import EXTRAS, require_package

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED = {"scikit-learn": "sklearn", "mlflow-skinny": "mlflow"}  # where the name differs
IN_CORE_COMMANDS = (
    "train",
    "launch",
    "check",
    "plan",
    "preview",
    "probe",
    "evaluate",
    "ask",
    "embed",
    "export",
)


def test_every_package_is_in_the_extra_that_is_named():
    for package, extra in EXTRAS.items():
        names = {re.split(r"[>=\[]", line)[0] for line in PROJECT["optional-dependencies"][extra]}
        assert package in {IMPORTED.get(name, name.replace("-", "_")) for name in names}, package
    assert not {package for package in EXTRAS if any(package in line for line in PROJECT["dependencies"])}


def test_the_default_installation_is_one_extra():
    (line,) = PROJECT["optional-dependencies"]["all"]
    assert line == "uniaudio[deepspeed,report,tensorboard,metrics,speech]"
    assert "-e '.[all]'" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("matplotlib", ["report", "runs/birds"], "uniaudio report needs the extra report"),
        ("sklearn", ["report", "runs/birds"], "uniaudio report needs the extra report"),
        ("matplotlib", ["routes", "runs/birds"], "uniaudio routes needs the extra report"),
        ("matplotlib", ["forgetting", "runs/birds"], "uniaudio forgetting needs the extra report"),
        ("matplotlib", ["demo"], "uniaudio demo needs the extra report"),
        ("gradio", ["serve", "runs/birds"], "uniaudio serve needs the extra serve"),
        ("matplotlib", ["data", "stats", "birds", "--plot", "a.png"], "--plot needs the extra report"),
    ],
)
def test_a_command_names_the_extra_it_misses(package, arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    extra = message.rpartition(" ")[2]
    assert f"uniaudio: {message}: pip install 'uniaudio[{extra}]'\n" in capsys.readouterr().err


def test_a_package_without_an_extra_is_named_itself():
    with pytest.raises(UserError, match=r"train\.trackers: aim needs the package aim: pip install aim"):
        require_package("aim", "train.trackers: aim")


@pytest.mark.slow
def test_core_commands_need_no_extra():
    code = f"import sys, importlib\nfor name in {list(EXTRAS)}: sys.modules[name] = None\n"
    code += f"for name in {IN_CORE_COMMANDS}: importlib.import_module('uniaudio.commands.' + name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_takes_the_build_of_torch_for_the_machine():
    def dry_run(installer):
        command = ["make", "-n", "-B", ".stamp-run", f"INSTALL={installer}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "uv pip install --python .venv/bin/python --torch-backend auto" in dry_run("uv")
    assert "--torch-backend" not in dry_run("pip")
    assert "-e '.[all]'" in dry_run("pip")
