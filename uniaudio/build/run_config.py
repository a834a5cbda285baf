"""Run configs as the command line and Python name them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniaudio.config.overrides import Overrides, require_overrides
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import MINI, load_run, parse_run
from uniaudio.config.trust import NO_TRUST, Trust


def open_run(
    config: str | Path | Mapping[str, Any] | RunConfig, overrides: Overrides = (), trust: Trust = NO_TRUST
) -> RunConfig:
    """Read a run config; with ``+mini`` among the overrides its miniature variant, whose parts are made on first use.

    Args:
        config: a name, a path, the content of a config file, or a run config. Paths in a content are relative to the
            working directory.

    Raises:
        UserError: naming file and key.
    """
    require_overrides(overrides)
    if isinstance(config, RunConfig):
        return parse_run(config.resolve_values(), config.folder, overrides, trust | config.trust)
    if isinstance(config, Mapping):
        return parse_run(config, Path.cwd(), overrides, trust)
    if MINI in overrides:
        from uniaudio.tiny.run_assets import (
            ensure_parts,  # seconds to import, and `uniaudio launch` waits for them
        )

        ensure_parts()
    return load_run(config, overrides, trust)
