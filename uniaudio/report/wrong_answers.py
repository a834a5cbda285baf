"""Wrong answers to look at and listen to: some of every evaluation set, the first few of them with their clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniaudio.data.recipe_entries import EvalEntry
from uniaudio.errors import UserError
from uniaudio.report.clip_players import Player, SoundBudget, find_examples
from uniaudio.report.result_files import AnswersByModel

WRONG_SHOWN = 12  # of each evaluation set
PLAYABLE = 4  # of them, of each set, with their clips
MOST_PLAYABLE = 120  # of all sets together


@dataclass(frozen=True)
class WrongAnswers:
    """Some of the wrong answers to a set, as they are stored, each with its clips; ``count`` is that of all."""

    shown: Sequence[tuple[Mapping[str, Any], Sequence[Player]]]
    count: int


def choose_wrong_answers(
    answers: AnswersByModel, entries: Mapping[str, EvalEntry], sounds: SoundBudget | None, notes: list[str]
) -> dict[str, WrongAnswers]:
    """Choose wrong answers of every set, the first few of them with their clips where the data are there.

    Args:
        sounds: None leaves out all clips. notes: is extended by what cannot be shown.
    """
    sets = sum(len(results) for results in answers.values())
    playable = min(PLAYABLE, max(1, MOST_PLAYABLE // max(sets, 1)))
    chosen: dict[str, WrongAnswers] = {}
    for run, results in answers.items():
        for name, entry in results.items():
            wrong = [item for item in entry.get("answers") or () if not item.get("right")]
            # at equal distances, as files are often sorted by label
            count = min(WRONG_SHOWN, len(wrong))
            items = [wrong[i * len(wrong) // count] for i in range(count)]
            if not items:
                continue
            players: dict[str, list[Player]] = {}
            if sounds is not None and name in entries:
                ids = [str(item["id"]) for item in items[:playable]]
                players = make_players(entries[name], ids, sounds, notes)
            shown = [(item, players.get(str(item["id"]), ())) for item in items]
            chosen[head_set(answers, run, name)] = WrongAnswers(shown, len(wrong))
    return chosen


def head_set(answers: AnswersByModel, run: str, name: str) -> str:
    """Return the heading of a run's results on a set, which names the run where there are several."""
    return f"{run}: {name}" if len(answers) > 1 else name


def make_players(
    entry: EvalEntry, ids: Sequence[str], sounds: SoundBudget, notes: list[str]
) -> dict[str, list[Player]]:
    """Return the clips of questions by id, or note why they cannot be found."""
    try:
        examples = find_examples(entry, ids)
    except UserError as problem:
        notes.append(f"clips of {entry.name}: {problem}")
        return {}
    if len(examples) < len(set(ids)):
        notes.append(
            f"{len(set(ids)) - len(examples)} clips of {entry.name}: their rows are missing or cannot be read"
        )
    return {
        name: sounds.add_players((name, clip) for clip in examples[name].clips)
        for name in ids
        if name in examples
    }
