"""Clips longer than a model takes: where crops and windows lie, and that positions in them are exact."""

import io
import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise

import numpy as np
import pytest
import soundfile
import yaml
from helpers.sources import Rows, Shards
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from uniaudio.checks.first_rows import check_entry, estimate_average_clip
from uniaudio.commands.data_stats import measure_entry
from uniaudio.commands.preview import show_row
from uniaudio.data.eval_examples import iterate_examples, open_examples
from uniaudio.data.loader import make_loader
from uniaudio.data.long_clips import LongClips, cut_long_clips, list_window_spans
from uniaudio.data.mixture import Mixture, StreamState
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import load_recipe
from uniaudio.data.sampler import IndexedCursor, Mark, ShardCursor, WindowCursor
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError


@pytest.mark.parametrize(
    ("length", "seconds", "hop", "spans"),
    [
        (70, 30, 30, [(0, 30), (30, 60), (60, 70)]),
        (60, 30, 30, [(0, 30), (30, 60)]),
        (60.5, 30, 30, [(0, 30), (30, 60.5)]),  # half a second is no window
        (30.9, 30, 30, [(0, 30.9)]),
        (20, 30, 30, [(0, 20)]),
        (70, 30, 15, [(0, 30), (15, 45), (30, 60), (45, 70)]),
        (2.4, 1, 1, [(0, 1), (1, 2.4)]),
        (2.6, 1, 1, [(0, 1), (1, 2), (2, 2.6)]),
    ],
)
def test_where_windows_lie(length, seconds, hop, spans):
    assert list_window_spans(length, seconds, hop, "x") == spans


@given(st.floats(0.1, 500), st.floats(0.5, 60), st.floats(0.1, 1))
@example(39.0, 1.9619477936755236, 1.0)  # 18 * hop + hop is rounded to less than 19 * hop
def test_windows_hold_all_of_a_clip(length, seconds, share):
    spans = list_window_spans(length, seconds, seconds * share, "x")
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(before[1] >= after[0] for before, after in pairwise(spans))
    assert all(end - start == pytest.approx(seconds) for start, end in spans[:-1])
    assert 0 < spans[-1][1] - spans[-1][0] <= seconds + 1.001


def test_a_clip_of_too_many_windows_is_skipped():
    with pytest.raises(RowError, match="clip too long: x: 5000000\\.0 s would be 200,000 windows"):
        list_window_spans(5_000_000, 30, 25, "x")


@pytest.fixture
def folder(tmp_path):
    """Recordings of 10, 3 and 1 s; every tenth of a second has a level, its number."""
    rows = []
    for name, seconds in (("ten", 10), ("three", 3), ("one", 1)):
        levels = np.repeat(np.arange(seconds * 10, dtype=np.int16), 1600)
        soundfile.write(tmp_path / f"{name}.flac", levels, 16000)
        rows.append({"audio": f"{name}.flac", "label": name})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write_recipe(folder, line=None, card=None, **template):
    """Write a recipe with a training and an evaluation line over the recordings; return what it is read to."""
    files = {
        "t": {
            "task": "t",
            "domain": "sound",
            "inputs": ["label"],
            "prompts": ["<audio>?"],
            "target": "{{ label }}",
            **template,
        },
        "d": {
            "dataset": "d",
            "load": {"jsonl": "m.jsonl"},
            "license": "CC0",
            "splits": {"train": {}},
            **({"long_clips": card} if card else {}),
        },
        "r": {
            "recipe": "r",
            **{
                key: [
                    {
                        "dataset": "d",
                        "template": "t",
                        "split": "train",
                        **({"long_clips": line} if line else {}),
                    }
                ]
                for key in ("train", "evaluate")
            },
        },
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return load_recipe(str(folder / "r.yaml"))


@pytest.mark.parametrize(
    ("line", "card", "chosen"),
    [
        (None, None, None),
        ("crop", None, LongClips("crop")),
        (None, "windows", LongClips("windows")),
        ("skip", "windows", LongClips("skip")),
        ({"how": "windows", "seconds": 4, "hop": 2}, "crop", LongClips("windows", 4, 2)),
    ],
)
def test_a_line_is_preferred_to_the_card(folder, line, card, chosen):
    recipe = write_recipe(folder, line, card)
    assert recipe.train[0].long_clips == chosen
    assert recipe.evaluate[0].long_clips == chosen


@pytest.mark.parametrize(
    ("line", "template", "message"),
    [
        (
            "window",
            {},
            r"train\.0\.long_clips\.how: 'window' is not one of skip, crop, windows .did you mean 'windows'",
        ),
        ({"seconds": 3}, {}, r"long_clips\.how: is required"),
        ({"how": "crop", "hop": 1}, {}, r"hop is only for `how: windows`, but how is crop"),
        ({"how": "windows", "seconds": 1, "hop": 2}, {}, r"hop: 2 is more than seconds: 1"),
        ({"how": "crop", "seconds": 0}, {}, r"long_clips\.seconds: input should be greater than 0, got 0"),
        (
            {"how": "windows", "hop": 2},
            {"scoring": {"metric": "wer"}},
            r"evaluate\[0\]: long_clips\.hop: .* joined for wer, and overlapping windows would "
            r"repeat words",
        ),
    ],
)
def test_lengths_that_cannot_be_are_refused(folder, line, template, message):
    with pytest.raises(UserError, match=message):
        write_recipe(folder, line, **template)


def make_mixture(recipe, chat_tokenizer, source=None, **options):
    settings = {
        "audio_seconds": 12.0,
        "per_example": 0.1,
        "max_seconds": 4.0,
        "micro_batches": 2,
        "streams": 2,
    }
    sources = [source or open_source(recipe.train[0].dataset, "train")]
    return Mixture(
        recipe,
        sources,
        ChatFormat(chat_tokenizer),
        lambda n: n // 1280 + 1,
        **{"seed": 0, "pool": 12, "window": 8, **settings, **options},
    )


def train_clips(mixture, steps, workers=0, state=None):
    """Return (id, levels in it) of the clips of some steps, in order, the skips, and the position behind them."""
    clips, skips = [], []
    for step in islice(make_loader(mixture, ("t",), 0, 1, workers, 2, state), steps):
        for batch in step.micro:
            rows = [row[::1600].tolist() for row in batch.audio.rows()]
            clips += list(zip(batch.ids, rows, strict=True))
        skips += step.skips
        state = step.state
    return clips, skips, state


def test_crops_lie_anywhere_and_come_again_after_a_resume(folder, chat_tokenizer):
    mixture = make_mixture(write_recipe(folder, {"how": "crop", "seconds": 2}), chat_tokenizer)
    clips, skips, _ = train_clips(mixture, 8)
    assert not skips
    crops = [levels for name, levels in clips if name == "d/train/ten.flac"]
    assert {len(levels) for levels in crops} <= {20, 21}
    assert len({levels[0] for levels in crops}) > 5
    assert {tuple(levels) for name, levels in clips if name == "d/train/one.flac"} == {tuple(range(10))}
    first, _, state = train_clips(mixture, 3)
    again, _, _ = train_clips(mixture, 5, state=state)
    assert first + again == clips


def test_a_limit_that_is_not_stated_is_that_of_the_run(folder, chat_tokenizer):
    mixture = make_mixture(write_recipe(folder, "crop"), chat_tokenizer)
    clips, skips, _ = train_clips(mixture, 4)
    assert not skips
    assert {len(levels) for name, levels in clips if "ten" in name} <= {40, 41}
    for how, reason in (
        (None, r"data\.max_seconds is 4"),
        ({"how": "skip", "seconds": 2}, r"long_clips\.seconds is 2"),
    ):
        skips = train_clips(make_mixture(write_recipe(folder, how), chat_tokenizer), 4)[1]
        assert {skip.reason for skip in skips} == {"clip too long"}
        assert reason.replace("\\", "") in skips[0].detail
    too_long = make_mixture(write_recipe(folder, {"how": "crop", "seconds": 5}), chat_tokenizer)
    with pytest.raises(
        UserError, match=r"long_clips\.seconds: 5 is more than the longest clip of the run, 4 s"
    ):
        train_clips(too_long, 1)


def test_every_window_is_an_example(folder, chat_tokenizer):
    recipe = write_recipe(folder, {"how": "windows", "seconds": 4, "hop": 3})
    clips, skips, _ = train_clips(make_mixture(recipe, chat_tokenizer, streams=2), 30)
    assert not skips
    expected = {
        "d/train/ten.flac#t=0,4": range(0, 40),
        "d/train/ten.flac#t=3,7": range(30, 70),
        "d/train/ten.flac#t=6,10": range(60, 100),
        "d/train/three.flac": range(0, 30),
        "d/train/one.flac": range(0, 10),
    }
    assert dict(clips) == {name: list(levels) for name, levels in expected.items()}
    counts = Counter(name for name, _ in clips)
    assert max(counts.values()) - min(counts.values()) <= 6


SOURCES = [Rows(7, seconds=lambda i: 1 + 9.7 * i, bad={3}), Shards(4, 3, 6, seconds=lambda i: 1 + 9.7 * i)]


@pytest.mark.parametrize("source", SOURCES)
def test_a_position_in_mid_recording_gives_the_rest(folder, chat_tokenizer, source):
    recipe = write_recipe(folder, {"how": "windows", "seconds": 4})
    mixture = make_mixture(recipe, chat_tokenizer, source)

    def plan(first, count, state=None):
        batches = list(islice(mixture.iterate_stream(first, state), count))
        return [
            [(row.k, row.row.key, row.row.audio[0].span) for row in batch.rows] for batch in batches
        ], batches

    for stream in (0, 1):
        whole, batches = plan(stream, 25)
        assert sum("#t=" in key for batch in whole for _, key, _ in batch) > 40
        for done in (1, 7, 18):
            state = StreamState.from_json(json.loads(json.dumps(batches[done - 1].state.to_json())))
            assert plan(stream, 25 - done, state)[0] == whole[done:]


@pytest.mark.parametrize("is_sharded", [False, True])
def test_each_window_comes_once_in_each_epoch(is_sharded):
    cut = partial(cut_long_clips, long_clips=LongClips("windows", 4, 4))

    def open_cursor(mark):
        if is_sharded:
            shards = Shards(4, 3, seconds=lambda i: 1 + 9.7 * i)
            return ShardCursor(shards, "x", 0, 0, 1, 100, 9.0, mark, cut=cut)
        return WindowCursor(IndexedCursor(Rows(7, seconds=lambda i: 1 + 9.7 * i), 0, 0, 1), 1, cut, mark)

    cursor = open_cursor(Mark())
    count = sum(len(list_window_spans(row, 4, 4, "")) for row in cut_lengths(is_sharded))
    epochs = [[cursor.take().key for _ in range(count)] for _ in range(2)]
    assert len(set(epochs[0])) == count
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    for taken in (count // 2, count):  # at `count` the windows that are shuffled together are just used up
        cursor = open_cursor(Mark())
        keys = [cursor.take().key for _ in range(taken)]
        cursor = open_cursor(Mark(*json.loads(json.dumps(cursor.mark))))
        assert keys + [cursor.take().key for _ in range(2 * count - taken)] == [*epochs[0], *epochs[1]]


def cut_lengths(is_sharded):
    """The seconds of the rows of the sources above."""
    return [1 + 9.7 * i for i in ([*range(4), *range(3)] if is_sharded else range(7))]


@pytest.mark.slow
@pytest.mark.parametrize("line", ["crop", {"how": "windows", "seconds": 2}])
def test_workers_change_nothing(folder, chat_tokenizer, line):
    mixture = make_mixture(write_recipe(folder, line), chat_tokenizer, streams=4)
    clips, _, _ = train_clips(mixture, 6)
    first, _, state = train_clips(mixture, 2, workers=2)
    again, _, _ = train_clips(mixture, 4, workers=3, state=state)
    assert first + again == clips


def test_another_treatment_is_another_order(folder, chat_tokenizer):
    plain, crop, windows = (
        make_mixture(write_recipe(folder, line), chat_tokenizer).fingerprint
        for line in (None, "crop", "windows")
    )
    assert len({plain, crop, windows}) == 3
    # checkpoints of runs without it go on
    assert plain == make_mixture(write_recipe(folder, None), chat_tokenizer).fingerprint


def evaluate_clips(entry, window_seconds=4.0):
    items = list(iterate_examples(open_examples(entry, None), window_seconds))
    return [
        (place, item[0].id, item[0].window, item[0].clips[0][::1600].tolist())
        for place, item in items
        if not isinstance(item, Skip)
    ], [item for _, item in items if isinstance(item, Skip)]


def test_evaluation_takes_windows_of_the_reach(folder):
    clips, skips = evaluate_clips(write_recipe(folder).evaluate[0])
    assert not skips
    assert clips == [
        (0, "d/train/ten.flac#t=0,4", (0, 4), list(range(0, 40))),
        (0, "d/train/ten.flac#t=4,8", (4, 8), list(range(40, 80))),
        (0, "d/train/ten.flac#t=8,10", (8, 10), list(range(80, 100))),
        (1, "d/train/three.flac", None, list(range(30))),
        (2, "d/train/one.flac", None, list(range(10))),
    ]


def test_evaluation_crops_the_middle_and_skips(folder):
    clips, _ = evaluate_clips(write_recipe(folder, {"how": "crop", "seconds": 2}).evaluate[0])
    assert clips[0] == (0, "d/train/ten.flac", None, list(range(40, 60)))
    clips, skips = evaluate_clips(write_recipe(folder, {"how": "skip", "seconds": 5}).evaluate[0])
    assert [place for place, *_ in clips] == [1, 2]
    assert skips[0].reason == "clip too long"
    clips, _ = evaluate_clips(write_recipe(folder, "skip").evaluate[0])
    assert clips[0] == (0, "d/train/ten.flac", None, list(range(100)))


def test_a_hop_above_the_windows_of_an_evaluation_is_their_length(folder):
    """As on a card, for training with longer windows: an encoder's reach is known when the first set is evaluated."""
    clips, skips = evaluate_clips(write_recipe(folder, {"how": "windows", "hop": 6}).evaluate[0])
    assert not skips
    assert [window for _, _, window, _ in clips[:3]] == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize("how", ["windows", "crop"])
def test_evaluation_takes_windows_and_crops_of_any_stated_length(folder, monkeypatch, how):
    monkeypatch.setattr("uniaudio.data.eval_examples.LONGEST_CLIP", 1.0)  # of a clip as a whole
    clips, skips = evaluate_clips(write_recipe(folder, {"how": how, "seconds": 4}).evaluate[0])
    assert not skips
    assert [len(clip) for _, _, _, clip in clips] == (
        [40, 40, 20, 30, 10] if how == "windows" else [40, 30, 10]
    )


def test_windows_of_a_segment_stay_in_it(folder):
    row = {"audio": "ten.flac", "label": "x", "start": 1.0, "end": 9.0}
    (folder / "m.jsonl").write_text(json.dumps(row) + "\n")
    clips, _ = evaluate_clips(write_recipe(folder, {"how": "windows", "seconds": 3}).evaluate[0])
    assert [(window, levels[0], levels[-1]) for _, _, window, levels in clips] == [
        ((0, 3), 10, 39),
        ((3, 6), 40, 69),
        ((6, 8), 70, 89),
    ]


def test_a_clip_that_breaks_in_the_middle_is_skipped_once(folder):
    (folder / "m.jsonl").write_text(json.dumps({"audio": "ten.flac", "label": "x", "duration": 14.0}) + "\n")
    clips, skips = evaluate_clips(write_recipe(folder).evaluate[0])
    assert [window for _, _, window, _ in clips] == [(0, 4), (4, 8)]
    assert [skip.reason for skip in skips] == ["span outside of the recording"]


def test_the_check_says_what_a_part_of_a_clip_is_trained_with(folder):
    recipe = write_recipe(folder, {"how": "crop", "seconds": 2}, scoring={"metric": "wer"})
    seen = check_entry(recipe.train[0])
    assert seen.seconds == pytest.approx((2 + 2 + 1) / 3)
    assert any("trained with the answer to the whole clip" in note for note in seen.notes)
    assert not check_entry(recipe.evaluate[0]).notes
    assert not check_entry(replace(recipe.train[0], long_clips=None)).notes


def cut_lines(folder, line):
    """The training entry of a recipe whose line says what becomes of long clips."""
    return write_recipe(folder, line).train[0]


def test_stats_are_those_of_the_pieces(folder):
    whole = measure_entry(cut_lines(folder, None), 10)
    assert (sorted(whole.seconds), whole.examples, whole.notes) == ([1, 3, 10], 3, [])
    cropped = measure_entry(cut_lines(folder, "crop"), 10, longest=2.0)
    assert sorted(cropped.seconds) == [1, 2, 2]
    assert cropped.notes == [
        "long_clips: crop of 2 s: cuts 2 of 3 rows read; lengths below are those of the pieces, "
        "hours those of the recordings"
    ]
    cut = measure_entry(cut_lines(folder, {"how": "windows", "seconds": 4}), 10, longest=60.0)
    assert sorted(cut.seconds) == [1, 2, 3, 4, 4]
    assert (cut.rows, cut.examples, cut.hours) == (3, 5, pytest.approx(14 / 3600))
    assert "cuts 1 of 3 rows read, which makes 5 examples of them" in cut.notes[0]
    skipped = measure_entry(cut_lines(folder, None), 10, longest=5.0)
    assert (sorted(skipped.seconds), skipped.unusable) == ([1, 3], 1)
    assert skipped.notes[0] == "rows that cannot be used: clip too long (1)"
    assert skipped.notes[1].startswith(
        "1 of 3 rows read have clips that are too long for training and are skipped"
    )


def test_preview_shows_a_piece_with_its_time(folder, chat_tokenizer):
    format = ChatFormat(chat_tokenizer)

    def show(line, longest):
        entry, console = cut_lines(folder, line), Console(file=io.StringIO(), width=200)
        source = open_source(entry.dataset, "train")
        for number in range(8):
            show_row(console, "", entry, source, (0, number), format, longest)
        return console.file.getvalue()

    windows = show({"how": "windows", "seconds": 4}, 60.0)
    assert {"0.00 to 4.00", "4.00 to 8.00", "8.00 to 10.00"} >= set(
        re.findall(r"from (\S+ to \S+) s", windows)
    )
    assert "row ten.flac#t=" in windows
    assert "4.00 s of audio" in windows
    assert "10.00 s of audio" not in windows
    crops = re.findall(r"<audio 2.00 s, from (\S+) to (\S+) s>", show("crop", 2.0))
    assert len(set(crops)) > 1
    assert all(float(end) - float(start) == pytest.approx(2, abs=0.011) for start, end in crops)
    assert "clip too long: ten.flac.audio: 10.0 s, data.max_seconds is 5" in show(None, 5.0)


def test_the_mean_length_is_that_of_crops_of_the_run(folder):
    recipe = write_recipe(folder, "crop")
    assert estimate_average_clip(recipe, longest=2.0).seconds == pytest.approx(5 / 3)
