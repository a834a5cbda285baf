"""Closed sets of answers: lists of labels, which set holds (recipe, card, data or template), and labels outside it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from uniaudio.config.nearest import suggest_name
from uniaudio.config.text_files import compose, read_text_file
from uniaudio.data.field_values import Classes, ClassIndex, has_no_value, write_value
from uniaudio.errors import RowError, UserError

if TYPE_CHECKING:  # they import what is here
    from uniaudio.data.card import DatasetCard
    from uniaudio.data.template import Template

# One label of a column as templates see it; numbers stay numbers, so that a template can compute with them.
Label = str | int | float
INVISIBLE = {"Cf", "Zs"}  # Unicode's categories of format characters and blanks
SHOWN_LABELS = 5  # of a closed set, in messages
OPEN = "none"  # as `labels` of a line: answers are open, whatever else states a set


def check_labels_are_text(labels: Any) -> Any:
    """Refuse labels that YAML has read as something else than text or a number."""
    if not isinstance(labels, list | tuple):
        return labels
    for label in labels:
        if has_no_value(label) or isinstance(label, bool):
            raise ValueError(f"a label is {label}, which is not text; put it in quotes")
    return tuple(labels)


LabelList = Annotated[tuple[Label, ...], BeforeValidator(check_labels_are_text)]
LabelSet = Annotated[tuple[Label, ...] | str, BeforeValidator(check_labels_are_text)]
LineLabels = LabelSet | dict[str, LabelSet] | None


def read_label_set(stated: tuple[Label, ...] | str, folder: Path, where: str) -> tuple[Label, ...]:
    """Return the labels of a list, or of a text file with one label a line (blank lines are left out).

    Args:
        folder: that the path of the file is relative to. where: file and key, named in errors.

    Raises:
        UserError: when there is no such file, it is no text, or the set is empty or names a label twice.
    """
    labels: tuple[Label, ...]
    if isinstance(stated, str):
        file = folder / Path(stated).expanduser()
        if not file.is_file():
            raise UserError(
                f"{where}: there is no file {file}; write a list, or a text file with one label per line"
            )
        labels = tuple(line.strip() for line in compose(read_text_file(file)).split("\n") if line.strip())
        where = f"{where}: {file}"
    else:
        labels = tuple(compose(label.strip()) if isinstance(label, str) else label for label in stated)
    check_label_names([write_value(label) for label in labels], where)
    return labels


def check_label_names(names: Sequence[str], where: str) -> None:
    """Refuse a set that is empty, has an empty label, or the same label twice.

    Raises:
        UserError: naming the label.
    """
    if not names:
        raise UserError(f"{where}: is empty; name at least one label")
    seen: set[str] = set()
    for name in names:
        if not name:
            raise UserError(f"{where}: a label is empty; give it a name or leave it out")
        if name in seen:
            raise UserError(f"{where}: {name} is written twice; keep one of them")
        seen.add(name)


def describe_equal_spellings(labels: Sequence[str]) -> str:
    """Return a sentence about labels that differ in upper and lower case alone, or an empty text."""
    spellings: dict[str, list[str]] = {}
    for label in labels:
        spellings.setdefault(label.strip().lower(), []).append(label)
    groups = [group for group in spellings.values() if len(group) > 1]
    if not groups:
        return ""
    first = ", ".join(groups[0])
    more = f" (and {len(groups) - 1:,} more)" if len(groups) > 1 else ""
    return (
        f"labels differ only in upper and lower case: {first}{more}; to merge them, compute the column under "
        '`columns` in the card, as in {label: "{{ label | lower }}"}, and write each label once'
    )


def read_label_sets(
    stated: Mapping[str, tuple[Label, ...] | str], folder: Path, where: str
) -> dict[str, tuple[Label, ...]]:
    """Return the label sets of several columns, see ``read_label_set``."""
    return {column: read_label_set(labels, folder, f"{where}.{column}") for column, labels in stated.items()}


def close_answers(
    templates: Sequence[Template],
    card: DatasetCard,
    stated: LineLabels,
    constants: Mapping[str, Any],
    where: str,
    near: Path,
) -> tuple[Template, ...]:
    """Return templates with the closed sets that a line of a recipe or the card states; else with their own.

    Args:
        stated: `labels` of the line. constants: of the line. where: file and key of `labels`, named in errors.
        near: the folder of the recipe.

    Raises:
        UserError: for labels that cannot be answers of a template, or that no template takes.
    """
    if stated == OPEN:
        closed = tuple(replace(template, labels=None, label_origin="recipe") for template in templates)
    elif isinstance(stated, dict):
        sets = read_label_sets(stated, near, where)
        columns = [template.answer_column or "" for template in templates]
        for column in sets:
            if column not in columns:
                raise UserError(
                    f"{where}: no template of this entry answers with column "
                    f"'{column}'{suggest_name(column, columns)}; they answer with "
                    f"{', '.join(filter(None, columns)) or 'several columns'}"
                )
        closed = tuple(
            template.with_labels(sets[column], "recipe", f"{where}.{column}")
            if column in sets
            else take_card_labels(template, card, constants)
            for template, column in zip(templates, columns, strict=True)
        )
    elif stated is not None:
        if len(templates) > 1:
            raise UserError(
                f"{where}: the entry has several templates; give the labels by column: {{COLUMN: [...]}}"
            )
        closed = (templates[0].with_labels(read_label_set(stated, near, where), "recipe", where),)
    else:
        closed = tuple(take_card_labels(template, card, constants) for template in templates)
    for template in closed:
        if template.lists_labels and not template.labels and not may_name_classes(template, card):
            raise UserError(explain_missing_labels(template, card))
    return closed


def describe_line_labels(templates: Sequence[Template]) -> dict[str, Any]:
    """Return `labels` of a line that states the same sets for its templates; nothing where it states none."""
    stated = [template for template in templates if template.label_origin == "recipe"]
    if not stated:
        return {}
    if all(template.labels is None for template in stated):
        return {"labels": OPEN}
    return {"labels": {template.answer_column: list(template.label_values) for template in stated}}


def describe_card_labels(card: DatasetCard, classes: Mapping[str, Classes]) -> dict[str, list[Any]]:
    """Return `labels` of a card over the same rows where classes are stored by their names.

    Args:
        classes: of the columns, as they are stored now.
    """
    sets = {name: card.find_labels(name, classes) for name in (*card.labels, *card.columns, *classes)}
    return {
        name: [str(label) if isinstance(label, ClassIndex) else label for label in labels]
        for name, labels in sets.items()
        if labels is not None
    }


def take_card_labels(template: Template, card: DatasetCard, constants: Mapping[str, Any]) -> Template:
    """Return a template with the closed set that the card states for the column of its answers, if it does."""
    column = template.answer_column
    if column is None or column in constants or column not in card.labels:
        return template
    return template.with_labels(card.labels[column], "card", f"{card.path}: labels.{column}")


def may_name_classes(template: Template, card: DatasetCard) -> bool:
    """Return whether the names of classes in the data may still give a template its closed set."""
    return template.label_origin in ("none", "template") and card.may_name_classes


def explain_missing_labels(template: Template, card: DatasetCard) -> str:
    """Say that a wording needs a closed set."""
    return (
        f"template {template.task} uses `labels` in a prompt, but they are not defined for dataset "
        f"{card.name}; write `labels: {{{template.answer_column or 'COLUMN'}: [...]}}` in its card, "
        "or in the recipe's entry"
    )


def name_answers(
    templates: Sequence[Template],
    card: DatasetCard,
    constants: Mapping[str, Any],
    classes: Mapping[str, Classes],
) -> tuple[Template, ...]:
    """Return templates with the names of classes as closed sets, where recipe and card state none.

    Args:
        classes: of the columns of the opened source.

    Raises:
        UserError: when a wording lists labels that nothing states.
    """
    named = []
    for template in templates:
        column = template.answer_column
        if column is not None and column not in constants and may_name_classes(template, card):
            values = card.find_labels(column, classes, template.multilabel or template.target is None)
            if values is not None:
                where = f"dataset {card.name}: classes of '{column}'"
                template = template.with_labels(values, "classes", where)
        if template.lists_labels and not template.labels:
            raise UserError(explain_missing_labels(template, card))
        named.append(template)
    return tuple(named)


def refuse_unknown_labels(template: Template, answers: Sequence[str]) -> None:
    """Refuse right answers of a row with a label that is not in the closed set.

    Raises:
        RowError: "unknown label".
    """
    for label in (label for answer in answers for label in template.split_labels(answer)):
        if label in template.label_set:
            continue
        shown = write_out_invisible(label)
        what = f"'{shown}'" if shown == label else f"'{shown}' (with characters that are not visible)"
        listed = ", ".join(template.labels[:SHOWN_LABELS]) if template.labels else ""
        more = ", ..." if template.labels and len(template.labels) > SHOWN_LABELS else ""
        detail = f"{what} is not one of the labels of {template.task}: {listed}{more}"
        raise RowError("unknown label", detail)


def write_out_invisible(text: str) -> str:
    """Return a text with codes in place of the characters that cannot be seen, such as marks of direction or a blank
    that does not break.
    """
    return "".join(
        c if c == " " or unicodedata.category(c) not in INVISIBLE else f"\\u{ord(c):04x}" for c in text
    )
