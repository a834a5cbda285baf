"""Templates: what is asked, and what the answer is. Checked when read, before any data."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from uniaudio.config.nearest import suggest_name
from uniaudio.config.records import Strict, build
from uniaudio.config.search_paths import find_file
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.config.text_files import compose, read_text_file
from uniaudio.data.field_values import ClassIndex, has_no_value, parse_list, write_value
from uniaudio.data.jinja import Text
from uniaudio.data.wording import CLOSING, OPENING, TOKEN, Wording
from uniaudio.errors import RowError, UserError

AUDIO = "<audio>"  # the mark in template files
MARK = (
    "\ue000"  # private-use character that stands for it while rendering, so that data can never make a mark
)
RESERVED = {MARK: "U+E000", OPENING: "U+E003", CLOSING: "U+E004"}


class Scoring(Strict):
    """How answers are scored.

    Read by: eval, train, forgetting.
    """

    metric: Literal["accuracy", "wer", "cer", "bleu", "meteor", "cider", "map"] = "accuracy"
    """Accuracy, word or character error rate, BLEU, METEOR, CIDEr-D, or mean average precision of tags."""
    normalize: Literal["none", "lowercase", "words", "whisper", "whisper_english"] = "lowercase"
    """Text normalisation before comparison: `none`, `lowercase`, `words` (no punctuation), or Whisper's
    normalisers.
    """
    tokenize: Literal["auto", "words", "characters", "zh", "ja", "ko", "th", "lo", "km", "my"] = "auto"
    """What counts as a word in WER and BLEU: `auto` goes by script, `words` cuts at blanks, `characters`
    everywhere, a language takes its tokenizer.
    """
    separator: str = Field(default=";", min_length=1)
    """Text between the tags of an answer, for `map`."""
    likelihood: Literal["sum", "mean"] = "sum"
    """How labels of a closed set are compared: by the `sum` of their tokens' log-likelihoods, or by the
    `mean`, which does not favour short labels.
    """


class TemplateFile(Strict):
    """A template: what is asked, and what the answer is.

    Read by: recipe commands, eval, forgetting, report.
    """

    task: str
    """Name of the task; equals the file name."""
    domain: Literal["speech", "sound", "music"]
    """Domain of the task, for averages and charts."""
    inputs: tuple[str, ...]
    """Columns that prompts and target use, all of them and no other."""
    labels: tuple[str | int | float, ...] | None = None
    """Closed set of answers, also available to the prompts as `labels`. Default: answers are open."""
    labels_from: str | None = None
    """Text file with one label a line, relative to the template, in place of `labels`."""
    prompts: tuple[str, ...] = Field(min_length=1)
    """Wordings of the question as Jinja texts with `<audio>` in place of each clip. Training draws one,
    evaluation takes the first. For Whisper's own decoder they may hold its task tokens, such as
    `<|transcribe|>`.
    """
    target: str | None = None
    """The answer as a Jinja text. Either `target` or `target_one_of` is required."""
    target_one_of: str | None = None
    """Column with a list of right answers: training draws one, evaluation accepts all."""
    scoring: Scoring = Scoring()
    """How answers are scored."""

    @field_validator("labels", mode="before")
    @classmethod
    def check_labels_are_written(cls, labels: Any) -> Any:
        odd = [label for label in labels or () if label is None or isinstance(label, bool)]
        if odd:
            raise ValueError(f"a label is {odd[0]}, which is not text; put it in quotes")
        return tuple(labels) if isinstance(labels, list) else labels

    @model_validator(mode="after")
    def check_one_target(self) -> TemplateFile:
        if (self.target is None) == (self.target_one_of is None):
            raise ValueError("give exactly one of `target` and `target_one_of`")
        if self.labels is not None and self.labels_from is not None:
            raise ValueError("give `labels` or `labels_from`, not both")
        return self


@dataclass(frozen=True)
class Rendered:
    """A prompt cut at its audio marks, the answer, and all right answers."""

    prompt: tuple[str, ...]
    answer: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """One task in words. ``num_clips`` counts the ``<audio>`` marks of a prompt."""

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

    def render(self, fields: Mapping[str, Any], rng: random.Random | None) -> Rendered:
        """Fill in one row.

        Args:
            rng: draws the wording and, of several right answers, the one to learn; None takes the first.

        Raises:
            RowError: "missing column", "unknown label", "empty answer", "template error".
        """
        values = {**fields, **({"labels": self.labels} if self.labels else {})}
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
            shortfall = f"a prompt came out with {len(pieces) - 1} {AUDIO} marks instead of {self.num_clips}"
            raise RowError("template error", f"template {self.task}: {shortfall}")
        references = self.references(values)
        if self.labels:
            references = tuple(compose(answer) for answer in references)
        for answer in references:
            if self.labels and answer not in self.labels:
                raise RowError("unknown label", f"'{answer}' is not one of the labels of {self.task}")
        answer = references[rng.randrange(len(references)) if rng else 0]
        return Rendered(tuple(map(Wording.from_rendered, pieces)), answer, references)

    def references(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return all right answers of a row, stripped; the evaluation knows them all."""
        if self.target is not None:
            answers = [self.target.render(values)]
        else:
            listed = values[str(self.target_one_of)]
            if isinstance(listed, str):
                listed = parse_list(listed) if parse_list(listed) is not None else [listed]
            elif isinstance(listed, ClassIndex):
                listed = [listed]
            if not isinstance(listed, (list, tuple)) or not listed:
                raise RowError(
                    "template error", f"'{self.target_one_of}' must be a list with something in it"
                )
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
    if data.task != path.stem:
        raise UserError(
            f"{path}: task is '{data.task}', but the file is named {path.stem}.yaml; make them equal"
        )
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
    check_inputs(data, prompts, target, labels, path)
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
    )


def read_labels(data: TemplateFile, path: Path) -> tuple[str, ...] | None:
    """Return the closed set of answers, from the template or from a text file with one label a line."""
    if data.labels_from is not None:
        file = path.parent / data.labels_from
        if not file.is_file():
            raise UserError(f"{path}: labels_from: there is no file {file}")
        labels = tuple(line.strip() for line in compose(read_text_file(file)).split("\n") if line.strip())
    elif data.labels is not None:
        labels = tuple(compose(str(label)) for label in data.labels)
    else:
        return None
    doubled = [label for label, count in Counter(labels).items() if count > 1]
    if doubled or not labels:
        raise UserError(f"{path}: labels: {f'{doubled[0]} is written twice' if doubled else 'is empty'}")
    return labels


def check_inputs(
    data: TemplateFile,
    prompts: tuple[Text, ...],
    target: Text | None,
    labels: tuple[str, ...] | None,
    path: Path,
) -> None:
    """Every variable that is used must be declared, every declared one used."""
    used_by = {f"prompts[{i}]": prompt.names for i, prompt in enumerate(prompts)}
    used_by["target"] = target.names if target else frozenset({str(data.target_one_of)})
    known = set(data.inputs) | ({"labels"} if labels else set())
    for key, names in used_by.items():
        for name in sorted(names - known):
            raise UserError(
                f"{path}: {key}: uses '{name}', but inputs are {list(data.inputs)}{suggest_name(name, known)}"
            )
    for name in data.inputs:
        if not any(name in names for names in used_by.values()):
            raise UserError(f"{path}: inputs: '{name}' is used by no prompt and not by the target")
