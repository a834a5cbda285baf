"""Weights between two models, or the mean of several: WiSE-FT and model soups."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from uniaudio.build.encoders import (
    PART,
    bring_encoder_to_stage,
    build_encoder,
    load_encoder,
    open_checkpoint,
    read_prompt_width,
    read_stored_config,
)
from uniaudio.checks.named_paths import parse_folders
from uniaudio.config.run import RunConfig
from uniaudio.config.trust import NO_TRUST, Trust, remember_run
from uniaudio.console import make_console, make_table, print_warning
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.clip_probes import ProbeKind
from uniaudio.evaluate.probing.held_probes import HeldScores, probe_held
from uniaudio.evaluate.probing.labelled_folder import hold_folders, keep_measurable
from uniaudio.evaluate.probing.lost_classes import UnmeasurableTaskError
from uniaudio.evaluate.probing.task_rows import TaskRows
from uniaudio.model.lora import merge_lora, strip_lora_name
from uniaudio.outputs import write_json
from uniaudio.train.checkpoint.folders import is_complete
from uniaudio.train.checkpoint.reading import Checkpoint, describe_weights, find_difference
from uniaudio.train.checkpoint.writing import Snapshot, save_checkpoint
from uniaudio.train.optim import component_of
from uniaudio.train.run_lock import hold_run_folder, refuse_filled_folder
from uniaudio.train.trainable import LORA, collect_tensors, put_tensors

GRID = tuple(i / 10 for i in range(11))
HELD_OUT = 4  # every fourth clip of a train split chooses the share; the test split never does
SEEDS = 3

Tensors = dict[str, Tensor]


def interpolate_tensors(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> Tensors:
    """Return ``(1 - alpha) * start + alpha * end`` (WiSE-FT, Wortsman et al. 2022, eq. 1), tensor by tensor.

    What ``start`` lacks is taken from ``end``. Of a low-rank update only the factor ``B`` is scaled, so that the update
    itself is, as it was 0 at the start.
    """
    mixed = {}
    for name, value in end.items():
        if name not in start or f"{LORA}A" in name:
            mixed[name] = value
        else:
            mixed[name] = torch.lerp(start[name].float(), value.float(), alpha).to(value.dtype)
    return mixed


def average_tensors(models: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Return the weighted mean of models with the same tensors (model soups, Wortsman et al. 2022, section 2).

    Raises:
        UserError: when their tensors differ, or are low-rank factors, whose mean means nothing.
    """
    first = models[0]
    for other in models[1:]:
        if set(other) != set(first) or any(other[name].shape != first[name].shape for name in first):
            raise UserError("the models to average have different tensors; use runs with the same config")
    if any(LORA in name for name in first):
        raise UserError("low-rank factors cannot be averaged; merge them first (stages[].merge_lora)")
    total = sum(weights)
    return {
        name: sum(
            (model[name].float() * (w / total) for model, w in zip(models, weights, strict=True)),
            torch.zeros(first[name].shape),
        ).to(first[name].dtype)
        for name in first
    }


def make_soup(
    specs: Sequence[str],
    out: Path,
    start: str | None = None,
    weights: Sequence[float] | None = None,
    alphas: Sequence[float] = GRID,
    data: Sequence[str] = (),
    probe: str = "knn",
    trust: Trust = NO_TRUST,
) -> Path:
    """Write a checkpoint between one model and where it started, or the mean of several models.

    Args:
        specs: runs or checkpoints; one is interpolated, several are averaged.
        start: run or checkpoint to interpolate from; None: the weights that the config's encoders name.
        alphas: shares of the model to try; more than one needs ``data``.
        data: labelled folders as ``NAME=FOLDER``; a part of their train splits, held out, chooses the share.

    Raises:
        UserError: when the models do not fit together, or nothing can choose between several shares.
    """
    console = make_console()
    note = partial(print_warning, console=console)
    refuse_filled_folder(out)
    refuse_unused_options(len(specs), start, weights, alphas, data)
    opened = [open_checkpoint_or_explain(spec) for spec in specs]
    last = opened[0]
    config = read_stored_config(last, trust)
    config.require_trust(decoder=False)
    if len(opened) > 1:
        shares = list(weights or [1.0] * len(opened))
        refuse_other_decoders(opened)
        mixed = average_tensors([model.model for model in opened], shares)
        facts: dict[str, Any] = {"averaged": list(specs), "weights": shares}
    else:
        origin = load_start_tensors(config, last, start, trust)
        chosen = alphas[0]
        facts = {"from": start or "the weights named in the config", "to": specs[0]}
        if len(alphas) > 1:
            scores = score_shares(
                lambda a: build_encoder_with(config, last, interpolate_tensors(origin, last.model, a)),
                alphas,
                hold_out_sets(data, note),
                probe,
                note,
            )
            chosen = max(scores, key=lambda a: (scores[a]["mean"], a))
            console.print(build_shares_table(scores, chosen, probe))
            console.print(f"alpha {chosen:g} is kept")
            facts |= {"probe": probe, "scores": {str(alpha): by_set for alpha, by_set in scores.items()}}
        facts["alpha"] = chosen
        mixed = interpolate_tensors(origin, last.model, chosen)
    return write_soup(out, last, config, mixed, facts)


def refuse_unused_options(
    models: int,
    start: str | None,
    weights: Sequence[float] | None,
    alphas: Sequence[float],
    data: Sequence[str],
) -> None:
    """Refuse options that do nothing for so many models, weights without a mean, and shares to choose by nothing.

    Raises:
        UserError: naming the options.
    """
    if models > 1:
        if start is not None or data or len(alphas) == 1:
            raise UserError(
                "--start, --alpha and --data are for one run; several runs are averaged with --weights"
            )
        if weights is not None and len(weights) != models:
            raise UserError(f"{models} models need the same number of --weights, not {len(weights)}")
        if weights is not None and not 0 < sum(weights) < math.inf:
            shown = ",".join(f"{weight:g}" for weight in weights)
            raise UserError(f"--weights {shown}: their sum must be a number above 0")
    elif weights is not None:
        raise UserError("--weights is for several runs; for one run, give --alpha")
    elif len(alphas) > 1 and not data:
        raise UserError(
            "--data NAME=FOLDER is needed to choose alpha by probes; give it, or a value with --alpha"
        )


def refuse_other_decoders(models: Sequence[Checkpoint]) -> None:
    """Refuse to average models that were trained with different decoders: their adapters speak to others.

    Raises:
        UserError: naming both decoders.
    """
    first = models[0].bases.get("decoder", {})
    for model in models[1:]:
        decoder = model.bases.get("decoder", {})
        if key := find_difference(first, decoder):
            raise UserError(
                f"{models[0].path} was trained with the decoder {describe_weights(first, key)}, {model.path} with "
                f"{describe_weights(decoder, key)}; average runs with the same decoder"
            )


def open_checkpoint_or_explain(spec: str) -> Checkpoint:
    checkpoint = open_checkpoint(spec)
    if checkpoint is None:
        raise UserError(f"{spec} is neither a checkpoint nor a run folder with a complete checkpoint")
    return checkpoint


def load_start_tensors(config: RunConfig, end: Checkpoint, start: str | None, trust: Trust) -> Tensors:
    """Return the tensors to interpolate from: another model's, or those of the encoders that the config names.

    Fusion, adapter and decoder have no pretrained start, so without another model they stay as trained.

    Raises:
        UserError: when the other model has other tensors, or low-rank updates that cannot be averaged with these.
    """
    if start is not None:
        return load_other_start(config, end, start, trust)
    holder, structure = bring_encoder_to_stage(
        build_encoder(config, read_prompt_width(config, end)), config, end.state["stage"]
    )
    return {
        name: t.detach().clone()
        for name, t in collect_tensors(holder, structure).items()
        if component_of(name, config) in config.encoders
    }


def load_other_start(config: RunConfig, end: Checkpoint, start: str, trust: Trust) -> Tensors:
    """Return the tensors of another model under the names of this one's.

    Of the encoder these are all tensors, whether the other model trained them or not. Its low-rank updates are merged,
    so those of this model count as 0 there.

    Raises:
        UserError: see ``load_start_tensors``.
    """
    other = open_checkpoint_or_explain(start)
    tensors = {name: t for name, t in other.model.items() if not name.startswith(PART)}
    encoder = load_encoder(start, torch.device("cpu"), trust)
    merge_lora(encoder)
    tensors |= {f"{PART}{name}": parameter.detach() for name, parameter in encoder.named_parameters()}
    for name, parameter in build_encoder_with(config, end, end.model).named_parameters():
        plain = strip_lora_name(f"{PART}{name}")
        is_stored = f"{PART}{name}" in end.model or LORA in name
        if not is_stored and plain in tensors and not torch.equal(tensors[plain], parameter):
            raise UserError(
                f"--start {start}: {plain} differs from that of {end.path}, which does not store it, so that no mean "
                "of both can be stored; merge low-rank updates first (stages[].merge_lora), or leave --start out"
            )
    result: Tensors = {}
    for name, value in end.model.items():
        of_encoder, plain = name.startswith(PART), strip_lora_name(name)
        if of_encoder and LORA in name:
            result[name] = torch.zeros_like(value)
        elif plain in tensors and tensors[plain].shape == value.shape:
            result[name] = tensors[plain]
        elif of_encoder or plain in tensors:
            raise UserError(f"{start} and {end.path} do not have the same tensors")
        if f"{LORA}A" in name and not of_encoder and not torch.equal(result.get(name, value), value):
            raise UserError(
                f"--start {start}: its decoder has other low-rank updates than {end.path}, and factors of two updates "
                "cannot be interpolated; leave --start out"
            )
    return result


def build_encoder_with(config: RunConfig, checkpoint: Checkpoint, tensors: Tensors) -> Any:
    """Return the encoder of a checkpoint with other tensors in it."""
    encoder_tensors = {name: t for name, t in tensors.items() if name.startswith(PART)}
    holder, structure = bring_encoder_to_stage(
        build_encoder(config, read_prompt_width(config, checkpoint)), config, checkpoint.state["stage"]
    )
    put_tensors(holder, structure, encoder_tensors, checkpoint.path)
    return holder.encoder.eval()


def hold_out_sets(data: Sequence[str], note: Callable[[str], None]) -> list[TaskRows]:
    """Read labelled folders, given as ``NAME=FOLDER``, and hold out train clips of each, see ``hold_out_clips``.

    Raises:
        UserError: see ``hold_folders``; when no set has classes with clips enough.
    """
    held = {rows.name: rows for rows in hold_folders(parse_folders(data), note)}
    return list(keep_measurable(held, lambda name: hold_out_clips(held[name]), note).values())


def hold_out_clips(rows: TaskRows) -> TaskRows:
    """Return a task whose test clips are every fourth train clip of each class: the true test split chooses nothing.

    Raises:
        UnmeasurableTaskError: when no class has four of them.
    """
    train = rows.parts[rows.task.train]
    labels = np.array([rows.answers[i] for i in train])
    test = np.zeros(len(train), dtype=bool)
    for label in rows.classes:
        test[np.flatnonzero(labels == label)[HELD_OUT - 1 :: HELD_OUT]] = True
    if not test.any():
        what = f"its classes have fewer than {HELD_OUT} train clips to hold out from"
        raise UnmeasurableTaskError(f"--data {rows.name}: {what}", what, rows.skipped)
    return rows.select(train, {rows.task.train: train[~test], rows.task.test: train[test]})


def score_shares(
    encoder_at: Callable[[float], Any],
    alphas: Sequence[float],
    sets: Sequence[TaskRows],
    probe: str,
    note: Callable[[str], None],
) -> dict[float, dict[str, float]]:
    """Return for each share the accuracy on the held-out clips of every set, and their mean.

    A share with which a set cannot be scored cannot be chosen, unless that is so with all shares: then the set counts
    with none of them.

    Args:
        note: is given a sentence about clips that are left out, and about sets that cannot be scored.

    Raises:
        UserError: when no share can be chosen.
    """
    measured: dict[float, HeldScores] = {}
    reasons: list[str] = []
    for alpha in alphas:
        measured[alpha] = probe_held(encoder_at(alpha), sets, SEEDS, (cast(ProbeKind, probe),))
        unscored = measured[alpha].unscored
        reasons = [f"{name} cannot be scored: {reason}" for name, reason in unscored.items()] or reasons
        for sentence in (*measured[alpha].notes, *(reasons if unscored else ())):
            note(f"alpha {alpha:g}: {sentence}")
    names = list(dict.fromkeys(name for one in measured.values() for name in one.scores))
    scores: dict[float, dict[str, float]] = {}
    for alpha, one in measured.items():
        if names and all(name in one.scores for name in names):
            by_set = {name: one.scores[name][probe]["mean"] for name in names}
            scores[alpha] = {**by_set, "mean": sum(by_set.values()) / len(by_set)}
    if not scores:
        raise UserError(f"no share of the weights can be chosen: {'; '.join(reasons)}")
    return scores


def build_shares_table(scores: Mapping[float, Mapping[str, float]], chosen: float, probe: str) -> Table:
    """Lay out the accuracies by share."""
    columns = ("alpha", *next(iter(scores.values())))
    title = f"{probe} on held-out train clips, by share of the trained weights"
    table = make_table(title, *columns, numbers=len(columns))
    for alpha, by_set in scores.items():
        style = "bold green" if alpha == chosen else ""
        table.add_row(f"{alpha:g}", *(f"{value:.3f}" for value in by_set.values()), style=style)
    return table


def write_soup(
    out: Path, model: Checkpoint, config: RunConfig, mixed: Tensors, facts: Mapping[str, Any]
) -> Path:
    """Write a run folder with one checkpoint, from which probes, questions and exports go as from any run."""
    state = {**model.state, "soup": facts}
    tensors = {name: tensor.contiguous() for name, tensor in mixed.items()}
    snapshot = Snapshot(model.state["step"], state, model=tensors)
    with hold_run_folder(out):
        refuse_filled_folder(out)
        saved = save_checkpoint(
            out, snapshot, config.model_copy(update={"output_dir": str(out)}), model.bases
        )
        kept = model.path.parent.parent / "decoder"
        if kept.is_dir():
            shutil.copytree(kept, out / "decoder")
        write_json(out / "soup.json", facts)
        assert is_complete(saved)
        if config.reads_environment:  # of a run made here; others stay somebody else's
            remember_run(out, config.collect_trust_settings(), config.trust)
        load_encoder(str(out), torch.device("cpu"), config.trust)  # what was written can be read
    return saved
