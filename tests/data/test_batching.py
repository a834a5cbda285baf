"""Streams of a mixture: shares, epochs, budgets, and the rest of the order from any position."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise

import pytest
from helpers.sources import Rows, Shards
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.data.augment import Augmenter, AugmentStep
from uniaudio.data.batching import PlannedRow, fill_micro_batches, level_micro_batches
from uniaudio.data.mixture import Mixture, StreamState
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError


@pytest.fixture
def recipe(tone_run):
    return load_recipe(str(tone_run.with_name("tone_recipe.yaml")))


@pytest.fixture
def mixture(recipe, chat_tokenizer):
    """Make a mixture of made-up sources with the given shares; the entries differ by name."""
    format = ChatFormat(chat_tokenizer)

    def make(*sources, shares=None, **options):
        shares = shares or [1 / len(sources)] * len(sources)
        entries = tuple(
            replace(
                recipe.train[0],
                dataset=replace(recipe.train[0].dataset, name=f"set{i}"),
                share=share,
            )
            for i, share in enumerate(shares)
        )
        settings = {
            "seed": 0,
            "audio_seconds": 20.0,
            "per_example": 1.0,
            "max_seconds": 15.0,
            "micro_batches": 2,
            "streams": 4,
            "pool": 16,
            "window": 8,
            **options,
        }
        return Mixture(replace(recipe, train=entries), sources, format, lambda n: n // 1280 + 1, **settings)

    return make


@pytest.fixture(scope="session")
def shared():
    return {}


@pytest.fixture(autouse=True)
def for_hypothesis(shared, mixture):
    """Hypothesis may not take a function's fixtures anew for each example; this one does not change between them."""
    shared["mixture"] = mixture


def planned(mixture, stream, pools, state=None):
    """The batches of a stream's first pools."""
    result = []
    for batch in mixture.iterate_stream(stream, state):
        if batch.state.pool >= pools:
            return result
        result.append(batch)


def keys(batches):
    return [(row.entry, row.row.key) for batch in batches for row in batch.rows]


@pytest.mark.parametrize("source", [Rows(48), Shards(48), Shards(12, 36), Shards(5, 5, 5, 5, 5, 5, 9, 9)])
def test_all_streams_together_see_every_row_once_per_epoch(mixture, source):
    mix = mixture(source, window=64)
    rows = Counter()
    for stream in range(4):
        rows.update(key for _, key in keys(planned(mix, stream, 3)))
    assert len(rows) == 48
    # equal parts: 48 draws of each stream are four epochs
    if isinstance(source, Rows) or len(source.shards) == 1:
        assert set(rows.values()) == {4}


def test_a_mixture_draws_by_its_shares(mixture):
    mix = mixture(Rows(1000), Shards(50, 50), Rows(3), shares=[0.7, 0.25, 0.05])
    drawn = Counter(entry for stream in range(4) for entry, _ in keys(planned(mix, stream, 25)))
    assert [drawn[entry] for entry in range(3)] == pytest.approx([1120, 400, 80], abs=4)
    [epoch] = {
        count
        for (_, _), count in Counter(
            key for stream in range(4) for key in keys(planned(mix, stream, 25)) if key[0] == 2
        ).items()
    } - {26}
    assert epoch in (27, 28)  # 80 draws of three rows


def test_budget_holds_and_micro_batches_are_sorted_and_level(mixture):
    for batch in planned(mixture(Rows(100)), 0, 8):
        seconds = [row.seconds for row in batch.rows]
        assert sum(seconds) + len(seconds) <= 20.0
        assert batch.cost == pytest.approx((sum(seconds) + len(seconds)) / 20.0)
        assert seconds == sorted(seconds)


@settings(max_examples=50)
@given(costs=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=60))
def test_leveled_batches_are_as_few_and_fuller_where_they_were_empty(costs):
    rows = [PlannedRow(0, i, None, 0.0, cost, ()) for i, cost in enumerate(sorted(costs))]
    greedy, level = fill_micro_batches(rows, 1.0), level_micro_batches(rows)
    assert [row for batch in level for row in batch] == rows
    assert len(level) == len(greedy)

    def fullest(batches):
        return max(sum(row.cost for row in batch) for batch in batches)

    assert fullest(level) <= max(1.0, max(costs)) + 1e-9
    assert fullest(level) <= fullest(greedy) + 1e-9


def test_the_decoder_has_a_budget_too(mixture):
    mix = mixture(Rows(100), tokens=200)
    format = mix.format
    for batch in planned(mix, 0, 4):
        tokens = 0
        for row in batch.rows:
            [(_, rendered)] = row.questions
            tokens += sum(map(len, format.encode_prompt(rendered.prompt))) + len(
                format.answer(rendered.answer)
            )
            tokens += round(row.seconds * 16000) // 1280 + 1
        assert tokens <= 200
        assert batch.cost == pytest.approx(tokens / 200) or batch.cost > tokens / 200


@settings(max_examples=25)
@given(
    first=st.integers(0, 25),
    seed=st.integers(0, 9),
    stream=st.integers(0, 3),
    window=st.integers(1, 30),
    sharded=st.booleans(),
)
def test_first_k_and_the_rest_are_all(shared, first, seed, stream, window, sharded):
    def mix():
        source = Shards(17, 11, 9) if sharded else Rows(37)
        return shared["mixture"](source, Rows(3), seed=seed, window=window)

    whole = list(islice(mix().iterate_stream(stream), first + 10))
    state = whole[first - 1].state if first else StreamState()
    state = StreamState.from_json(json.loads(json.dumps(state.to_json())))
    rest = list(islice(mix().iterate_stream(stream, state), 10))
    assert [keys([batch]) for batch in rest] == [keys([batch]) for batch in whole[first:]]
    assert [batch.state for batch in rest] == [batch.state for batch in whole[first:]]
    assert [q for b in rest for r in b.rows for q in r.questions] == [
        q for b in whole[first:] for r in b.rows for q in r.questions
    ]


def test_unusable_rows_are_skipped_and_reported_once(mixture):
    source = Rows(16, seconds=lambda i: {3: 0.0, 5: 600.0}.get(i, 1.0), bad={7})
    mix = mixture(source, streams=1, micro_batches=1)
    batches = planned(mix, 0, 1)
    assert sorted((skip.row, skip.reason) for batch in batches for skip in batch.skips) == [
        ("3", "empty audio"),
        ("5", "clip too long"),
        ("row 7", "missing file"),
    ]
    assert sum(batch.drawn.get("set0", 0) for batch in batches) == 16
    [first, *_] = batches
    again = planned(mix, 0, 1, first.state)
    assert not any(batch.skips or batch.drawn for batch in again)
    with pytest.raises(UserError, match="none of 16 rows in a row can be used"):
        next(mixture(Rows(16, seconds=lambda i: 600.0), streams=1, micro_batches=1).iterate_stream(0))


@pytest.mark.parametrize("pool", [1, 2, 5])
def test_pools_of_few_rows_may_hold_none_that_can_be_used(mixture, pool):
    source = Rows(20, bad=set(range(0, 20, 2)))
    mix = mixture(source, streams=1, micro_batches=1, pool=pool)
    batches = planned(mix, 0, 40 // pool)
    assert Counter(key for _, key in keys(batches)) == {str(i): 2 for i in range(1, 20, 2)}
    drawn = sum(batch.drawn.get("set0", 0) for batch in batches)
    assert drawn - sum(len(batch.skips) for batch in batches) == 20
    for batch, following in pairwise(batches):  # and a position goes on behind such pools
        assert next(mix.iterate_stream(0, batch.state)) == following
    with pytest.raises(UserError, match="none of 16 rows in a row can be used"):
        next(mixture(Rows(3, bad={0, 1, 2}), streams=1, micro_batches=1, pool=1).iterate_stream(0))


def test_a_state_is_small(mixture):
    mix = mixture(*[Shards(50, 50) for _ in range(50)], streams=8, pool=256)
    states = [next(mix.iterate_stream(index)).state.to_json() for index in range(8)]
    assert len(json.dumps(states)) < 20_000


def with_augmentation(mixture, *steps):
    augmenter = Augmenter(tuple(map(AugmentStep.model_validate, steps)), "augment")
    entries = tuple(replace(entry, augmenter=augmenter) for entry in mixture.recipe.train)
    return replace(mixture, recipe=replace(mixture.recipe, train=entries))


def test_a_change_of_speed_counts_by_the_longest_clip_and_nothing_else_changes_the_order(mixture):
    plain = mixture(Rows(100))
    loud = with_augmentation(plain, {"gain": {"db": (0, 3)}})
    slow = with_augmentation(plain, {"gain": {"db": (0, 3)}}, {"speed": {"factor": (0.8, 1.2)}})
    slower = with_augmentation(plain, {"speed": {"factor": (0.5, 1.2)}})
    assert loud.fingerprint == plain.fingerprint
    assert len({mix.fingerprint for mix in (plain, slow, slower)}) == 3
    assert planned(loud, 0, 4) == planned(plain, 0, 4)
    batches = planned(slow, 0, 8)
    for batch in batches:
        seconds = [row.seconds for row in batch.rows]
        assert batch.cost == pytest.approx((1.25 * sum(seconds) + len(seconds)) / 20.0)
        assert batch.cost <= 1
    middle = batches[len(batches) // 2]
    assert keys(planned(slow, 0, 8, middle.state)) == keys(batches[len(batches) // 2 + 1 :])


def test_the_fingerprint_knows_what_the_order_depends_on(mixture):
    base = mixture(Rows(37)).fingerprint
    assert mixture(Rows(37)).fingerprint == base
    others = [
        mixture(Rows(38)),
        mixture(Rows(37), seed=1),
        mixture(Rows(37), pool=17),
        mixture(Rows(37), streams=8),
        mixture(Rows(37), micro_batches=4),
        mixture(Rows(37), audio_seconds=21.0),
        mixture(Shards(37)),
    ]
    assert base not in {other.fingerprint for other in others}
    assert len({other.fingerprint for other in others}) == len(others)
