"""The template, card and recipe of a new task as YAML with comments."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uniaudio.config.strict_yaml import dump_inline_yaml
from uniaudio.data.column_names import LABELS, simplify_name
from uniaudio.data.importers.base import NOT_STATED
from uniaudio.data.jinja import Text
from uniaudio.data.scaffold.answer_column import Answer
from uniaudio.data.scaffold.layouts import Layout
from uniaudio.data.scaffold.train_test_split import IDENTIFIER, Division
from uniaudio.data.template import AUDIO
from uniaudio.errors import UserError

COMMENT_WIDTH = 110
EVALUATED = 500  # rows of a test split; more take long and say little more
ANSWER_NAME = "answer"  # of the input, where the column's name is none in Jinja
RESERVED = frozenset(("labels", "true", "false", "none", "and", "or", "not", "in", "is", "if", "else", "for"))
SPEECH = frozenset(
    ("emotion", "intent", "gender", "accent", "age", "dialect", "word", "command", "keyword", "speaker")
)
MUSIC = frozenset(("genre", "instrument", "key", "pitch", "tempo", "bpm", "mood"))

PROMPTS = {
    "transcript": (
        "<audio>Transcribe the speech.",
        "<audio>Write down what is said.",
        "What is said?\n<audio>",
    ),
    "caption": ("<audio>Describe what you hear.", "<audio>Describe this recording in one sentence."),
    "text": ("<audio>What do you hear?", "<audio>Describe what you hear."),
}
GENERAL = (
    "<audio>What do you hear?",
    "<audio>Name what can be heard in this recording.",
    "What is this recording of?\n<audio>",
)
TAGS = ("<audio>List what can be heard.", "<audio>What can be heard? Name all of it.")


@dataclass(frozen=True)
class TaskDescription:
    """All that is known of a new task.

    Args:
        name: of its files. place: of the card's `load`, relative to it where that is better. question: of the user.
        rows, hours: by split of the card, where they are known.
    """

    name: str
    layout: Layout
    load: dict[str, Any]
    answer: Answer
    division: Division
    question: str | None = None
    rows: dict[str, int | None] | None = None
    hours: float | None = None
    windows: float | None = None
    columns: Sequence[str] = ()
    command: str = ""

    @property
    def input_name(self) -> str:
        """The answer's column as the template names it."""
        column = self.answer.column
        is_plain = IDENTIFIER.fullmatch(column) and column not in RESERVED and column.isascii()
        return column if is_plain else ANSWER_NAME

    @property
    def has_underscores(self) -> bool:
        """Whether labels are written with underscores for blanks, which are better read as blanks."""
        labels = self.answer.labels
        spaced = {label.replace("_", " ").strip() for label in labels}
        return self.answer.kind == "label" and len(spaced) == len(labels) and spaced != set(labels)


def render_comment(text: str) -> str:
    """Return a comment of one or several lines."""
    lines = textwrap.wrap(text, COMMENT_WIDTH, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def render_template(task: TaskDescription) -> str:
    """Return the template: question, answer, and the closed set of a label."""
    answer, column = task.answer, task.input_name
    prompts = make_prompts(task)
    used = sorted({name for prompt in prompts for name in Text(prompt, "--ask").names} - {column, "labels"})
    text = render_comment(f"The question and its answer, written by `{task.command}`.")
    text += f"task: {dump_inline_yaml(task.name)}\n"
    text += f"domain: {choose_domain(answer)}  # speech, sound or music: for averages and charts\n"
    text += f"inputs: {dump_inline_yaml([*used, column])}  # the columns that prompts and target use\n"
    if answer.labels:
        labels = [
            label.replace("_", " ").strip() if task.has_underscores else label for label in answer.labels
        ]
        text += render_comment(
            f"The closed set of {len(labels)} answers: a row with any other answer is skipped, and evaluation "
            "compares their likelihoods."
        )
        text += f"labels: {dump_inline_yaml(labels)}\n"
    text += render_comment(
        f"Phrasings of the question; {AUDIO} stands for the clip. Training draws one, evaluation "
        "uses the first."
    )
    text += "prompts:\n" + "".join(f"  - {quote_text(prompt)}\n" for prompt in prompts)
    return text + render_target(answer, column)


def render_target(answer: Answer, column: str) -> str:
    """Return how the answer is made of its column, and how it is scored."""
    if answer.kind == "tags":
        mark = answer.separator if answer.separator.endswith(" ") else f"{answer.separator} "
        target = f"{column} if {column} is string else {column} | sort | join('{mark}')"
        scoring: dict[str, Any] = {"metric": "map", "normalize": "lowercase"}
        if answer.separator != ";":
            scoring["separator"] = answer.separator.strip()
        comment = "Several labels with a separator between them, scored by mean average precision."
        return f"target: {quote_text('{{ ' + target + ' }}')}\nscoring: {dump_inline_yaml(scoring)}  # {comment}\n"
    if answer.kind == "number":
        return (
            render_comment(
                "A number, learned as text and scored as right only if it is equal. Classes are easier to learn: "
                "define some under `columns` of the card, such as "
                f"`{column}: \"{{{{ 'low' if {column} < 10 else 'high' }}}}\"`."
            )
            + f"target: {quote_text('{{ ' + column + ' | float | round(2) }}')}\n"
        )
    if answer.is_list:
        target = (
            f"target_one_of: {column}  # several right answers: training draws one, evaluation accepts all\n"
        )
    else:
        made = f"'yes' if {column} else 'no'" if answer.is_flag else column
        target = f"target: {quote_text('{{ ' + made + ' }}')}\n"
    return target + f"scoring: {dump_inline_yaml(choose_scoring(answer))}\n"


def choose_scoring(answer: Answer) -> dict[str, str]:
    """Return how answers are scored."""
    if answer.kind == "caption":
        return {"metric": "meteor", "normalize": "words"}
    if answer.kind in ("transcript", "text"):
        return {"metric": "cer" if answer.is_unspaced else "wer", "normalize": "words"}
    return {"metric": "accuracy", "normalize": "lowercase"}


def make_prompts(task: TaskDescription) -> tuple[str, ...]:
    """Return the wordings of the question: the user's, or those of its kind.

    Raises:
        UserError: when the user's uses a column that is not there.
    """
    answer = task.answer
    if task.question is not None:
        text = task.question if AUDIO in task.question else f"{AUDIO}{task.question}"
        used = Text(text, "--ask").names
        if text.count(AUDIO) > 1:
            raise UserError(f"--ask: contains {AUDIO} {text.count(AUDIO)} times, but a row has one clip")
        if answer.column in used:
            raise UserError(
                f"--ask: contains the answer, column '{answer.column}'; leave it out of the question"
            )
        if names := used - set(task.columns) - {"labels"}:
            raise UserError(
                f"--ask: uses '{min(names)}', but the columns are {', '.join(task.columns)}; use "
                "plain text, or one of these columns"
            )
        return (text,)
    if answer.question is not None:
        return (f"{AUDIO}{{{{ {answer.question} }}}}",)
    if answer.kind in PROMPTS:
        return PROMPTS[answer.kind]
    known = simplify_name(answer.column)
    words = answer.column.replace("_", " ").strip()
    if known in LABELS or not known.isascii():
        return TAGS if answer.kind == "tags" else GENERAL
    if answer.kind == "tags":
        return (
            f"<audio>Name the {words} of this recording.",
            f"<audio>Which {words} fit this recording? Name all.",
        )
    return (
        f"<audio>What is the {words}?",
        f"<audio>Name the {words} of this recording.",
        f"Which {words} is this?\n<audio>",
    )


def choose_domain(answer: Answer) -> str:
    """Return the domain that a column's name speaks of."""
    known = simplify_name(answer.column)
    if answer.kind == "transcript" or known in SPEECH:
        return "speech"
    return "music" if known in MUSIC else "sound"


def quote_text(text: str) -> str:
    """Return a text in double quotes, as YAML reads it."""
    return json.dumps(text, ensure_ascii=False)


def render_dataset_card(task: TaskDescription) -> str:
    """Return the card: where the rows are, and their splits."""
    text = render_comment(f"Where the rows are: {task.layout.what}. Written by `{task.command}`.")
    text += f"dataset: {dump_inline_yaml(task.name)}\nload: {dump_inline_yaml(task.load, 10_000)}\n"
    text += f"license: {NOT_STATED}  # of the data, as a short name; reports and exported models show it\n"
    if task.hours:
        hours = max(0.001, float(f"{task.hours:.3g}"))
        text += f"hours: {hours:g}  # of training audio, estimated from some clips\n"
    text += f"audio: {dump_inline_yaml([task.layout.audio], 10_000)[1:-1]}\n"
    if task.windows is not None:
        text += render_comment(
            "Clips longer than this many seconds are cut into windows, each with the answer of the clip."
        )
        text += f"long_clips: {{how: windows, seconds: {task.windows:g}}}\n"
    if columns := make_columns(task):
        text += render_comment("Columns computed from other columns.")
        text += "columns:\n" + "".join(f"  {name}: {made}\n" for name, made in columns.items())
    text += render_comment(f"Train and test are divided by: {task.division.reason}.")
    text += "splits:\n"
    for name, content in task.division.splits.items():
        text += f"  {dump_inline_yaml([name])[1:-1]}: {dump_inline_yaml(content, 10_000)}\n"
    return text


def make_columns(task: TaskDescription) -> dict[str, str]:
    """Return the columns that the card makes of others."""
    answer, name = task.answer, task.input_name
    if name != answer.column:
        return {name: dump_inline_yaml({"first_of": [answer.column]}, 10_000)}
    if task.has_underscores:
        return {name: quote_text(f"{{{{ {name} | replace('_', ' ') | trim }}}}")}
    return {}


def render_recipe(task: TaskDescription) -> str:
    """Return the recipe: what is trained on and what is evaluated."""
    text = render_comment(
        "What is trained on and what is evaluated. Add an entry for each further dataset; `weight` "
        "of an entry sets its share of the draws."
    )
    text += f"recipe: {dump_inline_yaml(task.name)}\ntrain:\n"
    for split in task.division.train:
        text += f"  - {dump_inline_yaml(make_line(task, split, 'train'), 10_000)}\n"
    if task.division.test is not None:
        line = make_line(task, task.division.test, "test") | {"max_examples": EVALUATED}
        text += f"evaluate:\n  - {dump_inline_yaml(line, 10_000)}\n"
    return text


def make_line(task: TaskDescription, split: str, usual: str) -> dict[str, Any]:
    """Return a line of the recipe; several training splits are drawn by their rows, where those of all are known."""
    line: dict[str, Any] = {"dataset": task.name, "template": task.name}
    if split != usual:
        line["split"] = split
    rows = {name: (task.rows or {}).get(name) for name in task.division.train}
    if usual == "train" and len(rows) > 1 and all(rows.values()):
        line["weight"] = rows[split]
    return line
