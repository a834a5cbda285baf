"""One self-contained page about a run: no script, no network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from uniaudio.evaluate.figures import confusion, loss_curves, probe_bars

CLOSED = 24  # a set with at most so many different answers gets a confusion matrix
WRONG_SHOWN = 12


def environment() -> Environment:
    """Return the Jinja environment of the page; every value is escaped."""
    return Environment(loader=PackageLoader("uniaudio.evaluate", "."), autoescape=True)


def verdict(probes: Mapping[str, Any]) -> list[str]:
    """Say first what moved, and whether it moved by more than its spread."""
    sentences = []
    for name, models in probes.items():
        if len(models) < 2:
            continue
        first, *_, last = models.values()
        for kind in ("linear", "mlp", "knn"):
            delta = last[kind]["mean"] - first[kind]["mean"]
            spread = (first[kind]["std"] ** 2 + last[kind]["std"] ** 2) ** 0.5
            word = "within its spread" if abs(delta) <= 2 * spread else "better" if delta > 0 else "worse"
            sentences.append(
                f"{name}, {kind} probe: {first[kind]['mean']:.3f} to {last[kind]['mean']:.3f} ({delta:+.3f}, {word})"
            )
    return sentences


def write_report(
    path: Path,
    title: str,
    metrics_rows: Sequence[Mapping[str, Any]],
    probes: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    questions: Sequence[Mapping[str, str]],
    config_text: str,
    facts: Mapping[str, Any],
) -> Path:
    """Write the page.

    Args:
        metrics_rows: rows of ``metrics.jsonl``.
        probes: ``{set: {model: {probe: {"mean", "std"}}}}``, the starting model first.
        evaluations: results of ``evaluate_entry`` by name.
        questions: each with ``clip``, ``question``, ``answer`` and ``reference``.
        facts: what else a person wants to know, by name.
    """
    rows = [row for row in metrics_rows if row.get("loss") is not None]
    figures = {
        "loss": Markup(loss_curves(rows)) if rows else "",
        "probes": Markup(probe_bars(probes)) if probes else "",
    }
    matrices = {
        name: Markup(confusion(result["answers"]))
        for name, result in evaluations.items()
        if len({item["reference"] for item in result["answers"]}) <= CLOSED
    }
    wrong = {
        name: [item for item in result["answers"] if not item["right"]][:WRONG_SHOWN]
        for name, result in evaluations.items()
    }
    page = (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            verdict=verdict(probes),
            rows=rows,
            figures=figures,
            probes=probes,
            evaluations=evaluations,
            matrices=matrices,
            wrong=wrong,
            questions=questions,
            config_text=config_text,
            facts=facts,
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
