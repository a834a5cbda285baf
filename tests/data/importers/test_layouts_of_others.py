"""Importers of corpora and manifests: rows, texts and splits as the layouts document them, and what is left out."""

import gzip
import io
import json
import tarfile
import unicodedata
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.files import add, clip_bytes
from rich.console import Console

from uniaudio.commands.data_import import import_data, write_manifest
from uniaudio.data.importers.base import make_name, name_splits
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.sources.base import Row, decode_clips
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError


def write_clip(path, value=1, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(clip_bytes(value, "FLAC" if path.suffix == ".flac" else "WAV", int(16000 * seconds)))


def run_import(kind, source, out, root=None, turns="last"):
    console = Console(file=io.StringIO(), width=10_000)
    recipe = import_data(kind, source, out, None, root, [], turns, console)
    return recipe, console.file.getvalue()


def read(entry):
    """Answers of a split with the length of each clip in samples."""
    result = []
    for row in open_source(entry.dataset, entry.split).rows():
        assert isinstance(row, Row), row
        rendered = entry.render_question(row, entry.templates[0])
        result.append((rendered.answer, *map(len, decode_clips(row, 60))))
    return result


def by_split(recipe):
    return {entry.split: entry for entry in (*recipe.train, *recipe.evaluate)}


def test_librispeech(tmp_path):
    source = tmp_path / "LibriSpeech"
    for split, speaker, texts in (("train-clean-100", "19", ["A B", "C"]), ("test-clean", "61", ["D E F"])):
        folder = source / split / speaker / "198"
        for number in range(len(texts)):
            write_clip(folder / f"{speaker}-198-{number:04d}.flac", number, 0.1 * (number + 1))
        lines = [f"{speaker}-198-{number:04d} {text}" for number, text in enumerate([*texts, "GONE"])]
        (folder / f"{speaker}-198.trans.txt").write_text("\n".join(lines) + "\n")
    recipe, printed = run_import("librispeech", source, tmp_path / "out")
    assert read(by_split(recipe)["train_clean_100"]) == [("a b", 1600), ("c", 3200)]
    assert read(recipe.evaluate[0]) == [("d e f", 1600)]
    assert [entry.split for entry in recipe.train] == ["train_clean_100"]
    assert "note: 2 lines left out: there is no clip with its name" in printed
    assert (
        "librispeech, train_clean_100, 100.0% of the draws: asr\n  2 rows, 0.00 h, 0 of 2 inspected rows"
        in printed
    )
    row = next(open_source(recipe.train[0].dataset, "train_clean_100").rows())
    assert (row.columns["speaker"], row.columns["chapter"], row.columns["id"]) == ("19", "198", "19-198-0000")
    assert recipe.train[0].dataset.hours is None  # of the opened card; the file has it now
    assert "hours: 0.0001" in (tmp_path / "out/datasets/librispeech.yaml").read_text()


def test_librispeech_transcripts_of_other_systems(tmp_path):
    folder = tmp_path / "LS" / "train" / "19" / "198"
    decomposed = unicodedata.normalize("NFD", "é-0")
    for name in (decomposed, "b-1", "c-2", "d-3", "alone"):
        write_clip(folder / f"{name}.flac")
    lines = ["é-0 ONE\u2028TWO", "", "b-1", "c-2 ", "gone X"]
    content = "\ufeff" + "\r\n".join(lines)
    (folder / "19-198.trans.txt").write_bytes(content.encode() + b"\r\nd-3 M\xf6WE\r\n")
    (tmp_path / "LS" / "test" / "1" / "2").mkdir(parents=True)
    (tmp_path / "LS" / "test" / "1" / "2" / "1-2.trans.txt").write_text("gone X\n")
    recipe, printed = run_import("librispeech", tmp_path / "LS", tmp_path / "out")
    assert read(recipe.train[0]) == [("one\u2028two", 1600)]
    assert [entry.split for entry in (*recipe.train, *recipe.evaluate)] == ["train"]
    for note in (
        "2 lines left out: there is no clip with its name",
        "2 lines left out: there is no text after its name",
        "1 clips left out: no line names the clip",
        "1 rows left out: text or path that is not UTF-8",
    ):
        assert f"note: {note}\n" in printed
    with pytest.raises(
        UserError, match=r"no line of a \*\.trans\.txt can be used \(there is no clip with its name\)"
    ):
        run_import("librispeech", tmp_path / "LS" / "test", tmp_path / "other")


def test_rows_that_json_cannot_hold_have_their_reason_in_the_notes(tmp_path):
    undecoded = b"M\xf6WE".decode("utf-8", "surrogateescape")
    rows = [
        {"text": "Möwe"},
        {"text": undecoded},
        {"turns": [{"content": undecoded}]},
        {undecoded: "key"},
        {"labels": {"a"}},
        {"id": 1 << 70},
        {"id": 2},
    ]
    skipped = Counter()
    write_manifest(tmp_path / "rows.jsonl", rows, skipped)
    assert skipped == {
        "text or path that is not UTF-8": 3,
        "not JSON: Type is not JSON serializable: set": 1,
        "not JSON: Integer exceeds 64-bit range": 1,
    }
    written = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert written == ['{"text":"Möwe"}', '{"id":2}']


def test_librispeech_by_a_relative_path(tmp_path, monkeypatch):
    write_clip(tmp_path / "train-clean" / "19" / "198" / "19-198-0.flac")
    (tmp_path / "train-clean" / "19" / "198" / "19-198.trans.txt").write_text("19-198-0 A\n")
    monkeypatch.chdir(tmp_path / "train-clean")
    recipe, _ = run_import("librispeech", Path(), tmp_path / "out")
    assert recipe.train[0].split == "train_clean"


def test_common_voice_tables_of_other_systems(tmp_path):
    write_clip(tmp_path / "de" / "clips" / "a.wav")
    table = '\ufeffpath\tsentence\r\na.wav\tsays "x, y\r\n\r\na.wav\t\r\ngone.wav\tz\r\na.wav\tb\tc\r\n'
    (tmp_path / "de" / "train.tsv").write_bytes(table.encode())
    (tmp_path / "de" / "clip_durations.tsv").write_text(
        "clip\tduration[ms]\na.wav\tlong\ngone.wav\t3600000\n"
    )
    recipe, printed = run_import("common-voice", tmp_path, tmp_path / "out")
    rows = [row for row in open_source(recipe.train[0].dataset, "train").rows() if isinstance(row, Row)]
    assert recipe.train[0].render_question(rows[0], recipe.train[0].templates[0]).answer == 'says "x, y'
    assert recipe.train[0].dataset.hours == 1.0
    assert "rows that cannot be used: broken metadata (1), missing column (1), missing file (1)" in printed


def test_common_voice(tmp_path):
    folder = tmp_path / "cv-corpus-17.0" / "de"
    for number in range(3):
        write_clip(folder / "clips" / f"{number}.wav", number)
    header = "client_id\tpath\tsentence\tlocale\n"
    (folder / "train.tsv").write_text(f'{header}x\t0.wav\tSie sagte "ja.\tde\ny\t1.wav\tNein\tde\n')
    (folder / "dev.tsv").write_text(f"{header}x\t2.wav\tVielleicht\tde\n")
    (folder / "clip_durations.tsv").write_text(
        "clip\tduration[ms]\n0.wav\t3600000\n1.wav\t1800000\n2.wav\t900\n"
    )
    recipe, _ = run_import("common-voice", tmp_path, tmp_path / "out")
    assert read(recipe.train[0]) == [('Sie sagte "ja.', 1600), ("Nein", 1600)]
    assert read(by_split(recipe)["validation"]) == [("Vielleicht", 1600)]
    assert (recipe.train[0].dataset.name, recipe.train[0].dataset.hours) == ("common_voice_de", 1.5)


def test_common_voice_without_a_training_table_and_with_several_languages(tmp_path):
    write_clip(tmp_path / "fr" / "clips" / "0.wav")
    (tmp_path / "fr" / "validated.tsv").write_text("client_id\tpath\tsentence\nx\t0.wav\tOui\n")
    recipe, printed = run_import("common-voice", tmp_path / "fr", tmp_path / "out")
    assert read(recipe.train[0]) == [("Oui", 1600)]
    assert "note: there is no train.tsv: training uses all of validated.tsv" in printed
    (tmp_path / "nl").mkdir()
    (tmp_path / "nl" / "train.tsv").write_text("path\tsentence\n")
    with pytest.raises(UserError, match=r"holds several languages \(fr, nl\); name one of them"):
        run_import("common-voice", tmp_path, tmp_path / "other")


def make_cut(start, duration, texts, **more):
    supervisions = [
        {"id": str(n), "recording_id": "r", "start": at, "duration": 0.1, "text": text, "speaker": "s"}
        for n, (at, text) in enumerate(texts)
    ]
    recording = {
        "id": "r",
        "sampling_rate": 16000,
        "sources": [{"type": "file", "channels": [0], "source": "r.wav"}],
    }
    fields = {"id": "c", "start": start, "duration": duration, "channel": 0, "type": "MonoCut"}
    return {**fields, "supervisions": supervisions, "recording": {**recording, **more}}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_lhotse_cuts_are_pieces_of_their_recordings(tmp_path, suffix):
    source = tmp_path / "cuts"
    write_clip(source / "r.wav", 1, 1.0)
    cuts = [
        make_cut(0.25, 0.5, [(0.3, "second"), (0.0, "first")]),
        make_cut(0.0, 0.125, [(0.0, "third")]),
        {"type": "MixedCut", "tracks": []},
        {"type": "MixedCut", "tracks": [{"cut": make_cut(0.0, 0.1, [])}, {"cut": make_cut(0.1, 0.1, [])}]},
        make_cut(0.0, 0.1, [(0.0, "x")], transforms=[{"name": "Speed"}]),
    ]
    content = "\n".join(map(json.dumps, cuts)).encode()
    (source / f"cuts_train.{suffix}").write_bytes(
        gzip.compress(content) if suffix.endswith("gz") else content
    )
    (source / f"recordings_train.{suffix}").write_bytes(b"")
    recipe, printed = run_import("lhotse", source, tmp_path / "out")
    assert read(recipe.train[0]) == [("first second", 8000), ("third", 2000)]
    assert recipe.train[0].dataset.hours == pytest.approx(0.625 / 3600, abs=1e-4)
    assert "2 cuts left out: not a part of one recording (a mixture, or only features)" in printed
    assert "1 cuts left out: its recording is transformed" in printed


def test_cuts_that_are_damaged_are_left_out_alone(tmp_path):
    source = tmp_path / "cuts"
    write_clip(source / "r.wav", 1, 1.0)
    cuts = [
        make_cut(0.0, 0.5, [(None, "no start"), (1.0, "twice")]),
        make_cut(0.5, 0.75, [(0.0, "longer than the recording")]),
        {**make_cut(0.0, 0.5, []), "supervisions": [{"text": "x", "custom": ["a list"]}]},
        {**make_cut(0.0, 0.5, [(0.0, "x")]), "recording": {"sources": [{"type": "file"}]}},
        {**make_cut(0.0, 0.5, [(0.0, "x")]), "recording": {"sources": None}},
        make_cut(None, 0.5, [(0.0, "x")]),
        make_cut(0.0, 0.5, []),
        [1],
    ]
    (source / "m_xl.jsonl").write_text("\ufeff" + "\r\n\r\n".join(map(json.dumps, cuts)))
    (source / "m_dev.jsonl").write_text(json.dumps(make_cut(0.0, 0.5, [(0.0, "x")])))
    recipe, printed = run_import("lhotse", source, tmp_path / "out")
    # a split of any name but dev, test
    assert recipe.train[0].dataset.hours == pytest.approx(1.75 / 3600, abs=1e-4)
    rows = [row for row in open_source(recipe.train[0].dataset, "m_xl").rows() if isinstance(row, Row)]
    assert [row.columns.get("text") for row in rows] == ["no start twice", "longer than the recording", None]
    for line in (
        "note: 1 cuts left out: its recording is not a single file",
        "note: 2 cuts left out: not a cut of Lhotse",
        "note: 1 cuts left out: no start and duration",
        "note: 1 cuts left out: not a JSON object",
        "rows that cannot be used: missing column (1)",
        "clips of the first 2 rows that cannot be decoded: span outside of the recording (1)",
    ):
        assert f"{line}\n" in printed


def test_nemo_rows_that_are_odd(tmp_path):
    names = [unicodedata.normalize("NFD", "ä"), "b"]
    for name in names:
        write_clip(tmp_path / f"{name}.wav", 1, 0.5)
    rows = [
        {"audio_filepath": "ä.wav", "duration": 0.5, "text": "accents composed otherwise"},
        {"audio_filepath": "b.wav", "duration": 0.25, "offset": 0.25, "text": "a piece"},
        {"audio_filepath": "b.wav", "duration": 3, "offset": 0.25, "text": "beyond the end"},
        {"audio_filepath": "b.wav", "offset": 0.25, "text": "without a length"},
        {"audio_filepath": "b.wav", "text": "whole"},
        {"audio_filepath": "b.wav", "duration": float("nan"), "text": "length unknown"},
        {"audio_filepath": "b.wav", "text": ""},
        {"audio_filepath": None, "text": "x"},
        {"audio_filepath": "gone.wav", "text": "x"},
    ]
    lines = [*(json.dumps(row, ensure_ascii=False) for row in rows), "", "{cut", f'{{"NaN": {"[" * 100_000}']
    (tmp_path / "train.json").write_text("\ufeff" + "\r\n".join(lines))
    recipe, printed = run_import("nemo", tmp_path / "train.json", tmp_path / "out")
    answers = []
    rows = [row for row in open_source(recipe.train[0].dataset, "train").rows() if isinstance(row, Row)]
    for row in rows:
        with suppress(RowError):
            rendered = recipe.train[0].render_question(row, recipe.train[0].templates[0])
            answers.append((rendered.answer, *map(len, decode_clips(row, 60))))
    assert answers == [
        ("accents composed otherwise", 8000),
        ("a piece", 4000),
        ("whole", 8000),
        ("length unknown", 8000),
    ]
    for line in (
        "note: 2 rows left out: not a JSON object",
        "note: 1 rows left out: no audio_filepath",
        "rows that cannot be used: broken metadata (1), empty answer (1), missing file (1)",
        "cannot be decoded: span outside of the recording (1)",
    ):
        assert f"{line}\n" in printed


def test_padded_cuts_shards_of_cuts_and_recordings_by_url_or_channel(tmp_path):
    """A cut that silence was added to is the cut; the numbered files of a split are all read; line ends are any."""
    source = tmp_path / "cuts"
    write_clip(source / "r.wav", 1, 1.0)
    padded = {
        "type": "MixedCut",
        "id": "p",
        "tracks": [
            {"cut": make_cut(0.5, 0.25, [(0.0, "one")])},
            {"cut": {"type": "PaddingCut", "duration": 1.0}, "offset": 0.25},
        ],
    }
    far = make_cut(
        0.0, 0.5, [(0.0, "far")], sources=[{"type": "url", "channels": [0], "source": "https://x/r.wav"}]
    )
    stereo = make_cut(
        0.0, 0.5, [(0.0, "x")], sources=[{"type": "file", "channels": [0, 1], "source": "r.wav"}]
    )
    shards = [
        [padded],
        [make_cut(0.0, 0.125, [(0.0, "two")])],
        [make_cut(0.0, 0.25, [(0.0, "three")]), stereo],
    ]
    for number, cuts in enumerate(shards):
        lines = [json.dumps(cut) for cut in cuts]
        (source / f"cuts_train.{number}.jsonl.gz").write_bytes(gzip.compress("\r\n".join(lines).encode()))
    (source / "cuts_dev.jsonl").write_text(json.dumps(far))
    recipe, printed = run_import("lhotse", source, tmp_path / "out")
    assert read(recipe.train[0]) == [("one", 4000), ("two", 2000), ("three", 4000)]
    assert "1 cuts left out: one channel of a recording with several" in printed
    (row,) = (tmp_path / "out/manifests/out/validation.jsonl").read_text().splitlines()
    assert json.loads(row)["audio"] == "https://x/r.wav"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["cuts_train.0.jsonl", "cuts_train.1.jsonl", "cuts_dev.jsonl"], {"train": 2, "validation": 1}),
        (["manifest_0.json", "manifest_1.json", "manifest_10.json"], {"train": 3}),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl"], {"train": 2, "test": 1}),
        (["train-clean-100.json", "train-clean-360.json"], {"train": 1, "train_clean_360": 1}),
        (["test_2019.json", "test_2021.json", "all.json"], {"test": 1, "test_2021": 1, "all": 1}),
        (["german.json", "dutch.json"], {"dutch": 1, "german": 1}),
        (["train.json", "train-clean.json", "dev.json"], {"train": 1, "train_clean": 1, "validation": 1}),
        (["validation.json", "valid-b.json", "valid-a.json"], {"validation": 1, "valid_a": 1, "valid_b": 1}),
        (["a b.json", "a_b.json"], {"a_b": 1, "a_b_2": 1}),
    ],
)
def test_numbered_files_are_shards_of_a_split(names, splits):
    assert {
        split: len(files) for split, files in name_splits([Path(name) for name in names]).items()
    } == splits


def test_nemo_manifests_of_tars(tmp_path):
    """A clip by the number of its shard; several pieces of one clip by their offsets."""
    data = tmp_path / "data"
    (data / "sharded_manifests").mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(data / f"audio_{shard}.tar", "w") as tar:
            add(tar, "en_a.wav", clip_bytes(shard + 1, "WAV", 16000))
        rows = [
            {
                "audio_filepath": "en_a.wav",
                "duration": 0.25,
                "offset": 0.5,
                "text": f"{shard}a",
                "shard_id": shard,
            },
            {"audio_filepath": "en_a.wav", "duration": 1.0, "text": f"{shard}b", "shard_id": shard},
        ]
        path = data / "sharded_manifests" / f"manifest_{shard}.json"
        path.write_text("\r\n".join(map(json.dumps, rows)))
    recipe, _ = run_import("nemo", data / "sharded_manifests", tmp_path / "out")
    assert read(recipe.train[0]) == [("0a", 4000), ("0b", 16000), ("1a", 4000), ("1b", 16000)]
    (data / "audio_1.tar").unlink()
    with pytest.raises(
        UserError, match=r"its clips are in tars \(shard_id\), but there is no .*name their folder"
    ):
        run_import("nemo", data / "sharded_manifests", tmp_path / "gone")


def test_nemo_manifests(tmp_path):
    write_clip(tmp_path / "data" / "wav" / "a.wav", 1, 1.0)
    rows = [
        {"audio_filepath": "wav/a.wav", "duration": 0.5, "offset": 0.25, "text": "one", "audio": "s3/a.wav"},
        {"audio_filepath": "wav/a.wav", "duration": 1.0, "text": "two"},
        {"duration": 1.0, "text": "three"},
    ]
    (tmp_path / "data" / "train_manifest.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "data" / "test_manifest.json").write_text(json.dumps(rows[1]))
    recipe, printed = run_import("nemo", tmp_path / "data", tmp_path / "out")
    assert read(recipe.train[0]) == [("one", 8000), ("two", 16000)]
    assert read(recipe.evaluate[0]) == [("two", 16000)]
    assert "note: 1 rows left out: no audio_filepath" in printed
    (tmp_path / "labels.json").write_text(json.dumps({"audio_filepath": "data/wav/a.wav", "label": "cat"}))
    recipe, _ = run_import("nemo", tmp_path / "labels.json", tmp_path / "labels_out")
    assert read(recipe.train[0]) == [("cat", 16000)]
    assert recipe.train[0].templates[0].path == tmp_path / "labels_out" / "labels_out_label.yaml"


SWIFT = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Listen: <audio>What?"},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ],
    "audios": ["a.wav"],
}
FACTORY = {
    "conversations": [
        {"from": "human", "value": "<audio><audio>Same?"},
        {"from": "gpt", "value": "No."},
        {"from": "human", "value": "Thanks"},
    ],
    "audios": ["a.wav", "b.wav"],
}
OLD = {"query": "And now?", "response": "Rain.", "history": [["Hi", "Hello"]], "audios": "a.wav"}
UNUSABLE = [
    {
        "messages": [{"role": "user", "content": "<audio>x"}, {"role": "assistant", "content": "y"}],
        "audios": [],
    },
    {
        "messages": [{"role": "user", "content": "<audio>x"}, {"role": "tool", "content": "y"}],
        "audios": ["a.wav"],
    },
    {**OLD, "query": "<audio><audio>"},
]


@pytest.fixture
def conversations(tmp_path):
    for name in "ab":
        write_clip(tmp_path / "data" / f"{name}.wav")
    path = tmp_path / "data" / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, [SWIFT, FACTORY, OLD, *UNUSABLE])))
    return path


def render_all(recipe, chat):
    """Prompts with their markup, and answers, by the name of the card."""
    texts = {}
    for entry in recipe.train:
        for row in open_source(entry.dataset, entry.split).rows():
            rendered = entry.render_question(row, entry.templates[0])
            prompt = "<clip>".join(map(chat.decode, chat.encode_prompt(rendered.prompt)))
            texts.setdefault(entry.dataset.name, []).append((prompt, rendered.answer))
    return texts


def test_conversations_are_written_as_the_chat_template_writes_them(tmp_path, conversations, chat_tokenizer):
    recipe, printed = run_import("messages", conversations, tmp_path / "out", turns="all")
    texts = render_all(recipe, ChatFormat(chat_tokenizer))

    def write(*turns):
        roles = ("user", "assistant")
        listed = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
        return chat_tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=True)

    first = "Be short.\n\nListen: <clip>What?"
    assert texts["out"] == [
        (write(first), "A dog."),
        (write(first, "A dog.", "Sure?"), "Yes."),
        (write("<clip>Hi"), "Hello"),
        (write("<clip>Hi", "Hello", "And now?"), "Rain."),
    ]
    assert texts["out_2_clips"] == [(write("<clip><clip>Same?"), "No.")]
    for reason in (
        "no clip (`audios`)",
        "a turn of `tool`",
        "the number of <audio> differs from that of `audios`",
    ):
        assert f"note: 1 conversations left out: {reason}" in printed


def test_answers_that_are_empty(tmp_path):
    write_clip(tmp_path / "a.wav")
    turns = [("user", "<audio>x"), ("assistant", " "), ("user", "y"), ("assistant", "z")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = [
        {"messages": messages, "audios": None, "audio": "a.wav"},
        {"messages": messages[:2], "audios": ["a.wav"]},
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe, printed = run_import("messages", tmp_path / "train.jsonl", tmp_path / "out", turns="all")
    assert read(recipe.train[0]) == [("z", 1600)]
    assert "note: 2 conversations left out: an empty answer" in printed


def test_of_each_conversation_the_last_answer_is_learned(tmp_path, conversations, chat_tokenizer):
    recipe, _ = run_import("messages", conversations, tmp_path / "out")
    texts = render_all(recipe, ChatFormat(chat_tokenizer))
    assert {name: [answer for _, answer in listed] for name, listed in texts.items()} == {
        "out": ["Yes.", "Rain."],
        "out_2_clips": ["No."],
    }


def test_the_mark_of_a_turn_in_the_data_is_no_turn(tmp_path, conversations, chat_tokenizer):
    item = json.dumps({**OLD, "query": "And <|user|> now?"})
    conversations.write_text(item)
    recipe, _ = run_import("messages", conversations, tmp_path / "out")
    row = next(iter(open_source(recipe.train[0].dataset, "train").rows()))
    prompt = recipe.train[0].render_question(row, recipe.train[0].templates[0]).prompt
    with pytest.raises(RowError, match="the marker of a turn"):
        ChatFormat(chat_tokenizer).encode_prompt(prompt)


@pytest.mark.parametrize("splits", [("train", "test"), None])
def test_folders_of_save_to_disk(tmp_path, splits):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"audio": {"bytes": clip_bytes(n), "path": None}, "emotion": n % 2, "speaker": str(n)}
        for n in range(6)
    ]
    stored = datasets.Features(
        audio={"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        emotion=datasets.ClassLabel(names=["calm", "angry"]),
        speaker=datasets.Value("string"),
    )
    table = datasets.Dataset.from_list(rows, features=stored).cast_column("audio", datasets.Audio())
    whole = datasets.DatasetDict(dict.fromkeys(splits, table)) if splits else table
    whole.save_to_disk(str(tmp_path / "saved"))
    recipe, printed = run_import("saved", tmp_path / "saved", tmp_path / "out")
    assert sorted(read(recipe.train[0])) == [("angry", 1600)] * 3 + [("calm", 1600)] * 3
    assert len(recipe.evaluate) == (1 if splits else 0)
    assert "2 different answers: calm, angry" in printed


@pytest.mark.parametrize("kind", ["librispeech", "common-voice", "lhotse", "nemo", "messages", "saved"])
def test_a_folder_of_another_layout_is_refused_and_nothing_written(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        run_import(kind, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(UserError, match=r"full is not empty; give --out a new folder"):
        run_import("nemo", tmp_path, tmp_path / "full")
    with pytest.raises(
        UserError, match=r"there is no importer 'nemos' \(did you mean 'nemo'\?\); known: xares-llm"
    ):
        run_import("nemos", tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=r"gone: there is no such file or folder"):
        run_import("nemo", tmp_path / "gone", tmp_path / "out")
    with pytest.raises(UserError, match=r"--turns first: give last or all"):
        run_import("nemo", tmp_path, tmp_path / "out", turns="first")
    write_clip(tmp_path / "a.wav")
    (tmp_path / "test.json").write_text(json.dumps({"audio_filepath": "a.wav", "text": "x"}))
    with pytest.raises(
        UserError, match="there is no training set, only out test; a recipe needs a training set"
    ):
        run_import("nemo", tmp_path / "test.json", tmp_path / "out")


def test_names_of_sets_in_any_script():
    assert [make_name(text) for text in ("My-Set 2", "コマ", "a\u0308_", "--")] == [
        "my_set_2",
        "コマ",
        "ä",
        "data",
    ]
