"""Probes of models on labelled folders or on a suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console

from uniaudio.build.encoders import load_encoder
from uniaudio.build.result_fingerprints import fingerprint_models, sign_scores
from uniaudio.commands.evaluate import write_json
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.labelled_folder import load_labelled
from uniaudio.evaluate.probing.suite import load_suite
from uniaudio.evaluate.probing.suite_run import read_tasks, run_suite
from uniaudio.evaluate.probing.suite_table import suite_tables
from uniaudio.evaluate.probing.table import Scores, probe_models, probe_table
from uniaudio.evaluate.probing.task_embeddings import Protocol
from uniaudio.report.scores import FINGERPRINTS

LOG_WIDTH = 120  # columns


def probe_models_on(
    models: Sequence[str],
    data: Sequence[str],
    suite: str | None,
    protocol: str,
    out: Path | None,
    seeds: int,
    layers: bool,
    trust: Trust = NO_TRUST,
) -> None:
    """Probe models on labelled folders, or on a suite.

    Raises:
        UserError: when neither or both are given, a suite's option stands beside folders, or the protocol is unknown.
    """
    if (suite is None) == (not data):
        raise UserError("give either --data NAME=FOLDER or --suite NAME")
    if protocol not in get_args(Protocol):
        raise UserError(f"--protocol {protocol}: give {' or '.join(get_args(Protocol))}")
    if suite is not None:
        probe_suite(models, suite, cast(Protocol, protocol), out, seeds, layers, trust)
        return
    if layers or protocol != "masked":
        raise UserError("--layers and --protocol xares work on a --suite; name the folders in one")
    run_probes(models, data, out, seeds, trust)


def run_probes(
    models: Sequence[str], data: Sequence[str], out: Path | None, seeds: int, trust: Trust = NO_TRUST
) -> Scores:
    """Probe models on labelled folders given as ``NAME=FOLDER``; print a table and write JSON."""
    console = Console()
    sets = []
    for item in data:
        name, equals, folder = item.partition("=")
        if not equals:
            raise UserError(f"--data {item}: write NAME=FOLDER")
        sets.append(load_labelled(name, Path(folder)))
    encoders = {spec: load_encoder(spec, trust=trust) for spec in models}
    scores = probe_models(encoders, sets, seeds, lambda text: console.print(f"probing {text}", style="dim"))
    console.print(probe_table(scores))
    write_json(out, sign_scores(scores, fingerprint_models(encoders)))
    return scores


def probe_suite(
    models: Sequence[str],
    suite_name: str,
    protocol: Protocol,
    out: Path | None,
    seeds: int,
    layers: bool,
    trust: Trust = NO_TRUST,
) -> dict[str, Any]:
    """Probe models on the tasks of a suite; print tables and write JSON.

    Rows and columns are checked before a model is loaded, and models are loaded before a clip is decoded.
    """
    console = Console()
    if not console.is_terminal:  # a log file has no width
        console.width = max(console.width, LOG_WIDTH)
    suite = load_suite(suite_name)
    tasks = read_tasks(suite)
    encoders = {spec: load_encoder(spec, trust=trust) for spec in models}
    result = run_suite(suite, tasks, encoders, protocol, seeds, layers, console)
    result[FINGERPRINTS] = fingerprint_models(encoders)
    for table in suite_tables(result):
        console.print(table)
    write_json(out, result)
    return result
