"""The packages that the page needs and a training machine does not."""

from __future__ import annotations

from importlib.util import find_spec

from uniaudio.errors import UserError


def require_server() -> None:
    """Look for the packages of the optional extra before anything is loaded.

    Raises:
        UserError: when one is missing.
    """
    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            raise UserError(f"the page needs the package {name}: pip install 'uniaudio[serve]'")
