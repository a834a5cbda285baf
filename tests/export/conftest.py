"""Code of exported folders is copied to a place of the test's own and forgotten after it."""

import os

import pytest


@pytest.fixture(autouse=True)
def _fresh_copies(fresh_model_code):
    """See ``fresh_model_code``."""


@pytest.fixture
def transformers_4() -> str:
    """A Python with transformers 4.57 and torch; tests that use it carry the marker ``transformers4``."""
    return require_python("UNIAUDIO_TRANSFORMERS_457", "transformers 4.57")


@pytest.fixture
def vllm() -> str:
    """A Python with vLLM; tests that use it carry the marker ``vllm``."""
    return require_python("UNIAUDIO_VLLM", "vLLM")


def require_python(variable: str, package: str) -> str:
    """Return the Python that an environment variable names; skip the test where it names none."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"no Python with {package}: set {variable} to one to run this test")
    return python
