"""``python -m tests.local_hub FOLDER``: serve plain folders as a Hub, for clients that are told so by HF_ENDPOINT."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .server import PAGE, LocalHub

USER = "me"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.local_hub", description=__doc__)
    parser.add_argument("folder", type=Path, help="with models/OWNER/NAME and datasets/OWNER/NAME")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument(
        "--token", action="append", default=[], help=f"TOKEN or TOKEN=USER (default user: {USER})"
    )
    parser.add_argument(
        "--private", action="append", default=[], help="models/OWNER/NAME or datasets/OWNER/NAME"
    )
    parser.add_argument(
        "--gated", action="append", default=[], help="the same; every user with a token has access"
    )
    parser.add_argument("--page", type=int, default=PAGE, help="entries of a listing in one answer")
    parser.add_argument(
        "--fail", action="append", default=[], metavar="PATTERN=STATUS[xTIMES]", help="answer requests so"
    )
    given = parser.parse_args()
    tokens = {token: user or USER for token, _, user in (text.partition("=") for text in given.token)}
    gated = {name: set(tokens.values()) for name in given.gated}
    with LocalHub(given.folder, tokens, given.private, gated, given.port, given.page) as hub:
        for text in given.fail:
            pattern, _, status = text.rpartition("=")
            code, _, times = status.partition("x")
            hub.faults.add(pattern, int(code), int(times) if times else None)
        hub.on_request = lambda request: print(request, flush=True)
        print(f"export HF_ENDPOINT={hub.endpoint} HF_HUB_DISABLE_XET=1", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
