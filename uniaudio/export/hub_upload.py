"""Uploading an exported folder, on request only."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from uniaudio.errors import UserError

NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_login(name: str) -> None:
    """Refuse to start what could not be uploaded.

    Raises:
        UserError: for a name that is not ``OWNER/NAME``, and when nobody is logged in.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"--push-to-hub {name}: write OWNER/NAME")
    try:
        HfApi().whoami()
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError) as problem:
        raise UserError(
            f"--push-to-hub {name}: nobody is logged in ({str(problem).splitlines()[0]}); run `hf auth login` first"
        ) from problem


def push_folder(folder: Path, name: str) -> str:
    """Upload a folder to a model repository and return its address; a new repository is private.

    Raises:
        UserError: when the Hub refuses; the folder stays.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        told = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of uniaudio")
    except (HfHubHTTPError, OSError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise UserError(f"{folder} is written, but {name} could not be uploaded ({reason})") from problem
    return str(told.commit_url)
