"""What the columns of rows hold: how many rows have a value, which values, and of what kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from uniaudio.data.field_values import ClassIndex, has_no_value, parse_list, write_value
from uniaudio.data.jinja_comparison import NUMBER

MOST_VALUES = 5_000  # different values of a column that are counted one by one
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # stands for bytes that are in no encoding
SEPARATORS = (";", "|", ",")  # between the labels of a text with several
MOST_TAG_WORDS = 5  # of a label between separators; more are a sentence with commas


@dataclass
class ColumnProfile:
    """One column over all rows that were read.

    Args:
        filled: rows with a value. values: how often each text, number or item of a list occurs.
        is_open: there are more values than are counted. words: of all values.
        numbers, fractions, lists, others: rows whose value is a number, one that is not whole, a list, or neither
            text nor any of these.
        flags: rows with true or false. undecoded: rows whose text was not in the encoding of its file.
        separated: rows with a separator, by separator.
    """

    name: str
    filled: int = 0
    values: Counter[str] = field(default_factory=Counter)
    is_open: bool = False
    words: int = 0
    numbers: int = 0
    fractions: int = 0
    lists: int = 0
    others: int = 0
    flags: int = 0
    undecoded: int = 0
    separated: Counter[str] = field(default_factory=Counter)
    stored_numbers: int = 0  # numbers that are no text

    def add(self, value: Any) -> None:
        """Count the value of a row."""
        if isinstance(value, str):
            value = value.strip()
            listed = parse_list(value)
            value = listed if isinstance(listed, list) else value
        if has_no_value(value) or value == "" or value == []:
            return
        self.filled += 1
        if isinstance(value, list | tuple):
            self.lists += 1
            for item in value:
                if not has_no_value(item):
                    self.count_value(str(item))
        elif isinstance(value, bool):
            self.flags += 1
            self.count_value("yes" if value else "no")
        elif isinstance(value, Mapping | bytes) or not isinstance(value, str | int | float):
            self.others += 1
        elif isinstance(value, str) and LONE_SURROGATE.search(value):
            self.undecoded += 1
        else:
            self.add_plain(value)

    def add_plain(self, value: str | int | float) -> None:
        """Count a text or a number."""
        text = write_value(value)  # as an answer: 3.0 is 3
        if isinstance(value, ClassIndex):
            self.count_value(text)
            return
        if not isinstance(value, str) or NUMBER.fullmatch(text):
            self.numbers += 1
            self.stored_numbers += not isinstance(value, str)
            self.fractions += not float(value).is_integer()
        self.words += len(text.split())
        self.count_value(text)
        for separator in SEPARATORS:
            if (
                separator in text
                and max(len(part.split()) for part in text.split(separator)) <= MOST_TAG_WORDS
            ):
                self.separated[separator] += 1

    def count_value(self, text: str) -> None:
        """Count a value while there are not too many different ones."""
        if text in self.values or len(self.values) < MOST_VALUES:
            self.values[text] += 1
        else:
            self.is_open = True

    @property
    def different(self) -> int:
        """Number of different values."""
        return len(self.values)

    @property
    def mean_words(self) -> float:
        """Mean words of a value."""
        return self.words / max(1, self.filled)

    @property
    def is_numeric(self) -> bool:
        """Whether nearly all values are numbers."""
        return self.filled > 0 and self.numbers >= 0.98 * self.filled

    @property
    def is_flag(self) -> bool:
        """Whether all values are true or false."""
        return self.flags == self.filled > 0

    @property
    def is_list(self) -> bool:
        """Whether values are lists."""
        return self.lists > self.filled / 2

    def find_separator(self) -> str | None:
        """Return the sign between the labels of values such as ``dog;rain``; None where values are single labels.

        The parts have to come again, alone or with others, as labels do.
        """
        if self.is_list or self.is_numeric:
            return None
        for separator in SEPARATORS:
            least = 0.02 if separator != "," else 0.2
            if self.separated[separator] > least * self.filled:
                parts = self.split_values(separator)
                if len(parts) <= self.different and max(parts.values(), default=0) > 1:
                    return separator
        return None

    def split_values(self, separator: str) -> Counter[str]:
        """Return how often each label between separators occurs."""
        parts: Counter[str] = Counter()
        for value, count in self.values.items():
            for part in value.split(separator):
                if part.strip():
                    parts[part.strip()] += count
        return parts


def profile_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, ColumnProfile]:
    """Return the profiles of the columns of rows, in the order in which they first occur."""
    profiles: dict[str, ColumnProfile] = {}
    for row in rows:
        for name, value in row.items():
            if not isinstance(name, str):
                continue
            if name not in profiles:
                profiles[name] = ColumnProfile(name)
            profiles[name].add(value)
    return profiles
