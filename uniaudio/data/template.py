"""Templates: what is asked, and what the answer is. Checked when read, before any data."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from uniaudio.config.nearest import suggest_name
from uniaudio.config.records import build
from uniaudio.config.search_paths import find_file, require_name_of_file
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.config.text_files import compose
from uniaudio.data.field_values import ClassIndex, has_no_value, parse_list, write_value
from uniaudio.data.jinja import CLOSING, OPENING, TOKEN, Text, Wording
from uniaudio.data.labels import check_label_names, read_label_set, refuse_unknown_labels
from uniaudio.data.template_file import Scoring, TemplateFile
from uniaudio.errors import RowError, UserError

AUDIO = "<audio>"  # the mark in template files
# private-use character that stands for it while rendering, so that data can never make a mark
MARK = "\ue000"
RESERVED = {MARK: "U+E000", OPENING: "U+E003", CLOSING: "U+E004"}


@dataclass(frozen=True)
class Rendered:
    """A prompt cut at its audio marks, the answer, and all right answers."""

    prompt: tuple[str, ...]
    answer: str
    references: tuple[str, ...]


LabelOrigin = Literal["none", "template", "classes", "card", "recipe"]


@dataclass(frozen=True)
class Template:
    """One task in words.

    Args:
        labels: the closed set of answers; None where answers are open. label_origin: what states it.
        num_clips: ``<audio>`` marks of a prompt.
        multilabel: an answer is a list of labels with ``scoring.separator`` between them.
        label_values: what a recipe, card or data set states the closed set as: values of ``answer_column``.
    """

    task: str
    domain: str
    inputs: tuple[str, ...]
    labels: tuple[str, ...] | None
    prompts: tuple[Text, ...]
    target: Text | None
    target_one_of: str | None
    scoring: Scoring
    num_clips: int
    path: Path
    multilabel: bool = False
    label_origin: LabelOrigin = "none"
    label_values: tuple[Any, ...] = ()

    @property
    def answer_column(self) -> str | None:
        """The only input that answers are made of; None where they are made of several."""
        if self.target_one_of is not None:
            return self.target_one_of
        names = self.target.names if self.target is not None else frozenset[str]()
        return next(iter(names)) if len(names) == 1 and names <= set(self.inputs) else None

    def list_texts(self) -> tuple[str | None, ...]:
        """Return what makes the questions and answers, as the file has it."""
        target = self.target.source if self.target is not None else self.target_one_of
        return *(prompt.source for prompt in self.prompts), target

    @property
    def lists_labels(self) -> bool:
        """Whether a wording names the closed set, so that there must be one; an input `labels` is a column instead."""
        return "labels" not in self.inputs and any("labels" in prompt.names for prompt in self.prompts)

    def with_labels(self, values: Sequence[Any], origin: LabelOrigin, where: str) -> Template:
        """Return the template with a closed set of answers in place of its own.

        Args:
            values: the values that the answer's column may have, or the items of its lists. where: what states them,
                named in errors.

        Raises:
            UserError: when no answer can be made of a value, or two of them make the same one.
        """
        column = self.answer_column
        if column is None:
            used = ", ".join(sorted(self.target.names)) if self.target is not None else ""
            raise UserError(
                f"{where}: the answers of template {self.task} use {used or 'no column'}, but a "
                "closed set needs exactly one column; leave the labels out"
            )
        labels = tuple(self.render_label(column, value, where) for value in values)
        check_label_names(labels, where)
        for label in labels:
            if self.multilabel and self.scoring.separator in label:
                raise UserError(
                    f"{where}: '{label}' holds '{self.scoring.separator}', which separates the labels of an answer to "
                    f"template {self.task}; set scoring.separator of the template to another text"
                )
            for character, code in RESERVED.items():
                if character in label:
                    raise UserError(f"{where}: '{label}' holds a reserved character ({code})")
        return replace(self, labels=labels, label_origin=origin, label_values=tuple(values))

    def render_label(self, column: str, value: Any, where: str) -> str:
        """Return the answer for one value of the answer's column.

        Raises:
            UserError: when none can be made of it.
        """
        # a column of several labels holds a list, or their text as it is written
        for form in ([value], value) if self.multilabel and self.target is not None else (value,):
            try:
                text = write_value(value) if self.target is None else self.target.render({column: form})
                return compose(text.strip())
            except RowError as problem:
                reason = problem
        raise UserError(
            f"{where}: template {self.task} cannot make an answer from '{value}' ({reason.detail})"
        )

    def split_labels(self, answer: str) -> tuple[str, ...]:
        """Return the labels that a right answer names: itself, or the items of its list."""
        if not self.multilabel:
            return (answer,)
        return tuple(item.strip() for item in answer.split(self.scoring.separator) if item.strip())

    def render(self, fields: Mapping[str, Any], rng: random.Random | None) -> Rendered:
        """Fill in one row.

        Args:
            rng: draws the wording and, of several right answers, the one to learn; None takes the first.

        Raises:
            RowError: "missing column", "unknown label", "empty answer", "template error".
        """
        values = {**fields, **self.label_variable}
        for name in self.inputs:
            value = values.get(name)
            if isinstance(value, RowError):
                raise value.copy()
            if has_no_value(value):
                lacks = (
                    "it has no value" if name in values else f"columns: {', '.join(sorted(map(str, fields)))}"
                )
                raise RowError("missing column", f"template {self.task} needs '{name}'; {lacks}")
            text = str(values[name])
            for character, code in RESERVED.items():
                if character in text:
                    raise RowError("template error", f"column '{name}' holds a reserved character ({code})")
        prompt = self.prompts[rng.randrange(len(self.prompts)) if rng else 0].render(values)
        pieces = tuple(prompt.split(MARK))
        if len(pieces) != self.num_clips + 1:
            shortfall = f"a rendered prompt has {len(pieces) - 1} {AUDIO} marks instead of {self.num_clips}"
            raise RowError("template error", f"template {self.task}: {shortfall}")
        references = self.references(values)
        if self.labels:
            references = tuple(compose(answer) for answer in references)
            refuse_unknown_labels(self, references)
        answer = references[rng.randrange(len(references)) if rng else 0]
        return Rendered(tuple(map(Wording.from_rendered, pieces)), answer, references)

    @property
    def label_variable(self) -> dict[str, Any]:
        """What the texts know of the closed set."""
        return {"labels": self.labels} if self.labels and "labels" not in self.inputs else {}

    @cached_property
    def label_set(self) -> frozenset[str]:
        """The closed set, to look labels up in."""
        return frozenset(self.labels or ())

    def references(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return all right answers of a row, stripped; the evaluation knows them all."""
        if self.target is not None:
            answers = [self.target.render(values)]
        else:
            value = values[str(self.target_one_of)]
            listed = parse_list(value) if isinstance(value, str) else value
            if listed is None or isinstance(value, ClassIndex):
                listed = [value]
            if not isinstance(listed, (list, tuple)) or not listed:
                raise RowError("template error", f"'{self.target_one_of}' must be a list that is not empty")
            answers = [write_value(item) for item in listed if not has_no_value(item)]
        stripped = tuple(answer.strip() for answer in answers if answer.strip())
        if not stripped:
            raise RowError("empty answer", f"template {self.task}")
        return stripped


def load_template(name_or_path: str, near: Path | None = None) -> Template:
    """Read and check a template.

    Raises:
        UserError: naming the file and the key: unknown keys, syntax, inputs not declared or not used, prompts
            without audio marks or with different numbers of them, labels that are written twice.
    """
    path = find_file("template", name_or_path, near)
    data = build(TemplateFile, load_yaml(path), str(path))
    require_name_of_file(path, "task", data.task)
    labels = read_labels(data, path)
    prompts = tuple(
        Text(TOKEN.sub(rf"{OPENING}\1{CLOSING}", prompt.replace(AUDIO, MARK)), f"{path}: prompts[{i}]")
        for i, prompt in enumerate(data.prompts)
    )
    target = None if data.target is None else Text(data.target, f"{path}: target")
    counts = [prompt.source.count(MARK) for prompt in prompts]
    for i, count in enumerate(counts):
        if count == 0 or count != counts[0]:
            raise UserError(
                f"{path}: prompts[{i}]: must contain {AUDIO} {max(counts[0], 1)} time(s), found {count}"
            )
    check_inputs(data, prompts, target, path)
    return Template(
        task=data.task,
        domain=data.domain,
        inputs=data.inputs,
        labels=labels,
        prompts=prompts,
        target=target,
        target_one_of=data.target_one_of,
        scoring=data.scoring,
        num_clips=counts[0],
        path=path,
        multilabel=data.scoring.metric == "map",
        label_origin="none" if labels is None else "template",
    )


def read_labels(data: TemplateFile, path: Path) -> tuple[str, ...] | None:
    """Return the closed set of answers, from the template or from a text file with one label a line."""
    stated, key = (data.labels, "labels") if data.labels_from is None else (data.labels_from, "labels_from")
    if stated is None:
        return None
    return tuple(write_value(label) for label in read_label_set(stated, path.parent, f"{path}: {key}"))


def check_inputs(data: TemplateFile, prompts: tuple[Text, ...], target: Text | None, path: Path) -> None:
    """Every variable that is used must be declared, every declared one used; `labels` is always there to use."""
    used_by = {f"prompts[{i}]": prompt.names for i, prompt in enumerate(prompts)}
    used_by["target"] = target.names if target else frozenset({str(data.target_one_of)})
    known = {*data.inputs, "labels"}
    for key, names in used_by.items():
        for name in sorted(names - known):
            raise UserError(
                f"{path}: {key}: uses '{name}', but inputs are {list(data.inputs)}{suggest_name(name, known)}"
            )
    for name in data.inputs:
        if not any(name in names for names in used_by.values()):
            raise UserError(f"{path}: inputs: '{name}' is used neither by a prompt nor by the target")
