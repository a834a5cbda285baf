"""Conversations about clips as ms-swift and LLaMA-Factory have them: any number of turns and clips a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from uniaudio.data.importers.base import (
    ImportedData,
    ImportOptions,
    find_recording,
    list_skipped_counts,
    list_sources,
    name_splits,
)
from uniaudio.data.importers.json_rows import read_json_rows
from uniaudio.data.template import AUDIO
from uniaudio.errors import RowError, UserError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
USERS = ("user", "human")
ANSWERERS = ("assistant", "gpt", "model", "bot")
SHORT_ANSWER = 3.0  # words: above it, answers are compared by their n-grams and not as wholes
# a turn of a conversation, then the mark of the turn behind it
TURNS = (
    "{% for turn in PART %}{{ turn.text }}"
    "{% if turn.next == 'assistant' %}<|assistant|>{% elif turn.next == 'user' %}<|user|>{% endif %}{% endfor %}"
)

Turn = tuple[str, str]  # "user" or "assistant", and its text


def read_conversations(source: Path, options: ImportOptions) -> ImportedData:
    """Read files of `messages` or `conversations` with `audios`; also `query`, `response`, `history` of ms-swift.

    Each answer that is learned is a row: the turns before it are its question. Rows with one, two ... clips have a
    card and a template each.
    """
    files = name_splits(list_sources(source, SUFFIXES, "file of conversations"))
    data, skipped = ImportedData(), Counter[str]()
    rows: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for split, file in ((split, file) for split, shards in files.items() for file in shards):
        for item in read_json_rows(file, skipped):
            try:
                made = list(make_rows(item, file.parent, options))
            except RowError as problem:
                skipped[problem.reason] += 1
                continue
            for row in made:
                if not row["answer"].strip():
                    skipped["an empty answer"] += 1
                    continue
                clips = sum(name.startswith("audio") for name in row)
                rows.setdefault(clips, {}).setdefault(split, []).append(row)
    if not rows:
        raise UserError(f"{source}: holds no conversation about a clip that can be used ({dict(skipped)})")
    for clips, by_split in sorted(rows.items()):
        name = options.name if clips == 1 else f"{options.name}_{clips}_clips"
        audio = "audio" if clips == 1 else [f"audio_{i}" for i in range(1, clips + 1)]
        data.add_manifests(name, by_split, audio=audio)
        data.templates[name] = make_template(name, clips, [row for part in by_split.values() for row in part])
        data.add_lines(name, name)
    data.notes = list_skipped_counts(skipped, "conversations")
    return data


def make_template(name: str, clips: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the template of conversations about a number of clips."""
    parts = [f"part_{i}" for i in range(1, clips + 2)]
    is_short = median(len(row["answer"].split()) for row in rows) <= SHORT_ANSWER
    return {
        "task": name,
        "domain": "sound",
        "inputs": [*parts, "answer"],
        "prompts": [AUDIO.join(TURNS.replace("PART", part) for part in parts)],
        "target": "{{ answer }}",
        "scoring": {"metric": "accuracy" if is_short else "bleu", "normalize": "words"},
    }


def make_rows(item: Mapping[str, Any], folder: Path, options: ImportOptions) -> Iterator[dict[str, Any]]:
    """Yield a row for each answer of a conversation that is learned.

    Raises:
        RowError: with the reason why the conversation cannot be used.
    """
    turns = list(read_turns(item))
    clips = [find_recording(place, folder, options.root) for place in read_clips(item)]
    marks = sum(text.count(AUDIO) for _, text in turns)
    if not clips:
        raise RowError("no clip (`audios`)")
    if not marks:
        turns[0] = (turns[0][0], AUDIO * len(clips) + turns[0][1])
    elif marks != len(clips):
        raise RowError(f"the number of {AUDIO} differs from that of `audios`")
    if any(role == "assistant" and AUDIO in text for role, text in turns):
        raise RowError("a clip in an answer")
    answers = range(1, len(turns), 2)
    for last in answers if options.turns == "all" else answers[-1:]:
        row = make_conversation_row(turns[:last], turns[last][1], clips)
        if any(name.startswith("audio") for name in row):
            yield row


def make_conversation_row(history: list[Turn], answer: str, clips: list[str]) -> dict[str, Any]:
    """Return the row of an answer: the texts around the clips of the turns before it, cut at the marks of clips."""
    parts: list[list[dict[str, str]]] = [[]]
    for number, (_, text) in enumerate(history):
        following = history[number + 1][0] if number + 1 < len(history) else ""
        *before, last = text.split(AUDIO)
        for piece in before:
            parts[-1].append({"text": piece, "next": ""})
            parts.append([])
        parts[-1].append({"text": last, "next": following})
    row: dict[str, Any] = {f"part_{i}": part for i, part in enumerate(parts, 1)}
    used = clips[: len(parts) - 1]
    names = ["audio"] if len(used) == 1 else [f"audio_{i}" for i in range(1, len(used) + 1)]
    return {**dict(zip(names, used, strict=True)), **row, "answer": answer}


def read_turns(item: Mapping[str, Any]) -> Iterator[Turn]:
    """Yield the turns of a conversation, the user's first, an answer last; a system text stands before the first.

    Raises:
        RowError: when there are none, or they do not take turns.
    """
    listed = item.get("messages") or item.get("conversations") or list_queries(item)
    if not isinstance(listed, list) or not all(isinstance(turn, Mapping) for turn in listed):
        raise RowError("no `messages`, `conversations` or `query`")
    system = str(item.get("system") or "")
    turns: list[Turn] = []
    for turn in listed:
        role, text = str(turn.get("role", turn.get("from"))), turn.get("content", turn.get("value"))
        if isinstance(text, list):
            text = join_contents(text)
        if not isinstance(text, str):
            raise RowError("a turn without a text")
        if role == "system":
            system = text
        elif role in USERS or role in ANSWERERS:
            turns.append(("user" if role in USERS else "assistant", text))
        else:
            raise RowError(f"a turn of `{role[:40]}`")
    if turns and turns[-1][0] == "user":
        turns.pop()  # a question without an answer
    if not turns or any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(turns)):
        raise RowError("turns that do not alternate between user and assistant")
    if system.strip():
        turns[0] = ("user", f"{system.strip()}\n\n{turns[0][1]}")
    yield from turns


def join_contents(contents: list[Any]) -> str:
    """Return the parts of a turn as one text, a clip as its mark.

    Raises:
        RowError: for a part that is neither text nor a clip.
    """
    texts = []
    for part in contents:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "audio", "audio_url"):
            raise RowError("a part of a turn that is neither text nor a clip")
        texts.append(str(part.get("text", "")) if kind == "text" else AUDIO)
    return "".join(texts)


def list_queries(item: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """Return a row with `query`, `response` and `history` (or `instruction`, `input`, `output`) as turns."""
    query, answer = item.get("query", item.get("instruction")), item.get("response", item.get("output"))
    if not isinstance(query, str) or not isinstance(answer, str):
        return None
    if isinstance(item.get("input"), str) and item["input"]:
        query = f"{query}\n{item['input']}"
    pairs = [pair for pair in item.get("history") or () if isinstance(pair, list) and len(pair) == 2]
    return [
        {"role": role, "content": text}
        for pair in [*pairs, [query, answer]]
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def read_clips(item: Mapping[str, Any]) -> list[str]:
    """Return the paths of a row's clips: of `audios`, or of the parts of its turns.

    Raises:
        RowError: for a clip that is no path.
    """
    listed = next((item[key] for key in ("audios", "audio") if item.get(key) is not None), None)
    if listed is None:
        turns = item.get("messages") or item.get("conversations") or ()
        contents = [turn.get("content", turn.get("value")) for turn in turns if isinstance(turn, Mapping)]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        listed = [
            part.get("audio", part.get("audio_url", part.get("path")))
            for part in parts
            if isinstance(part, Mapping) and part.get("type") in ("audio", "audio_url")
        ]
    paths = []
    for clip in listed if isinstance(listed, list) else [listed]:
        path = clip.get("path", clip.get("url")) if isinstance(clip, Mapping) else clip
        if not isinstance(path, str) or path.startswith("data:"):
            raise RowError("a clip that is not a file path")
        paths.append(path)
    return paths
