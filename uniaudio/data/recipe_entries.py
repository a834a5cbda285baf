"""The entries of a recipe: a dataset's split with templates, to train on or to evaluate; opening their rows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from uniaudio.data.augment import Augmenter
from uniaudio.data.card import DatasetCard
from uniaudio.data.labels import may_name_classes, name_answers
from uniaudio.data.long_clips import LongClips
from uniaudio.data.sources.base import Row, Source
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.template import Rendered, Template
from uniaudio.errors import RowError, UserError, convert_to_row_error

AnyEntry = TypeVar("AnyEntry", bound="RecipeEntry")


@dataclass(frozen=True, kw_only=True)
class RecipeEntry:
    """What the lines of `train` and `evaluate` have in common: a dataset's split and templates with questions about it.

    Args:
        constants: inputs of the templates that the recipe states.
        long_clips: what becomes of long clips; None where neither the line nor its card says it.
    """

    dataset: DatasetCard
    templates: tuple[Template, ...]
    split: str
    constants: Mapping[str, Any]
    augmenter: Augmenter | None = None
    long_clips: LongClips | None = None

    @property
    def name(self) -> str:
        """Unique among the entries of a recipe."""
        raise NotImplementedError

    @property
    def longest_stretch(self) -> float:
        """The largest ratio of a clip's length after augmentation to that before."""
        return 1.0 if self.augmenter is None else self.augmenter.longest_stretch

    @property
    def mean_stretch(self) -> float:
        """The expected ratio of a clip's length after augmentation to that before."""
        return 1.0 if self.augmenter is None else self.augmenter.mean_stretch

    @property
    def label_sets(self) -> tuple[tuple[str, ...] | None, ...]:
        """The closed sets of the templates."""
        return tuple(template.labels for template in self.templates)

    def render_question(self, row: Row, template: Template, rng: random.Random | None = None) -> Rendered:
        """Fill a row of the dataset into one of the templates.

        Args:
            rng: see ``Template.render``.

        Raises:
            RowError: when the row cannot be used.
        """
        with convert_to_row_error("template error", row.key):
            rendered = template.render({**self.dataset.fields(row.columns), **self.constants}, rng)
        if len(row.audio) != template.num_clips:
            raise RowError(
                "template error", f"{len(row.audio)} clip(s) for {template.num_clips} audio mark(s)"
            )
        return rendered


@dataclass(frozen=True, kw_only=True)
class Entry(RecipeEntry):
    """A dataset's split with questions of one or more templates; ``share`` of all draws."""

    share: float

    @property
    def name(self) -> str:
        """Unique among the lines of a recipe; a replayed line with, say, another augmentation may have the same one."""
        return name_pair(self.dataset, self.templates, self.split, "train")

    def choose_long_clips(self, longest: float, where: str) -> LongClips:
        """Return what becomes of long clips, with the lengths of crops and windows stated.

        Args:
            longest: seconds of the longest clip that the run can train on.

        Raises:
            UserError: for lengths that do not fit that or each other.
        """
        chosen = self.long_clips or LongClips()
        if chosen.seconds is not None and chosen.seconds > longest:
            raise UserError(
                f"{where}: long_clips.seconds: {chosen.seconds:g} is more than the longest clip of "
                f"the run, {longest:g} s (data.max_seconds, by default the stage's "
                "budget.audio_seconds); lower the one or raise the other"
            )
        return chosen if chosen.how == "skip" else chosen.fill_seconds(longest, where)


@dataclass(frozen=True, kw_only=True)
class EvalEntry(RecipeEntry):
    """A dataset's split whose answers to one template are scored.

    Args:
        scoring: what the line changes of the template's.
    """

    max_examples: int | None
    condition: str | None = None
    scoring: Mapping[str, Any] = field(default_factory=dict)

    def choose_long_clips(self, usual: float) -> LongClips:
        """Return what becomes of long clips, with its lengths stated; windows where neither line nor card says it.

        Args:
            usual: length of a crop or window that is not stated, in seconds. A hop above it becomes the same.
        """
        if self.long_clips is None and len(self.dataset.audio) > 1:
            return LongClips("skip")
        chosen = self.long_clips or LongClips("windows")
        if chosen.seconds is None and chosen.hop is not None:
            chosen = replace(chosen, hop=min(chosen.hop, usual))
        return chosen if chosen.how == "skip" else chosen.fill_seconds(usual, f"evaluation set {self.name}")

    @property
    def template(self) -> Template:
        """The only one of the templates."""
        return self.templates[0]

    @property
    def name(self) -> str:
        """Unique among the evaluation sets of a recipe."""
        name = name_pair(self.dataset, self.templates, self.split, "test")
        return name if self.condition is None else f"{name}@{self.condition}"


def name_pair(dataset: DatasetCard, templates: Sequence[Template], split: str, usual: str) -> str:
    """Return ``esc50:environmental_sound``, and the split too where it is not the usual one."""
    name = f"{dataset.name}:{'+'.join(template.task for template in templates)}"
    return name if split == usual else f"{name}:{split}"


def open_entry(entry: AnyEntry) -> tuple[AnyEntry, Source]:
    """Open the rows of an entry; return it with the closed sets that the data themselves state.

    Raises:
        UserError: when the source cannot be opened, or a wording lists labels that nothing states.
    """
    source = open_source(entry.dataset, entry.split)
    return take_class_names(entry, source), source


def take_class_names(entry: AnyEntry, source: Source) -> AnyEntry:
    """Return an entry with the names of the source's classes as closed sets, where nothing before them states one."""
    if not any(may_name_classes(template, entry.dataset) for template in entry.templates):
        return entry
    return replace(
        entry, templates=name_answers(entry.templates, entry.dataset, entry.constants, source.classes)
    )
