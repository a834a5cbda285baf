"""Code of exported folders is copied to a place of the test's own and forgotten after it."""

import importlib
import sys
from pathlib import Path

import pytest

COPIES = "transformers_modules"  # the package that transformers makes of the code of model folders


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == COPIES]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def _own_copies(tmp_path, monkeypatch):
    forget()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    # transformers appends its place and leaves it there, so those of earlier tests would be found first
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / COPIES).is_dir()])
    yield
    forget()
