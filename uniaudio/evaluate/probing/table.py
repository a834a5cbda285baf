"""Probes of several models on several sets, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from uniaudio.evaluate.embedding import embed_clips
from uniaudio.evaluate.probing.labelled_folder import LabelledSet
from uniaudio.evaluate.probing.probes import KINDS, probe
from uniaudio.model.encoders.base import AudioEncoder

Scores = dict[str, dict[str, dict[str, dict[str, float]]]]  # set -> model -> probe -> mean and std


def probe_models(
    encoders: Mapping[str, AudioEncoder],
    sets: Sequence[LabelledSet],
    seeds: int,
    told: Callable[[str], None] = lambda text: None,
    kinds: Sequence[str] = KINDS,
) -> Scores:
    """Embed every set with every model and probe the embeddings, with these kinds of probes."""
    scores: Scores = {}
    for labelled in sets:
        scores[labelled.name] = {}
        for name, encoder in encoders.items():
            told(f"{labelled.name}: {name}")
            train, test = (embed_clips(encoder, c) for c in (labelled.train_clips, labelled.test_clips))
            scores[labelled.name][name] = probe(
                train, labelled.train_labels, test, labelled.test_labels, seeds, kinds=kinds
            )
    return scores


def probe_table(scores: Scores) -> Table:
    """Lay out mean ± spread, with the difference to the first model of each set."""
    table = Table(title="probes: test accuracy (difference to the first model)", title_justify="left")
    for column in ("set", "model", "linear", "MLP", "kNN"):
        table.add_column(column, justify="left" if column in ("set", "model") else "right")
    labels = short_names(sorted({model for models in scores.values() for model in models}))
    for set_name, models in scores.items():
        first = next(iter(models.values()))
        for index, (model, result) in enumerate(models.items()):
            cells = []
            for kind in ("linear", "mlp", "knn"):
                text = f"{result[kind]['mean']:.3f} ± {result[kind]['std']:.3f}"
                delta = result[kind]["mean"] - first[kind]["mean"]
                cells.append(text if index == 0 else f"{text} ({delta:+.3f})")
            table.add_row(set_name if index == 0 else "", labels[model], *cells)
    return table


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the last parts of paths, as many as tell the names apart; what stands before a colon is kept."""
    parts = {name: name.rpartition(":")[2].rstrip("/").split("/") for name in names}
    before = {name: name.rpartition(":")[0] for name in names}
    for count in range(1, max(map(len, parts.values()), default=0) + 1):
        short = {name: f"{before[name]}:{'/'.join(parts[name][-count:])}".removeprefix(":") for name in names}
        if len(set(short.values())) == len(names):
            return short
    return {name: name for name in names}
