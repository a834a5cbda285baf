"""The tasks that a checkpoint was trained on, as the page lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniaudio.data.jinja import Wording
from uniaudio.data.recipe import Recipe
from uniaudio.data.template import AUDIO, MARK, Template
from uniaudio.errors import RowError


@dataclass(frozen=True)
class TrainedTask:
    """One task of a checkpoint.

    Args:
        wordings: its questions, ``<audio>`` in the place of the clip. labels: its closed set of answers, or none.
        likelihood: what labels are compared by, ``sum`` or ``mean``, see ``Scoring``.
    """

    task: str
    domain: str
    wordings: tuple[str, ...]
    labels: tuple[str, ...]
    likelihood: str = "sum"


def list_tasks(recipes: Sequence[Recipe]) -> list[TrainedTask]:
    """Return every task of the recipes about one clip, sorted by domain and name.

    Wordings that need a column of the row (a question about the clip, for example) are left out; constants of the
    recipe are filled in.
    """
    tasks: dict[str, TrainedTask] = {}
    entries = [entry for recipe in recipes for entry in (*recipe.train, *recipe.evaluate)]
    for template, constants in ((t, entry.constants) for entry in entries for t in entry.templates):
        known = tasks.get(template.task)
        wordings = dict.fromkeys(
            [*(known.wordings if known else ()), *render_fixed_wordings(template, constants)]
        )
        if template.num_clips == 1 and wordings:
            # the sets of one task are joined; if answers are open in one of them, they are open
            labels = template.labels or ()
            if known is not None:
                labels = tuple(dict.fromkeys([*known.labels, *labels])) if known.labels and labels else ()
            tasks[template.task] = TrainedTask(
                template.task, template.domain, tuple(wordings), labels, template.scoring.likelihood
            )
    return sorted(tasks.values(), key=lambda task: (task.domain, task.task))


def render_fixed_wordings(template: Template, constants: Mapping[str, Any]) -> list[str]:
    """Return the wordings that need nothing but the template's labels and the constants."""
    values = {**constants, **template.label_variable}
    wordings: list[str] = []
    for prompt in template.prompts:
        if prompt.names <= values.keys():
            try:
                wordings.append(Wording.from_rendered(prompt.render(values).replace(MARK, AUDIO)))
            # a constant of a kind that this wording cannot take; training leaves it out, too
            except RowError:
                continue
    return wordings
