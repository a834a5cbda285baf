"""Which column is the answer of a new task, and what kind of answer it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from uniaudio.config.nearest import suggest_name
from uniaudio.data.column_names import (
    CAPTIONS,
    CLIPS,
    FOLDS,
    GROUPS,
    IDS,
    LABELS,
    LANGUAGES,
    OTHERS,
    QUALITIES,
    QUESTIONS,
    REPLIES,
    SPLITS,
    TRANSCRIPTS,
    find_named,
    simplify_name,
)
from uniaudio.data.jinja_comparison import NUMBER
from uniaudio.data.scaffold.column_profiles import ColumnProfile
from uniaudio.data.sources.class_names import MOST_CLASSES
from uniaudio.errors import UserError

Kind = Literal["label", "tags", "number", "transcript", "caption", "reply", "text"]
MOST_UNDECODED = 0.01  # share of rows that may hold bytes of another encoding, and are skipped
FEW_VALUES, FEW_WORDS = 50, 4  # of a column called as a text that is a label all the same
NO_ANSWERS = frozenset((*CLIPS, *GROUPS, *IDS, *SPLITS, *FOLDS, *LANGUAGES, *OTHERS, *QUESTIONS))
# scripts without blanks between words
UNSPACED = (("\u3040", "\u30ff"), ("\u3400", "\u9fff"), ("\u0e00", "\u0eff"))


@dataclass(frozen=True)
class Answer:
    """The column that is learned.

    Args:
        labels: the closed set, as it is stored; empty where answers are open. separator: between several labels.
        is_flag: rows hold true or false, for the labels yes and no.
        question: column with the question of a row. reason: why this column, in words.
    """

    column: str
    kind: Kind
    labels: tuple[str, ...] = ()
    separator: str = ";"
    is_list: bool = False
    is_unspaced: bool = False
    is_flag: bool = False
    question: str | None = None
    reason: str = ""


def choose_answer(
    profiles: Mapping[str, ColumnProfile], label: str | None, text: str | None, where: str
) -> Answer:
    """Choose what is learned.

    Args:
        label, text: the column that the user names as a label or as a text. where: begins the sentence of an error.

    Raises:
        UserError: listing the columns, when there is no such column or it cannot be told which one is meant.
    """
    named = label or text
    if named is not None:
        if named not in profiles:
            listed = ", ".join(profiles) or "none"
            raise UserError(
                f"{where}: the rows have no column '{named}'{suggest_name(named, profiles)}; they have {listed}"
            )
        column, reason = named, "as named"
    else:
        column, reason = guess_column(profiles, where)
    profile = profiles[column]
    if not profile.filled:
        raise UserError(
            f"{where}: `{column}` is empty in all rows; name another column with --label or --text"
        )
    if profile.undecoded > MOST_UNDECODED * profile.filled:
        raise UserError(
            f"{where}: `{column}` is not UTF-8 text in {profile.undecoded:,} of {profile.filled:,} "
            "rows; save the data as UTF-8"
        )
    if profile.others > profile.filled / 2:
        raise UserError(
            f"{where}: `{column}` contains neither text nor numbers; name another column, or "
            "compute one under `columns` in a card"
        )
    known = simplify_name(column)
    if profile.is_flag or (text is None and (label is not None or is_label(profile, known))):
        return classify_label(profile, reason, where)
    question = next((name for name in profiles if simplify_name(name) in QUESTIONS), None)
    if known in REPLIES and question is not None:
        return Answer(column, "reply", is_list=profile.is_list, question=question, reason=reason)
    kind: Kind = "transcript" if known in TRANSCRIPTS else "caption" if known in CAPTIONS else "text"
    return Answer(column, kind, is_list=profile.is_list, is_unspaced=is_unspaced(profile), reason=reason)


def guess_column(profiles: Mapping[str, ColumnProfile], where: str) -> tuple[str, str]:
    """Return the column that holds the answer by its name, or the only one that can, and why.

    Raises:
        UserError: when there is none, or several are as likely.
    """
    usable = {
        name: profile
        for name, profile in profiles.items()
        if profile.filled > 0.5 * max(p.filled for p in profiles.values()) and profile.others < profile.filled
    }
    families = (TRANSCRIPTS, CAPTIONS, LABELS)
    # a column with the same value everywhere, such as a label made of the name of the only folder, is the last choice
    varied = [name for name, profile in usable.items() if profile.different > 1] or list(usable)
    named = [names for family in families if (names := find_named(varied, family))]
    named = named or [names for family in families if (names := find_named(usable, family))]
    replies = find_named(usable, REPLIES) if find_named(usable, QUESTIONS) else []
    if replies:
        return replies[0], "its name, next to a column of questions"
    named = named or [[name] for name in find_named(usable, QUALITIES)]
    if not named:
        if len(ending := [name for name in varied if ends_as_label(name)]) == 1:
            return ending[0], "the end of its name"
        rest = [name for name in usable if simplify_name(name) not in NO_ANSWERS and name[:2] != "__"]
        rest = [name for name in rest if usable[name].different > 1]
        if len(rest) == 1:
            return rest[0], "the only possible answer"
        listed = ", ".join(profiles) or "none"
        raise UserError(
            f"{where}: it is not clear which column is the answer; name it with --label COLUMN or "
            f"--text COLUMN: {listed}"
        )
    if len(named) > 1 and not is_same(usable, [names[0] for names in named]):
        firsts = " or ".join(f"`{names[0]}`" for names in named)
        raise UserError(
            f"{where}: {firsts} may be the answer; name one with --label COLUMN or --text COLUMN: "
            f"{', '.join(profiles)}"
        )
    return named[-1][0], "by its name"


def ends_as_label(name: str) -> bool:
    """Return whether the last word of a column's name is that of a label, as in `emotion_label`."""
    return simplify_name(name).rpartition("_")[2] in LABELS


def is_same(profiles: Mapping[str, ColumnProfile], names: Sequence[str]) -> bool:
    """Return whether columns hold the same values."""
    first = profiles[names[0]]
    return all(profiles[name].values == first.values and not first.is_open for name in names)


def is_label(profile: ColumnProfile, known: str) -> bool:
    """Return whether a column that nobody called a label is one: by its name, or by few short values."""
    if profile.is_open or profile.different == profile.filled > 2:
        return profile.is_numeric and known in (*LABELS, *QUALITIES)
    if known in (*LABELS, *QUALITIES):
        few = profile.different <= max(FEW_VALUES, profile.filled / 2)
        return profile.is_list or profile.is_numeric or few or profile.find_separator() is not None
    few = profile.different <= min(FEW_VALUES, profile.filled / 4)
    return few and profile.mean_words <= FEW_WORDS and not profile.is_list


def classify_label(profile: ColumnProfile, reason: str, where: str) -> Answer:
    """Return a column as one label, several labels, or a number of a scale.

    Raises:
        UserError: when all rows have the same label.
    """
    separator = profile.find_separator()
    is_tags = profile.is_list or separator is not None
    counts = profile.split_values(separator) if separator is not None else profile.values
    labels = tuple(sorted(counts, key=rank_number if profile.is_numeric else None))
    if len(labels) == 1:
        raise UserError(
            f"{where}: all {profile.filled:,} rows have the same `{profile.name}`, {labels[0]}; a "
            "label needs at least two values"
        )
    if not is_tags and profile.is_numeric and (profile.fractions or len(labels) > FEW_VALUES):
        return Answer(profile.name, "number", reason=reason)
    closed = labels if not profile.is_open and len(labels) <= MOST_CLASSES else ()
    if is_tags:
        mark = separator if separator is not None else choose_separator(labels)
        return Answer(profile.name, "tags", closed, mark, profile.is_list, reason=reason)
    return Answer(profile.name, "label", closed, is_flag=profile.is_flag, reason=reason)


def rank_number(label: str) -> tuple[bool, float, str]:
    """Return what sorts numbers by their size, and behind them the few texts of a column of numbers."""
    is_number = NUMBER.fullmatch(label) is not None
    return not is_number, float(label) if is_number else 0.0, label


def choose_separator(labels: Collection[str]) -> str:
    """Return a text that is in no label."""
    return next((mark for mark in (";", "|", " / ") if not any(mark in label for label in labels)), " ;; ")


def is_unspaced(profile: ColumnProfile) -> bool:
    """Return whether texts are in a script without blanks between words."""
    letters = [letter for value in list(profile.values)[:200] for letter in value if letter.isalpha()]
    inside = sum(any(first <= letter <= last for first, last in UNSPACED) for letter in letters)
    return inside > len(letters) / 2
