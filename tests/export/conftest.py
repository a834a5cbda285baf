"""Code of exported folders is copied to a place of the test's own and forgotten after it."""

import pytest


@pytest.fixture(autouse=True)
def _fresh_copies(fresh_model_code):
    """See ``fresh_model_code``."""
