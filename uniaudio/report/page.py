"""One self-contained page about one or several runs: no network, light and dark, on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from uniaudio.console import format_difference
from uniaudio.evaluate.forgetting import ForgettingSummary
from uniaudio.evaluate.heat_tables import HeatTable
from uniaudio.evaluate.probing.suite_table import PROBES
from uniaudio.report.answers import LABEL_FIGURES, AnswerRow
from uniaudio.report.charts import (
    HEIGHT,
    WIDTH,
    build_domain_bars,
    build_loss_charts,
    build_metric_charts,
    find_stage_starts,
)
from uniaudio.report.clip_players import LONGEST, Player
from uniaudio.report.embedding_map import MOST_CLIPS, MOST_SECONDS, EmbeddingMap
from uniaudio.report.label_figures import Reliability
from uniaudio.report.probe_scores import Roles, ScoreTable
from uniaudio.report.result_files import name_baseline
from uniaudio.report.run_folder import Cost, RunRecord
from uniaudio.report.run_provenance import DataFact
from uniaudio.report.significance import Summary, compare_spreads, get_sign
from uniaudio.report.wrong_answers import WrongAnswers

SCRIPT = "page.js"
LISTED = 12  # of long lists before the rest is folded
MARKS = 6  # signs of a map
COLORS = 8  # 6 signs and 8 colours make 24 pairs before one comes again


@dataclass(frozen=True)
class ReportPage:
    """Everything on the page; what is empty has no section.

    Args:
        answered: sentences with the scores of answers. low: about scores that are no better than chance.
        endings: sentences about runs that are not finished. names: of the models in ``table``, as the page writes them.
        wrong: by heading. facts: what else a person wants to know. notes: what could not be shown, and why.
    """

    title: str
    runs: Sequence[RunRecord]
    summaries: Sequence[Summary] = ()
    plain: Sequence[str] = ()
    answered: Sequence[str] = ()
    low: Sequence[str] = ()
    endings: Sequence[str] = ()
    table: ScoreTable = field(default_factory=ScoreTable)
    roles: Roles = field(default_factory=Roles)
    names: Mapping[str, str] = field(default_factory=dict)
    answers: Sequence[AnswerRow] = ()
    confusions: Sequence[HeatTable] = ()
    reliabilities: Sequence[Reliability] = ()
    wrong: Mapping[str, WrongAnswers] = field(default_factory=dict)
    questions: Sequence[Mapping[str, str]] = ()
    forgetting: Sequence[HeatTable] = ()
    forgotten: Mapping[str, ForgettingSummary] = field(default_factory=dict)
    maps: Sequence[EmbeddingMap] = ()
    map_players: Mapping[str, Sequence[Player]] = field(default_factory=dict)
    routes: Sequence[HeatTable] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)
    data: Sequence[DataFact] = ()
    bases: Sequence[tuple[str, str, str, str]] = ()
    differences: Sequence[tuple[str, Sequence[str]]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def series(self) -> dict[str, int]:
        """Which colour every model has: a run the same in all figures, the others those behind."""
        trained = {
            self.roles.runs[run.name]: i for i, run in enumerate(self.runs) if run.name in self.roles.runs
        }
        rest = [model for model in self.roles.columns if model not in trained]
        return {**trained, **{model: len(self.runs) + i for i, model in enumerate(rest)}}

    @property
    def baseline_names(self) -> list[str]:
        """What the page calls the untrained encoders, each once, with what it is where there are two."""
        models = [*self.roles.best.values(), *self.roles.starts.values()]
        return list(dict.fromkeys(name_baseline(model, self.roles, self.names) for model in models))


def allow_breaks(text: object) -> Markup:
    """Escape a name and let it break behind the signs that join its parts, so that long ones do not widen a table."""
    return Markup(re.sub(r"((?:&\w+;|&#\d+;)|[:_/.@+-])", r"\1<wbr>", str(escape(text))))


def make_environment() -> Environment:
    """Return the Jinja environment of the page: every value is escaped, and a name that is missing is an error."""
    made = Environment(
        loader=PackageLoader("uniaudio.report", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["breakable"] = allow_breaks
    made.globals.update(
        get_sign=get_sign,
        format_difference=format_difference,
        compare_spreads=compare_spreads,
        PROBES=PROBES,
        WIDTH=WIDTH,
        HEIGHT=HEIGHT,
        LONGEST=LONGEST,
        LISTED=LISTED,
        LABEL_FIGURES=LABEL_FIGURES,
        MARKS=MARKS,
        COLORS=COLORS,
        MOST_CLIPS=MOST_CLIPS,
        MOST_SECONDS=MOST_SECONDS,
    )
    return made


def write_page(page: ReportPage, path: Path) -> Path:
    """Write the page and return its path."""
    jinja = make_environment()
    script = jinja.get_template(SCRIPT).render()
    bars = {
        probe: build_domain_bars(page.table.compute_averages(page.roles.columns, probe), page.series)
        for probe in page.table.probes
    }
    text = jinja.get_template("page.html.jinja").render(
        page=page,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        losses=build_loss_charts(page.runs),
        stages=find_stage_starts(page.runs),
        metrics=build_metric_charts(page.runs),
        bars={probe: values for probe, values in bars.items() if values},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # names of files, and so ids of clips, may hold bytes that are no text
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
