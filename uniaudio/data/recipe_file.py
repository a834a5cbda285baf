"""The file of a recipe as it is written: its keys, and what they mean."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from uniaudio.config.records import OneOrMore, Strict
from uniaudio.config.usual_names import RECIPE_NAMES, UsualNames
from uniaudio.data.augment import AugmentStep
from uniaudio.data.labels import LineLabels
from uniaudio.data.long_clips import LongClipsSetting
from uniaudio.data.template_file import Scoring


class EntryFile(Strict):
    """A training set of a recipe: a dataset's split with one or several templates.

    Read by: recipe commands.
    """

    dataset: str
    """Dataset card by name or path."""
    template: OneOrMore = Field(min_length=1)
    """Template by name or path, or a list: several questions about each clip, which is encoded once."""
    split: str = "train"
    """Split of the card."""
    weight: PositiveFloat = 1.0
    """Sampling weight, relative to those of the other entries."""
    constants: dict[str, Any] = Field(default_factory=dict)
    """Values for inputs of the template for which the dataset has no column."""
    labels: LineLabels = None
    """Closed set of answers: a list, a text file with one label per line, or sets by column; `none` for open answers.
    Default: those of the card, else the class names in the data, else those of the template.
    """
    augment: tuple[AugmentStep, ...] = ()
    """Augmentation of the clips, in order. Default: none. Read by: train, check."""
    long_clips: LongClipsSetting = None
    """What to do with clips that are too long: `skip`, `crop` or `windows`, or a mapping with `how`, `seconds` and
    `hop`. Default: as in the card, else `skip`.
    """


class EvaluateFile(Strict):
    """An evaluation set of a recipe: a dataset's split with one template.

    Read by: eval, train, check, forgetting, report.
    """

    dataset: str
    """Dataset card by name or path."""
    template: str
    """Template by name or path."""
    split: str = "test"
    """Split of the card."""
    max_examples: PositiveInt | None = None
    """Largest number of rows, a sample that keeps the proportions of the classes. Default: `evaluate.max_examples` of
    the run config.
    """
    constants: dict[str, Any] = Field(default_factory=dict)
    """Values for inputs of the template for which the dataset has no column."""
    labels: LineLabels = None
    """Closed set of answers, as in `train`."""
    scoring: Scoring = Scoring()
    """Settings that override the template's `scoring` for this set, such as `{metric: map}`. Default: the template's.
    """
    condition: str | None = None
    """Named degradation of the clips, such as `noise_10db`, `reverb` or `telephone`. Default: none."""
    long_clips: LongClipsSetting = None
    """What to do with clips that are too long: `skip`, `crop` or `windows`, or a mapping with `how`, `seconds` and
    `hop`. Default: as in the card, else `windows`. The answers to the windows of a clip are combined into one.
    """


class ReplayFile(Strict):
    """Experience replay: a share of the draws goes to an older recipe.

    Read by: recipe commands.
    """

    recipe: str
    """The older recipe by name or path; its training sets keep their proportions."""
    share: float = Field(gt=0, lt=1)
    """Share of all draws, above 0 and below 1."""


class Mix(Strict):
    """How sampling weights are made: `weight ** (1 / temperature)` by examples, or
    `weight * size ** (1 / temperature)`.

    Read by: recipe commands.
    """

    by: Literal["examples", "hours", "rows"] = "examples"
    """Size of a dataset: `hours` of the split as its card states them, `rows` of the split, or `examples` for the
    written weights alone.
    """
    temperature: PositiveFloat = 1.0
    """1 is proportional to size; larger values make the shares more equal."""


class RecipeFile(Strict):
    """A recipe: the training mixture and the evaluation sets. Files inherit from another one by `base`.

    Read by: recipe commands, eval, forgetting, report.
    """

    usual_names: ClassVar[UsualNames | None] = RECIPE_NAMES
    recipe: str
    """Name of the recipe; equals the file name."""
    train: tuple[EntryFile, ...] = Field(min_length=1)
    """Training sets."""
    replay: tuple[ReplayFile, ...] = ()
    """Older recipes that get a share of the draws. Default: none."""
    evaluate: tuple[EvaluateFile, ...] = ()
    """Evaluation sets. Default: none."""
    mix: Mix = Mix()
    """How sampling weights are computed."""

    @model_validator(mode="after")
    def check_shares(self) -> RecipeFile:
        if sum(replay.share for replay in self.replay) >= 1:
            raise ValueError("the replay shares add up to 1 or more: nothing is left for `train`")
        return self
