"""The contract of importers: a data set in a layout of others becomes cards, templates and the lines of a recipe."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from uniaudio.config.text_files import compose
from uniaudio.data.column_names import CAPTIONS, LABELS, QUESTIONS, REPLIES, TRANSCRIPTS
from uniaudio.data.sources.paths import is_remote
from uniaudio.data.sources.split_names import find_named_splits
from uniaudio.errors import UserError
from uniaudio.units import SECONDS_PER_HOUR

MANIFESTS = "manifests"  # folder of the rows that an importer writes, beside the cards' folder
SHARD = re.compile(r"[._-]0\d*(-of-\d+)?$")  # behind a name: the number of a shard
ANY_NUMBER = re.compile(r"[._-]?\d+(-of-\d+)?$")
NOT_STATED = "not stated"  # a licence that the data do not name


@dataclass(frozen=True)
class ImportOptions:
    """What a user says beside the source.

    Args:
        name: of the recipe, and of the data set where the source has no name for it.
        root: folder that holds the audio or the shards, where the source does not say it.
        configs: which of several configurations of the source.
        turns: which answers of a conversation are learned.
    """

    name: str
    root: str | None = None
    configs: tuple[str, ...] = ()
    turns: Literal["last", "all"] = "last"


@dataclass
class ImportedData:
    """What an importer makes of a source: the content of files, as their records in YAML are written.

    Args:
        cards, templates: by their names. train, evaluate: lines of the recipe. mix: of the recipe.
        manifests: rows by the path of their file below ``manifests/``, without suffix.
        notes: what was skipped and what the user should know, a sentence each.
    """

    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    evaluate: list[dict[str, Any]] = field(default_factory=list)
    mix: dict[str, Any] = field(default_factory=dict)
    manifests: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_card(self, name: str, **keys: Any) -> None:
        """Add a card; its licence is not known unless it is stated."""
        self.cards[name] = {"dataset": name, "license": NOT_STATED, "audio": "audio", **keys}

    def add_manifests(self, name: str, rows: Mapping[str, list[dict[str, Any]]], **keys: Any) -> None:
        """Add a card and the manifests that it loads, which are written beside it.

        Args:
            rows: by split. keys: of the card.
        """
        self.manifests |= {f"{name}/{split}": listed for split, listed in rows.items()}
        splits = {split: {"name": split} for split in rows}
        self.add_card(name, load={"jsonl": f"../{MANIFESTS}/{name}"}, **keys, splits=splits)
        self.mix = {"by": "rows"}

    def add_question(self, card: str, question: QuestionTemplate) -> None:
        """Add the lines of a question about a card, and its template where none is shipped."""
        if question.content is not None:
            self.templates[question.template] = question.content
        self.add_lines(card, question.template)

    def add_lines(self, card: str, template: str) -> None:
        """Add a line of the recipe for every split of a card; test and validation sets are evaluated."""
        for split in self.cards[card]["splits"]:
            line = {"dataset": card, "template": template, "split": split}
            (self.evaluate if is_evaluated(split) else self.train).append(line)


KINDS = {  # to module and function
    "xares-llm": ("xares_llm", "read_xares_llm"),
    "common-voice": ("common_voice", "read_common_voice"),
    "librispeech": ("librispeech", "read_librispeech"),
    "lhotse": ("lhotse_cuts", "read_lhotse_cuts"),
    "nemo": ("nemo_manifests", "read_nemo_manifests"),
    "messages": ("conversations", "read_conversations"),
    "saved": ("save_to_disk", "read_saved_folder"),
}


def read_source(kind: str, source: Path, options: ImportOptions) -> ImportedData:
    """Return what a source of a kind, one of ``KINDS``, becomes; nothing is written.

    Raises:
        UserError: when the source is not in this layout.
    """
    module, name = KINDS[kind]
    data: ImportedData = getattr(import_module(f"uniaudio.data.importers.{module}"), name)(source, options)
    return data


def convert_json_lines(
    files: Sequence[Path],
    read_rows: Callable[[Path, str | None, Counter[str]], Iterable[dict[str, Any]]],
    row: str,
    empty: str,
    options: ImportOptions,
) -> ImportedData:
    """Return what files of JSON lines become whose rows name recordings and their durations.

    Args:
        read_rows: gives the rows of the manifest that a file becomes, by the file, the folder of the audio where the
            user states it, and a counter of what is left out, by reason.
        row: what one of them is called. empty: said of a split without rows.

    Raises:
        UserError: for a split without rows, and when no column is known as an answer.
    """
    data, skipped, columns, seconds = ImportedData(), Counter[str](), set[str](), 0.0
    manifests: dict[str, list[dict[str, Any]]] = {}
    for split, shards in name_splits(files).items():
        rows = [each for file in shards for each in read_rows(file, options.root, skipped)]
        if not rows:
            reasons = f" ({dict(skipped)})" if skipped else ""
            raise UserError(f"{shards[0]}: contains no {empty}{reasons}")
        columns.update(*rows)
        if not is_evaluated(split):
            seconds += sum(d for each in rows if isinstance(d := each.get("duration"), int | float))
        manifests[split] = rows
    question = choose_question(columns, options.name)
    hours = {"hours": rounded} if (rounded := round(seconds / SECONDS_PER_HOUR, 4)) else {}
    data.add_manifests(options.name, manifests, **hours, columns=question.columns)
    data.add_question(options.name, question)
    data.notes = list_skipped_counts(skipped, f"{row}s")
    return data


def make_name(text: str) -> str:
    """Return a text as the name of a file: lower case, with underscores for everything but letters and digits."""
    return re.sub(r"[\W_]+", "_", compose(text).lower()).strip("_") or "data"


def is_evaluated(split: str) -> bool:
    """Return whether a split is a test or validation set by its name."""
    return bool(find_named_splits(split) & {"test", "validation"})


def name_splits(files: Collection[Path]) -> dict[str, list[Path]]:
    """Return files by the splits that their names contain; those without one are `train`, if there are no others.

    Files that are numbered are the shards of one split: `cuts_train.0.jsonl`, `train-00000-of-00010.json`,
    `manifest_17.json`. Other files that name the same split are splits of their own.
    """
    groups: dict[str, list[Path]] = {}
    for file in sorted(files):
        stem = file.name.partition(".")[0]
        numbered = SHARD if find_named_splits(stem) else ANY_NUMBER  # test_2019 and test_2021 are two sets
        groups.setdefault(numbered.sub("", stem), []).append(file)
    splits: dict[str, list[Path]] = {}
    stems = set(map(make_name, groups))
    for stem, shards in groups.items():
        whole, named = make_name(stem), find_named_splits(stem)
        split = named.pop() if len(named) == 1 else "train" if len(groups) == 1 else whole
        # `train` keeps its name beside `train-clean`, whichever comes first
        if split in splits or (split != whole and split in stems):
            split = whole
        while split in splits:  # such as `a b` beside `a_b`
            split += "_2"
        splits[split] = shards
    return splits


def list_sources(source: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """Return a file, or the files with the suffixes in a folder.

    Raises:
        UserError: where there is none.
    """
    if source.is_file():
        return [source]
    files = [file for file in sorted(source.iterdir()) if file.name.lower().endswith(suffixes)]
    if not files:
        raise UserError(f"{source}: there is no {what} ({', '.join(suffixes)}); name the file or its folder")
    return files


def list_skipped_counts(skipped: Mapping[str, int], what: str) -> list[str]:
    """Return a sentence for each reason why rows were left out."""
    return [f"{count:,} {what} left out: {reason}" for reason, count in sorted(skipped.items()) if count]


def find_recording(place: str, folder: Path, root: str | None) -> str:
    """Return a full path: of a relative one, below the root or beside the file that names it; a URL as it is."""
    if is_remote(place) or Path(place).is_absolute():
        return place
    if root is not None:
        return str(Path(root).expanduser().absolute() / place)
    beside, here = folder.absolute() / place, Path(place).absolute()
    return str(here if here.exists() and not beside.exists() else beside)


@dataclass(frozen=True)
class QuestionTemplate:
    """What is asked about a data set: a template and its inputs made of columns; its content where none is shipped."""

    template: str
    columns: dict[str, Any]
    content: dict[str, Any] | None = None


# columns of the answer -> shipped template and its input
ANSWERS = (
    (TRANSCRIPTS, "asr", "text"),
    (CAPTIONS, "captioning", "captions"),
    (("emotion",), "emotion", "label"),
    (("intent",), "intent", "label"),
    (("genre",), "music_genre", "label"),
    (("instrument",), "instrument", "label"),
    (("gender",), "gender", "label"),
    (("scene", "acoustic_scene"), "acoustic_scene", "label"),
)


def choose_question(columns: Collection[str], name: str) -> QuestionTemplate:
    """Choose what to ask by the names of columns: questions of the rows, transcripts, captions, then labels.

    Raises:
        UserError: when no column is known.
    """
    pair = [next((c for c in names if c in columns), "") for names in (QUESTIONS, REPLIES)]
    if all(pair):
        made = zip(("question", "answer"), pair, strict=True)
        return QuestionTemplate("audio_qa", {wanted: f"{{{{ {c} }}}}" for wanted, c in made if wanted != c})
    for names, template, wanted in ANSWERS:
        for column in (name for name in names if name in columns):
            if column == wanted:
                return QuestionTemplate(template, {})
            # of captions, a list stays a list
            made_of = {"first_of": [column]} if wanted == "captions" else f"{{{{ {column} }}}}"
            return QuestionTemplate(template, {wanted: made_of})
    for column in LABELS:
        if column in columns:
            task = f"{name}_{make_name(column)}"
            content = {
                "task": task,
                "domain": "sound",
                "inputs": [column],
                "prompts": [f"<audio>What is the {column.replace('_', ' ')} of this recording?"],
                "target": f"{{{{ {column} }}}}",
                "scoring": {"metric": "accuracy", "normalize": "lowercase"},
            }
            return QuestionTemplate(task, {}, content)
    raise UserError(
        f"none of the columns {', '.join(sorted(columns)) or '(none)'} is a known answer (text, sentence, captions, "
        f"label, question and answer ...); write the card by hand as docs/formats.md shows"
    )
