"""Probes of models on labelled folders or on a suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

from uniaudio.build.encoders import check_model, load_encoder
from uniaudio.build.result_fingerprints import fingerprint_models
from uniaudio.build.untrained_encoders import add_references
from uniaudio.checks.named_paths import parse_folders
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import make_console
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.labelled_folder import build_folder_suite
from uniaudio.evaluate.probing.suite import load_suite
from uniaudio.evaluate.probing.suite_run import read_tasks, run_suite
from uniaudio.evaluate.probing.suite_table import REFERENCES, build_suite_tables
from uniaudio.evaluate.probing.task_embeddings import Protocol
from uniaudio.evaluate.probing.task_summaries import refuse_unmeasured_tasks
from uniaudio.outputs import write_json
from uniaudio.report.probe_scores import FINGERPRINTS


def run_probe(
    models: Sequence[str],
    data: Sequence[str] = (),
    suite: str | None = None,
    protocol: str = "masked",
    out: Path | None = None,
    seeds: int = 3,
    layers: bool = False,
    trust: Trust = NO_TRUST,
    references: bool = False,
    whiten: bool = False,
) -> dict[str, Any]:
    """Probe models on labelled folders, each a task, or on the tasks of a suite; print tables and write JSON.

    Rows and columns are checked before a model is loaded, and models are loaded before a clip is decoded.

    Args:
        data: labelled folders as ``NAME=FOLDER``. suite: a path, or a name found in suites/.
        layers: also probe every hidden state. references: also probe the untrained encoders of runs.
        whiten: whiten embeddings before they are probed, see ``score_task``.

    Returns:
        What is written, see docs/evaluation-probes.md.

    Raises:
        UserError: when neither folders nor a suite or both are given, or the protocol is unknown or whitens nothing;
            see ``read_task`` and ``run_suite``; at the end, for tasks, and models on tasks, without scores.
    """
    if (suite is None) == (not data):
        raise UserError("give either --data NAME=FOLDER or --suite NAME")
    if protocol not in get_args(Protocol):
        raise UserError(f"--protocol {protocol}: give {' or '.join(get_args(Protocol))}")
    if whiten and protocol != "masked":
        raise UserError(
            f"--whiten: the protocol {protocol} reproduces published scores, which are not those of whitened "
            "embeddings; use --protocol masked"
        )
    console = make_console()
    for spec in models:
        check_model(spec, trust)
    models, compared = add_references(models, trust, references)
    folders = parse_folders(data)
    chosen = build_folder_suite(folders, takes_suite=True) if suite is None else load_suite(suite)
    tasks = read_tasks(chosen)
    encoders = {spec: load_encoder(spec, trust=trust, keep_frames=True) for spec in models}
    result = run_suite(chosen, tasks, encoders, cast(Protocol, protocol), seeds, layers, console, whiten)
    result[FINGERPRINTS] = fingerprint_models(encoders)
    if compared:
        result[REFERENCES] = {run: asdict(reference) for run, reference in compared.items()}
    for table in build_suite_tables(result):
        console.print(table)
    if out is not None:
        write_json(out, result)
    refuse_unmeasured_tasks(result)
    return result
