"""Uploads of exported folders to the Hugging Face Hub.

``check_login`` is called before anything is exported, so that a refusal costs no work; ``push_folder`` afterwards, when
the folder is complete.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import LocalTokenNotFoundError

from uniaudio.errors import UserError, read_first_line
from uniaudio.hub_client import (
    call_hub,
    convert_hub_errors,
    describe_failure,
    find_cause,
    find_status,
)
from uniaudio.hub_connection import announce_wait

REPOSITORY_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_login(name: str) -> None:
    """Refuse to start what could not be uploaded.

    Raises:
        UserError: for a name that is not ``OWNER/NAME``, when nobody is logged in, and when the Hub cannot tell.
    """
    if not REPOSITORY_NAME.fullmatch(name):
        raise UserError(f"--push-to-hub {name}: write OWNER/NAME")
    try:
        with announce_wait(name):
            call_hub(HfApi().whoami)
    except Exception as problem:
        if find_cause(problem, LocalTokenNotFoundError) or find_status(problem)[0] in (401, 403):
            reason = f"you are not logged in ({read_first_line(problem)}); run `hf auth login` first"
        else:
            reason = (
                f"the Hub ({constants.ENDPOINT}) does not answer ({describe_failure(problem)}); check the network, "
                "HF_ENDPOINT and HF_HUB_OFFLINE, or export without --push-to-hub"
            )
        raise UserError(f"--push-to-hub {name}: {reason}") from problem


def push_folder(folder: Path, name: str) -> str:
    """Upload a folder to a model repository and return its address; a new repository is private.

    Raises:
        UserError: when the Hub refuses; the folder stays.
    """
    api = HfApi()
    with convert_hub_errors(f"{folder} was written, but {name} could not be uploaded", name):
        call_hub(lambda: api.create_repo(name, private=True, exist_ok=True))
        commit = call_hub(
            lambda: api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export by uniaudio")
        )
    return str(commit.commit_url)
