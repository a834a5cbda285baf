"""Code of exported folders is copied to a place of the test's own and forgotten after it."""

import os

import pytest


@pytest.fixture(autouse=True)
def _fresh_copies(fresh_model_code):
    """See ``fresh_model_code``."""


@pytest.fixture
def transformers_4() -> str:
    """A Python with transformers 4.57 and torch; tests that use it carry the marker ``transformers4``."""
    python = os.environ.get("UNIAUDIO_TRANSFORMERS_457")
    if not python:
        pytest.skip("no Python with transformers 4.57: set UNIAUDIO_TRANSFORMERS_457 to one to run this test")
    return python
