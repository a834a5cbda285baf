"""The scripts of benchmarks/ import each other by their plain names, as they do when they are run."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture
def benchmarks() -> Path:
    """The folder of the scripts."""
    return BENCHMARKS
