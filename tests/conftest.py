"""Fixtures that several test files share."""

from pathlib import Path

import pytest

from uniaudio.config.files import realdata_root


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real recordings and weights; tests that use it carry the marker ``realdata``."""
    root = realdata_root()
    if root is None:
        pytest.skip("no folder of real recordings: set UNIAUDIO_REALDATA to run this test")
    return root
