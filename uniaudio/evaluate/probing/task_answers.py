"""The answer of a row: its class, its classes, its events in time or its texts, out of the column that holds it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from uniaudio.config.nearest import suggest_name
from uniaudio.config.text_files import compose
from uniaudio.data.field_values import ClassIndex, has_no_value, parse_list, wrap_value, write_value
from uniaudio.errors import RowError
from uniaudio.evaluate.probing.suite import TaskFile


class Event(NamedTuple):
    """A sound of a class from ``onset`` to ``offset``, in seconds."""

    onset: float
    offset: float
    label: str


def read_column(fields: Mapping[str, Any], name: str) -> Any:
    """Return a column of a row.

    Raises:
        RowError: when the row lacks it, saying which columns there are, or it has no value.
    """
    if name not in fields:
        raise RowError(
            "missing column",
            f"no column '{name}'{suggest_name(name, list(fields))}; columns: {', '.join(sorted(fields))}",
        )
    if isinstance(fields[name], RowError):
        raise fields[name]
    if has_no_value(fields[name]):
        raise RowError("missing column", f"'{name}' has no value")
    return fields[name]


def parse_answer(task: TaskFile, value: Any) -> Any:
    """Understand the column with the answer; see ``TaskRows.answers``.

    Raises:
        RowError: when it holds something else.
    """
    if isinstance(value, str) and task.kind != "clip" and (listed := parse_list(value)) is not None:
        value = listed
    if task.kind == "clip":
        label = format_class(value, task.answers)
        if not label:
            raise RowError("empty answer", f"'{task.answers}' contains no text")
        return label
    if task.kind == "frame":
        return parse_events(value, task.frame.keys)
    if isinstance(value, Mapping):  # as X-ARES packs captions: numbered keys
        value = list(value.values())
    if isinstance(value, list | tuple):
        value = [
            str(item) if isinstance(item, ClassIndex) else item for item in value if not has_no_value(item)
        ]
    if isinstance(value, str):
        value = [value] if task.kind == "retrieval" else value.split(task.separator)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise RowError("broken metadata", f"'{task.answers}' must be text or a list of texts, got {value!r}")
    texts = tuple(compose(item.strip()) for item in value if item.strip())
    if task.kind == "retrieval" and not texts:
        raise RowError("missing column", f"'{task.answers}' contains no text")
    return texts


def list_labels(task: TaskFile, answer: Any) -> tuple[str, ...]:
    """Return the classes that an answer names, some perhaps several times; none for retrieval."""
    if task.kind == "retrieval":
        return ()
    if task.kind == "clip":
        return (answer,)
    if task.kind == "frame":
        return tuple(event.label for event in answer)
    return tuple(answer)


def remove_labels(task: TaskFile, answer: Any, labels: Collection[str]) -> Any:
    """Return the answer of a task with several classes in a clip without some of them."""
    if task.kind == "frame":
        return tuple(event for event in answer if event.label not in labels)
    return tuple(label for label in answer if label not in labels)


def format_class(value: Any, name: str) -> str:
    """Return the class of a clip as text, without blanks around it and with composed accents, as answers are trained.

    Raises:
        RowError: for a list or a mapping.
    """
    if isinstance(value, bool):
        return str(value)
    try:
        return compose(str(write_value(wrap_value(value, name))).strip())
    except RowError as problem:
        raise RowError(
            "broken metadata", f"'{name}' must be one text ({problem.detail}), got {value!r}"
        ) from problem


def parse_events(value: Any, keys: tuple[str, str, str]) -> tuple[Event, ...]:
    """Read a list of mappings with beginning, end and class.

    Raises:
        RowError: when it is none, or an event ends before it begins.
    """
    onset, offset, label = keys
    try:
        events = tuple(
            Event(
                float(item[onset]),
                float(item[offset]),
                "" if has_no_value(item[label]) else format_class(item[label], label),
            )
            for item in value
        )
    except (TypeError, KeyError, ValueError) as problem:
        raise RowError(
            "broken metadata", f"events must be a list of {{{', '.join(keys)}}} ({problem})"
        ) from problem
    for event in events:
        if not event.label:
            raise RowError("empty answer", f"an event at {event.onset:g} s has no '{label}'")
        if not 0 <= event.onset < event.offset < float("inf"):
            raise RowError(
                "broken metadata", f"an event from {event.onset:g} to {event.offset:g} s is not valid"
            )
    return events
