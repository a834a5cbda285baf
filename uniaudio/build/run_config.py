"""Run configs as the command line names them."""

from __future__ import annotations

from collections.abc import Sequence

from uniaudio.config.run import MINI, RunConfig, load_run
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.tiny.run_assets import ensure_parts


def open_run(config: str, overrides: Sequence[str] = (), trust: Trust = NO_TRUST) -> RunConfig:
    """Read a run config; with ``+mini`` among the overrides its miniature twin, whose parts are made on first use.

    Raises:
        UserError: naming file and key.
    """
    if MINI in overrides:
        ensure_parts()
    return load_run(config, overrides, trust)
