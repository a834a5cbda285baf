"""Tables and curves of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results import Move, Result, every_figure, figure_of, load_of
from rich.table import Table

HIDDEN = ("clips", "rows", "trained", "steps", "tokens", "audio_seconds")  # in the JSON, not in the table


def short(value: float) -> str:
    """Write a number with as many digits as a measurement is good for."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def titled(title: str, columns: Sequence[str], left: Sequence[str]) -> Table:
    """Return a table whose numbers stand on the right."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table


def one_table(result: Result) -> Table:
    """Lay out every side of every case with all that was measured."""
    names = list(dict.fromkeys(name for _, _, name, _ in every_figure(result) if name not in HIDDEN))
    facts = result["machine"]
    where = (
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}, commit {facts['commit']}"
    )
    heads = ["case", "side", *(name.replace("_", " ") for name in names)]
    table = titled(f"{result['title']}\n{where}", heads, ("case", "side"))
    for case, sides in result["cases"].items():
        for number, (side, figures) in enumerate(sides.items()):
            cells = [short(figures[name]["value"]) if name in figures else "" for name in names]
            table.add_row("" if number else case, side, *cells)
    return table


def summary(results: Sequence[Result]) -> Table:
    """One row for every side of every case of every benchmark: its headline and its memory."""
    columns = ("benchmark", "case", "side", "figure", "value", "unit", "times faster", "GiB", "runs", "load")
    left = ("benchmark", "case", "side", "figure", "unit", "runs")
    table = titled("all benchmarks: the best of all runs", columns, left)
    for result in results:
        for case, sides in result["cases"].items():
            for side, figures in sides.items():
                name, figure = headline_of(result, figures)
                faster, memory = (figures.get(key) for key in ("times_faster", "peak_gib"))
                table.add_row(
                    *(result["benchmark"], case, side, name.replace("_", " "), short(figure["value"])),
                    figure_of(name).unit,
                    f"{faster['value']:.2f}x" if faster else "",
                    f"{memory['value']:.2f}" if memory else "",
                    " ".join(short(value) for value in figure["runs"]),
                    f"{load_of(figures):.1f}",
                )
        table.add_section()
    return table


def headline_of(result: Result, figures: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """Return the figure that a side is told by: the benchmark's own, or the first that is judged."""
    if result["headline"] in figures:
        return result["headline"], figures[result["headline"]]
    return next((name, figure) for name, figure in figures.items() if figure_of(name).better)


def moved_table(moves: Sequence[Move], against: Mapping[str, str]) -> Table:
    """Lay out what moved; ``against`` tells for each benchmark what it was compared with."""
    what = "; ".join(f"{name}: {when}" for name, when in against.items()) or "nothing stored to compare with"
    columns = ("benchmark", "case", "side", "figure", "was", "is", "change", "", "load then", "now")
    table = titled(f"moved, against {what}", columns, ("benchmark", "case", "side", "figure", ""))
    if not moves:
        table.add_row("nothing")
    for move in moves:
        table.add_row(
            *(move.benchmark, move.case, move.side, move.figure.replace("_", " ")),
            *(short(move.old), short(move.new), f"{move.change:+.0%}"),
            "[green]better[/green]" if move.better else "[red]worse[/red]",
            *(f"{load:.1f}" for load in move.loads),
        )
    return table


def has_curve(result: Result) -> bool:
    """Whether a result has cases of several clip lengths."""
    return sum(case.replace(".", "").isdigit() for case in result["cases"]) > 1


def draw(result: Result, path: Path) -> None:
    """Draw how many times faster and smaller ours is over the clip length; the mix is a dotted line."""
    from matplotlib.figure import Figure  # only when asked for

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    ours = {case: sides["ours"] for case, sides in result["cases"].items() if "ours" in sides}
    lengths = sorted((case for case in ours if case.replace(".", "").isdigit()), key=float)
    for name, label in (("times_faster", "time"), ("times_less_memory", "peak memory")):
        heights = [ours[case][name]["value"] for case in lengths]
        (line,) = axes.loglog([float(case) for case in lengths], heights, "o-", label=label)
        if "mix" in ours:
            mix = ours["mix"][name]["value"]
            axes.axhline(mix, color=line.get_color(), linestyle=":", label=f"{label}, mix")
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xticks([float(case) for case in lengths], lengths)
    axes.minorticks_off()
    axes.set(xlabel="seconds of a clip", ylabel="stock / ours", title=result["title"])
    axes.legend()
    figure.savefig(path, dpi=150)
