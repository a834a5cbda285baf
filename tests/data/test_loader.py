"""Workers: the same global order however streams are shared out, and what is said when something breaks."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from helpers.sources import Rows, Shards

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.augment import Augmenter, AugmentStep
from uniaudio.data.eval_examples import iterate_examples, open_examples
from uniaudio.data.loader import PlanState, describe_sharing, join_states, list_turns, make_loader
from uniaudio.data.mixture import Mixture
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import load_recipe
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import UserError


@pytest.fixture
def recipe(tone_run):
    return load_recipe(str(tone_run.with_name("tone_recipe.yaml")))


@pytest.fixture
def mixture(recipe, chat_tokenizer):
    def make(source=None, **options):
        settings = {
            "seed": 0,
            "audio_seconds": 3.0,
            "per_example": 0.1,
            "max_seconds": 3.0,
            "micro_batches": 4,
            "streams": 12,
            "pool": 16,
            **options,
        }
        sources = [source or open_source(recipe.train[0].dataset, "train")]
        return Mixture(recipe, sources, ChatFormat(chat_tokenizer), lambda n: n // 1280 + 1, **settings)

    return make


def global_order(mixture, world, workers, state=None, steps=6):
    """Micro-batches of some steps, put together from all ranks; and the joined state in the middle and at the end."""
    ranks = [
        list(islice(make_loader(mixture, ("tone",), rank, world, workers, 2, state), steps))
        for rank in range(world)
    ]
    result = []
    for s in range(steps):
        micro = [None] * mixture.micro_batches
        for rank in range(world):
            for i, batch in enumerate(ranks[rank][s].micro):
                micro[rank + i * world] = (
                    batch.ids,
                    tuple(batch.labels.tolist()),
                    batch.audio.values.sum().item(),
                )
        result.append(micro)

    def state_after(step):
        states = [json.loads(json.dumps(ranks[rank][step - 1].state.to_json())) for rank in range(world)]
        return PlanState.from_json(join_states(states))

    return result, state_after


@pytest.mark.slow
def test_the_global_order_does_not_depend_on_ranks_and_workers(mixture):
    mix = mixture()
    one, state_after = global_order(mix, world=1, workers=0, steps=7)
    assert global_order(mix, world=2, workers=0, steps=7)[0] == one
    assert global_order(mix, world=4, workers=2, steps=7)[0] == one
    assert global_order(mix, world=1, workers=3, steps=7)[0] == one
    # changed at the resume, twice in a row
    after_two, second_state = global_order(mix, 4, 2, state_after(2), steps=3)
    assert after_two == one[2:5]
    assert global_order(mix, 2, 3, second_state(3), steps=2)[0] == one[5:]


@pytest.mark.slow
@pytest.mark.parametrize("shards", [(30,), (7, 11, 2)])
def test_sharded_sources_too(mixture, shards, recipe):
    class Clips(Shards):
        """Shards whose rows are the tones."""

        tones = open_source(recipe.train[0].dataset, "train")

        def read(self, shard, place):
            for _, behind in super().read(shard, place):
                number = sum(self.counts[:shard]) + behind.row - 1
                yield self.tones.row(number % self.tones.size), behind

    mix = mixture(Clips(*shards), window=5)
    one, state_after = global_order(mix, 1, 0, steps=5)
    assert global_order(mix, 2, 2, steps=5)[0] == one
    assert global_order(mix, 4, 1, state_after(2), steps=3)[0] == one[2:]


@pytest.mark.parametrize(("world", "step"), [(1, 0), (2, 0), (2, 5), (4, 1), (3, 2)])
def test_turns_follow_the_places_of_a_step(mixture, world, step):
    mix = mixture(Rows(10), micro_batches=12 if world == 3 else 4)
    for rank in range(world):
        turns = list_turns(mix, rank, world, step)
        places = range(rank, mix.micro_batches, world)
        for i, stream in enumerate(turns * 2):
            s, place = step + i // len(places), places[i % len(places)]
            assert stream == (s * mix.micro_batches + place) % mix.streams
    everyone = [set(list_turns(mix, rank, world, step)) for rank in range(world)]
    assert sum(map(len, everyone)) == len(set().union(*everyone)) == mix.streams


def test_bad_clips_shrink_the_batch_and_are_listed(mixture):
    source = open_source(mixture().recipe.train[0].dataset, "train")
    broken = source.listed[0][0]
    (source.folder / broken).write_bytes((source.folder / broken).read_bytes()[:20])
    (source.folder / source.listed[1][0]).unlink()
    mix = mixture(source, audio_seconds=60.0, max_seconds=60.0, pool=30, micro_batches=1, streams=1)
    step = next(make_loader(mix, ("tone",), 0, 1, 0, 2))
    assert sorted((skip.row, skip.reason) for skip in step.skips) == sorted(
        [(broken, "broken audio"), (source.listed[1][0], "missing file")]
    )
    assert len(step.micro[0].ids) == 28
    seconds = sum(0.3 + 0.05 * (i % 9) for i in range(30))
    # the cut file is planned as its header says
    assert step.cost == pytest.approx((seconds + 0.1 * 30) / 60, rel=0.05)
    assert step.drawn == {"tones": 30}


def test_other_data_are_refused_at_the_resume(mixture):
    state = next(make_loader(mixture(), ("tone",), 0, 1, 0, 2)).state
    with pytest.raises(UserError, match="the data differ from those of the checkpoint"):
        make_loader(mixture(pool=15), ("tone",), 0, 1, 0, 2, state)


def test_a_mistake_in_a_worker_arrives_as_one_sentence(mixture):
    with pytest.raises(UserError, match="none of 16 rows") as mistake:
        next(make_loader(mixture(Rows(16, seconds=lambda i: 600.0)), ("tone",), 0, 1, 1, 2))
    assert "\n" not in str(mistake.value)


class Deadly(Rows):
    """Its row 3 kills, or keeps, whoever reads it."""

    def __init__(self, end):
        super().__init__(8, seconds=lambda i: 1.0)
        self.end = end

    def row(self, index):
        if index == 3:
            self.end()
        return super().row(index)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def stuck():
    time.sleep(60)


@pytest.mark.parametrize(
    ("end", "patience", "fate"), [(killed, 60.0, "died"), (stuck, 3.0, "did not answer in time")]
)
def test_a_worker_that_ends_is_named_with_what_it_was_at(mixture, end, patience, fate):
    mix = mixture(Deadly(end), streams=4, pool=8, patience=patience)
    with pytest.raises(UserError, match=f"a data worker {fate}; it was at: tones, the row of draw "):
        list(islice(make_loader(mix, ("tone",), 0, 1, 1, 2), 4))


def test_workers_start_whatever_way_python_would_start_processes(mixture):
    usual = multiprocessing.get_start_method()
    # the default of macOS; that of Python 3.14 on is like it
    multiprocessing.set_start_method("spawn", force=True)
    try:
        step = next(make_loader(mixture(), ("tone",), 0, 1, 1, 2))
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert step.micro[0].ids == next(make_loader(mixture(), ("tone",), 0, 1, 0, 2)).micro[0].ids


def test_what_a_user_should_know_about_streams_shards_and_workers(mixture):
    assert describe_sharing(mixture(Rows(10)), workers=3, world=4) == ""
    assert "8 workers are not started; raise data.streams" in describe_sharing(
        mixture(Rows(10)), workers=11, world=4
    )
    message = describe_sharing(mixture(Shards(5)), workers=2, world=1)
    assert message == (
        "dataset tones has 1 shard(s) for 12 streams: several streams read the same shard and take "
        "its rows in turn"
    )


def test_nobody_starves_and_nobody_repeats_with_one_shard_and_four_consumers(mixture, recipe):
    tones = open_source(recipe.train[0].dataset, "train")

    class One(Shards):
        def read(self, shard, place):
            for _, behind in super().read(shard, place):
                yield tones.row(behind.row - 1), behind

    mix = mixture(One(28), streams=4, pool=7, window=7)
    seen = Counter()
    for rank in range(4):
        steps = make_loader(mix, ("tone",), rank, 4, 0, 2)
        while True:
            step = next(steps)
            if step.state.streams[rank].pool:
                break
            seen.update(id for batch in step.micro for id in batch.ids)
    assert set(seen.values()) == {1}
    assert len(seen) == 28


def test_several_questions_share_a_clip(tone_run, chat_tokenizer):
    folder = tone_run.parent
    (folder / "tone_name.yaml").write_text(
        dump_yaml(
            {
                "task": "tone_name",
                "domain": "sound",
                "inputs": ["label"],
                "prompts": ["Say the tone twice.<audio>"],
                "target": "{{ label }} {{ label }}",
            }
        )
    )
    (folder / "both.yaml").write_text(
        dump_yaml({"recipe": "both", "train": [{"dataset": "tones", "template": ["tone", "tone_name"]}]})
    )
    recipe = load_recipe(str(folder / "both.yaml"))
    sources = [open_source(recipe.train[0].dataset, "train")]
    mix = Mixture(
        recipe, sources, ChatFormat(chat_tokenizer), lambda n: n // 1280 + 1, 0, 6.0, 0.1, 3.0, 1, 1, pool=16
    )
    step = next(make_loader(mix, ("tone", "tone_name"), 0, 1, 0, 2))
    [batch] = step.micro
    clips = len(batch.audio.lengths)
    assert len(batch.ids) == 2 * clips
    assert [name.partition("?")[2] for name in batch.ids] == ["tone", "tone_name"] * clips
    assert len(batch.audio_positions) == len(batch.audio_index) == 2 * batch.audio_tokens
    slots = [length // 1280 + 1 for length in batch.audio.lengths.tolist()]
    expected, start = [], 0
    for count in slots:
        expected += [*range(start, start + count)] * 2
        start += count
    assert batch.audio_index.tolist() == expected
    assert torch.equal(torch.bincount(batch.label_task).gt(0), torch.tensor([True, True]))
    assert step.drawn == {"tones": 32}


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_epoch_holds_every_row_once_rejected_clips_included(mixture, recipe, world, workers):
    source = open_source(recipe.train[0].dataset, "train")
    for key, _ in source.listed[3:5]:
        (source.folder / key).write_bytes(b"no audio")
    # the first pools of six streams are the 30 rows
    mix = mixture(source, micro_batches=6, streams=6, pool=5)
    seen, left = Counter(), Counter()
    for rank in range(world):
        pools = {}
        for step in make_loader(mix, ("tone",), rank, world, workers, 2):
            places = range(rank, mix.micro_batches, world)
            streams = [((step.state.step - 1) * 6 + place) % 6 for place in places]
            for stream, batch in zip(streams, step.micro, strict=True):
                if step.state.streams[stream].pool == 0:
                    seen.update(id.rpartition("/")[2] for id in batch.ids)
            if all(step.state.streams[stream].pool == 0 for stream in streams):
                left.update(skip.row for skip in step.skips)
            pools |= {stream: step.state.streams[stream].pool for stream in streams}
            if min(pools.values()) > 0:
                break
    broken = {key for key, _ in source.listed[3:5]}
    assert set(seen) | broken == {key for key, _ in source.listed}
    assert set(seen.values()) == {1}
    assert set(left) <= broken


def test_a_condition_degrades_the_clips_of_an_evaluation_in_the_same_way_each_time(tone_run):
    folder = tone_run.parent
    lines = [{"dataset": "tones", "template": "tone", "condition": name} for name in (None, "noise_10db")]
    content = {"recipe": "loud", "train": [{"dataset": "tones", "template": "tone"}], "evaluate": lines}
    (folder / "loud.yaml").write_text(dump_yaml(content))
    plain, noisy = load_recipe(str(folder / "loud.yaml")).evaluate
    assert (plain.name, noisy.name) == ("tones:tone", "tones:tone@noise_10db")
    clean, first, second = (
        [example.clips[0].astype(int) for _, (example, _) in iterate_examples(open_examples(entry, 4), 30.0)]
        for entry in (plain, noisy, noisy)
    )
    for before, after, again in zip(clean, first, second, strict=True):
        assert np.array_equal(after, again)
        ratio = np.mean(before**2) / np.mean((after - before) ** 2)
        assert 10 * np.log10(ratio) == pytest.approx(10, abs=0.1)


def test_a_long_text_is_skipped_under_its_name_and_its_neighbours_stay(mixture, chat_tokenizer):
    """Words enough for the limit of characters, too many for the limit of tokens."""
    source = open_source(mixture().recipe.train[0].dataset, "train")
    long = source.listed[3][0]
    template = replace(mixture().recipe.train[0].templates[0], labels=None)
    source.listed[3] = (long, {**source.listed[3][1], "label": "low " * 100})
    mix = mixture(source, audio_seconds=60.0, max_seconds=60.0, pool=30, micro_batches=1, streams=1)
    entry = replace(mix.recipe.train[0], templates=(template,))
    for tokens in (None, 10_000):
        mix = replace(
            mix,
            recipe=replace(mix.recipe, train=(entry,)),
            format=ChatFormat(chat_tokenizer, None, 100),
            tokens=tokens,
        )
        step = next(make_loader(mix, ("tone",), 0, 1, 0, 2))
        assert [(skip.row, skip.reason) for skip in step.skips] == [(long, "text too long")]
        assert len(step.micro[0].ids) == 29


def test_an_example_with_more_tokens_than_positions_is_skipped(mixture, chat_tokenizer):
    """The tones are 0.3 to 0.7 s long: 4 to 10 audio tokens beside the same text."""
    source = open_source(mixture().recipe.train[0].dataset, "train")
    mix = mixture(source, audio_seconds=60.0, max_seconds=60.0, pool=30, micro_batches=1, streams=1)
    whole = next(make_loader(mix, ("tone",), 0, 1, 0, 2)).micro[0].tokens.lengths
    limited = replace(mix, format=ChatFormat(chat_tokenizer, max_positions=int(whole.median())))
    step = next(make_loader(limited, ("tone",), 0, 1, 0, 2))
    assert len(step.skips) == int((whole > whole.median()).sum()) > 0
    assert {skip.reason for skip in step.skips} == {"text too long"}
    assert step.micro[0].tokens.lengths.max() == whole.median()


@pytest.mark.parametrize(("stated", "believed"), [(0.9, False), (0.05, False), (0.39, True), (0.21, True)])
def test_a_clip_of_another_length_than_stated_is_skipped(mixture, stated, believed):
    """The first tone is 0.3 s long."""
    source = open_source(mixture().recipe.train[0].dataset, "train")
    key, columns = source.listed[0]
    source.listed[0] = (key, {**columns, "duration": stated})
    mix = mixture(source, audio_seconds=60.0, max_seconds=60.0, pool=30, micro_batches=1, streams=1)
    step = next(make_loader(mix, ("tone",), 0, 1, 0, 2))
    assert [(skip.row, skip.reason) for skip in step.skips] == (
        [] if believed else [(key, "stated duration is wrong")]
    )
    assert f"{stated:.2f} s stated, 0.30 s decoded" in "".join(skip.detail for skip in step.skips) or believed
    assert len(step.micro[0].ids) == 29 + believed


def test_the_budget_holds_by_what_was_decoded(mixture):
    """Clips of 0.3 to 0.7 s that are all stated as 0.05 s: none of them is taken, none of the others is lost."""
    source = open_source(mixture().recipe.train[0].dataset, "train")
    for i in range(0, 30, 2):
        key, columns = source.listed[i]
        source.listed[i] = (key, {**columns, "duration": 0.05})
    mix = mixture(source, audio_seconds=2.0, per_example=0.0, pool=30, micro_batches=1, streams=1)
    steps = list(islice(make_loader(mix, ("tone",), 0, 1, 0, 2), 12))
    assert all(step.micro[0].audio_seconds <= 2.0 for step in steps)
    assert {skip.reason for step in steps for skip in step.skips} == {"stated duration is wrong"}
    ids = {name.rpartition("/")[2] for step in steps for name in step.micro[0].ids}
    assert ids == {source.listed[i][0].rpartition("/")[2] for i in range(1, 30, 2)}


@pytest.mark.parametrize("tokens", [None, 80])
def test_the_budget_holds_by_the_length_after_a_change_of_speed(mixture, recipe, tokens):
    """Clips of 0.3 to 0.7 s become 0.6 to 1.4 s."""
    steps = (AugmentStep.model_validate({"speed": {"factor": (0.5, 0.5)}}),)
    slow = replace(recipe.train[0], augmenter=Augmenter(steps, "augment"))
    mix = mixture(audio_seconds=3.0, per_example=0.0, tokens=tokens, pool=30, micro_batches=1, streams=1)
    mix = replace(mix, recipe=replace(recipe, train=(slow,)))
    steps = list(islice(make_loader(mix, ("tone",), 0, 1, 0, 2), 20))
    slots = [sum(n // 1280 + 1 for n in step.micro[0].audio.lengths.tolist()) for step in steps]
    lengths = [length for step in steps for length in step.micro[0].audio.lengths.tolist()]
    assert max(lengths) > 16000  # they were changed
    assert all(step.micro[0].audio_seconds <= 3.001 for step in steps)
    assert all(count <= (tokens or count) for count in slots)
    assert max(step.cost for step in steps) > 0.5
    after = steps[4].state
    again = list(islice(make_loader(mix, ("tone",), 0, 1, 0, 2, after), 3))
    assert [step.micro[0].ids for step in again] == [step.micro[0].ids for step in steps[5:8]]


def test_evaluation_compares_lengths_too(recipe, tmp_path):
    entry = recipe.evaluate[0]
    whole = [item for _, item in iterate_examples(open_examples(entry, None), 30.0)]
    rows = [
        {
            "audio": str(ref.source),
            "label": row.columns["label"],
            "duration": 9.0 if i == 1 else ref.read_seconds(),
        }
        for i, row in enumerate(islice(open_source(entry.dataset, entry.split).rows(), 3))
        for ref in row.audio
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = entry.dataset.load.model_copy(
        update={entry.dataset.load.kind: None, "jsonl": str(tmp_path / "rows.jsonl")}
    )
    split = replace(entry.dataset.splits[entry.split], keep=None)
    card = replace(entry.dataset, load=load, splits={entry.split: split}, columns={}, audio=("audio",))
    cards_entry = replace(entry, dataset=card)
    stated = [item for _, item in iterate_examples(open_examples(cards_entry, None), 30.0)]
    assert stated[1].reason == "stated duration is wrong"
    assert [item[0].answer for item in (stated[0], stated[2])] == [
        item[0].answer for item in (whole[0], whole[2])
    ]
