import json
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.data.loader import StepDataset, make_loader
from uniaudio.data.recipe import load_recipe
from uniaudio.data.source import AudioRef, Row, open_source
from uniaudio.data.stream import PlanState, StepPlan
from uniaudio.data.tokens import ChatFormat
from uniaudio.errors import UserError


class Rows:
    """A source of made-up rows; ``size=None`` hides their number, as a stream does."""

    def __init__(self, count, indexed=True, seconds=lambda i: 0.5 + i % 7):
        self.count, self.seconds = count, seconds
        self.size = count if indexed else None

    def row(self, index):
        return Row(str(index), {}, (AudioRef(b"", str(index), self.seconds(index)),))

    def stream(self, start):
        return (self.row(i) for i in range(start, self.count))


@pytest.fixture
def recipe(tone_run):
    return load_recipe(str(tone_run.with_name("tone_recipe.yaml")))


def plan(recipe, source, state=None, micro_batches=2, seed=0, pool=16, budget=20.0):
    return StepPlan(recipe, [source], seed, budget, 1.0, 15.0, pool, micro_batches, state)


def keys(step):
    return [[planned.row.key for planned in rows] for rows in step.micro]


@pytest.mark.parametrize("indexed", [True, False])
def test_every_row_once_per_epoch(recipe, indexed):
    pools = plan(recipe, Rows(48, indexed)).micro_batches_from(PlanState(0, 0, (0,), ""))
    seen, pool = [], []
    for rows, _, state in pools:
        if state.pool == 6:  # six pools of 16 are two epochs of 48
            break
        pool += [planned.row.key for planned in rows]
        seen = pool
    assert sorted(seen[:48], key=int) == sorted(seen[48:], key=int) == [str(i) for i in range(48)]
    assert seen[:48] != seen[48:]


def test_budget_holds_and_pools_are_sorted(recipe):
    for step in islice(plan(recipe, Rows(100)), 30):
        for rows in step.micro:
            assert sum(planned.seconds + 1.0 for planned in rows) <= 20.0
            assert [planned.seconds for planned in rows] == sorted(planned.seconds for planned in rows)


@settings(max_examples=25, deadline=None)
@given(
    first=st.integers(0, 25), seed=st.integers(0, 9), micro_batches=st.integers(1, 4), indexed=st.booleans()
)
def test_first_k_and_the_rest_are_all(tmp_path_factory, first, seed, micro_batches, indexed):
    recipe = HYPOTHESIS_RECIPE[0]
    source = Rows(37, indexed)
    whole = list(islice(plan(recipe, source, None, micro_batches, seed), first + 10))
    state = whole[first - 1].state if first else None
    state = PlanState.from_json(json.loads(json.dumps(state.to_json()))) if state else None
    rest = list(islice(plan(recipe, source, state, micro_batches, seed), 10))
    assert [keys(step) for step in rest] == [keys(step) for step in whole[first:]]
    assert [step.state for step in rest] == [step.state for step in whole[first:]]


HYPOTHESIS_RECIPE: list = []


@pytest.fixture(autouse=True)
def recipe_for_hypothesis(recipe):
    HYPOTHESIS_RECIPE[:] = [recipe]


def test_unusable_rows_are_skipped_and_told_once(recipe):
    source = Rows(16, seconds=lambda i: {3: 0.0, 5: 600.0}.get(i, 1.0))
    steps = list(islice(plan(recipe, source, micro_batches=1), 3))
    skips = [skip for step in steps for skip in step.skips if step.state.pool == 0]
    assert sorted((skip.row, skip.reason) for skip in skips) == [("3", "empty audio"), ("5", "clip too long")]
    with pytest.raises(UserError, match="none of 16 rows in a row can be used"):
        next(iter(plan(recipe, Rows(16, seconds=lambda i: 600.0))))


def test_other_data_are_refused_at_the_resume(recipe):
    state = next(iter(plan(recipe, Rows(37)))).state
    with pytest.raises(UserError, match="the data differ from those of the checkpoint"):
        plan(recipe, Rows(38), state)


def ids(recipe, chat_tokenizer, world, workers, state=None, steps=6):
    """The ids of the global micro-batches of some steps, put together from all ranks."""
    ranks = []
    for rank in range(world):
        sources = [open_source(entry.dataset, entry.split) for entry in recipe.train]
        steps_plan = StepPlan(recipe, sources, 0, 3.0, 0.1, 3.0, 16, 4, state)
        dataset = StepDataset(
            steps_plan, ChatFormat(chat_tokenizer), lambda n: n // 1280 + 1, ("tone",), rank, world
        )
        ranks.append(list(islice(make_loader(dataset, workers, 2), steps)))
    found = []
    for s in range(steps):
        micro = [None] * 4
        for rank in range(world):
            for i, batch in enumerate(ranks[rank][s].micro):
                micro[rank + i * world] = (batch.ids, tuple(batch.labels.tolist()))
        found.append(micro)
    return found, ranks[0][steps // 2 - 1].state


@pytest.mark.slow
def test_the_global_order_does_not_depend_on_ranks_and_workers(recipe, chat_tokenizer):
    one, state = ids(recipe, chat_tokenizer, world=1, workers=0)
    assert ids(recipe, chat_tokenizer, world=2, workers=0)[0] == one
    assert ids(recipe, chat_tokenizer, world=4, workers=2)[0] == one
    assert ids(recipe, chat_tokenizer, world=1, workers=3)[0] == one
    assert ids(recipe, chat_tokenizer, world=2, workers=2, state=state, steps=3)[0] == one[3:]


def test_bad_clips_shrink_the_batch_and_are_listed(recipe, chat_tokenizer):
    source = open_source(recipe.train[0].dataset, "train")
    broken = source.rows[0][0]
    (source.folder / broken).write_bytes((source.folder / broken).read_bytes()[:20])
    (source.folder / source.rows[1][0]).unlink()
    steps_plan = StepPlan(recipe, [source], 0, 60.0, 0.1, 60.0, 30, 1)
    dataset = StepDataset(steps_plan, ChatFormat(chat_tokenizer), lambda n: 1, ("tone",))
    step = next(make_loader(dataset, 0, 2))
    assert sorted((skip.row, skip.reason) for skip in step.skips) == sorted(
        [(broken, "broken audio"), (source.rows[1][0], "missing file")]
    )
    assert len(step.micro[0].ids) == 28
    assert step.drawn == {"tones": 30}


def test_a_mistake_in_a_worker_arrives_as_one_sentence(recipe, chat_tokenizer):
    steps_plan = plan(recipe, Rows(16, seconds=lambda i: 600.0))
    dataset = StepDataset(steps_plan, ChatFormat(chat_tokenizer), lambda n: 1, ("tone",))
    with pytest.raises(UserError, match="none of 16 rows") as mistake:
        next(make_loader(dataset, 1, 2))
    assert "\n" not in str(mistake.value)
