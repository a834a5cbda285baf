"""Questions about one clip that share the beginning of their prompts, in a batch and in what it costs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.collate import collate, collate_prompts
from uniaudio.data.loader import make_loader
from uniaudio.data.mixture import Mixture
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import load_recipe
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.types import Example

TASKS = ("t",)


class WrittenIds:
    """Stands for a chat format: texts are token ids, written as numbers."""

    def encode_prompt(self, pieces):
        return [[int(word) for word in piece.split()] for piece in pieces]

    def answer(self, text):
        return [int(word) for word in text.split()]


def count_slots(samples):
    return samples // 100


def examples(groups):
    """Make the examples of ``[(samples of each clip, [(pieces of the prompt, answer)])]``."""
    return [
        Example(f"{g}/{q}", "t", "d", tuple(np.full(n, g, np.int16) for n in lengths), pieces, answer, q > 0)
        for g, (lengths, questions) in enumerate(groups)
        for q, (pieces, answer) in enumerate(questions)
    ]


def columns(batch):
    """Return for every row ``(token or number of the audio token, whether it is audio)`` and its labels by place."""
    seen = dict(zip(batch.audio_positions.tolist(), batch.audio_index.tolist(), strict=True))
    answers = dict(zip(batch.label_positions.tolist(), batch.labels.tolist(), strict=True))
    rows, begin = [], 0
    for row in batch.tokens.rows():
        places = range(begin, begin + len(row))
        ids = [(seen.get(p, int(row[p - begin])), p in seen) for p in places]
        rows.append((ids, [(p - begin, answers[p]) for p in places if p in answers]))
        begin += len(row)
    return rows


def put_together(batch):
    """Return the rows with the shared beginnings in front of those that lack them."""
    rows = columns(batch)
    if batch.prefixes is None:
        return rows
    whole = []
    for (ids, labels), leader, shared in zip(
        rows, batch.prefixes.leaders.tolist(), batch.prefixes.lengths.tolist(), strict=True
    ):
        whole.append((rows[leader][0][:shared] + ids, [(place + shared, label) for place, label in labels]))
    return whole


def test_rows_hold_what_comes_after_the_clip():
    questions = [(("1 2", "3"), "7 9"), (("1 2", "4 5"), "8 9"), (("1", "3"), "7 9"), (("1", "6"), "8 9")]
    batch = collate(examples([((300,), questions)]), WrittenIds(), count_slots, TASKS, share=True)
    assert [row.tolist() for row in batch.tokens.rows()] == [
        [1, 2, 0, 0, 0, 3, 7, 9],
        [4, 5, 8, 9],
        [1, 0, 0, 0, 3, 7, 9],  # its text in front is another one
        [6, 8, 9],
    ]
    assert batch.prefixes.leaders.tolist() == [0, 0, 2, 2]
    assert batch.prefixes.lengths.tolist() == [0, 5, 0, 4]
    assert batch.audio_positions.tolist() == [2, 3, 4, 13, 14, 15]
    assert batch.audio_index.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.label_positions.tolist() == [5, 6, 9, 10, 16, 17, 19, 20]
    assert batch.prompt_lengths.tolist() == [6, 2, 5, 1]
    assert batch.example_clips.values.tolist() == [0, 0, 0, 0]
    assert batch.audio_tokens == 3


@pytest.mark.parametrize(
    "groups",
    [
        [((300,), [(("1", "3"), "7 9")]), ((300,), [(("1", "4"), "7 9")])],  # other clips
        [((300,), [(("1", "3"), "7 9"), (("2", "3"), "7 9")])],  # other text before the clip
        [((300, 200), [(("1", "2", "3"), "7 9"), (("1", "4", "3"), "7 9")])],  # between two clips
        [((300,), [(("1", ""), "7 9"), (("1", ""), "8 9")])],  # nothing of its own to predict from
    ],
)
def test_what_is_not_shared(groups):
    some = examples(groups)
    batch = collate(some, WrittenIds(), count_slots, TASKS, share=True)
    assert batch.prefixes is None
    assert torch.equal(batch.tokens.values, collate(some, WrittenIds(), count_slots, TASKS).tokens.values)


def test_prompts_to_generate_from_are_whole():
    some = examples([((300,), [(("1", "3"), "7 9"), (("1", "4"), "8 9")])])
    batch = collate_prompts(some, WrittenIds(), count_slots, TASKS)
    assert batch.prefixes is None
    assert [row.tolist() for row in batch.tokens.rows()] == [[1, 0, 0, 0, 3], [1, 0, 0, 0, 4]]


IDS = st.lists(st.integers(1, 3), max_size=3).map(lambda ids: " ".join(map(str, ids)))
ANSWERS = IDS.map(lambda text: f"{text} 8 9")


@st.composite
def groups_of_questions(draw):
    groups = []
    for _ in range(draw(st.integers(1, 4))):
        lengths = draw(st.lists(st.integers(1, 600), min_size=1, max_size=2))
        prompt = st.tuples(*[IDS] * len(lengths), IDS.filter(bool))
        groups.append((lengths, draw(st.lists(st.tuples(prompt, ANSWERS), min_size=1, max_size=5))))
    return groups


@settings(max_examples=60)
@given(groups=groups_of_questions())
def test_the_same_rows_and_labels_whether_shared_or_not(groups):
    some = examples(groups)
    shared = collate(some, WrittenIds(), count_slots, TASKS, share=True)
    whole = collate(some, WrittenIds(), count_slots, TASKS)
    assert put_together(shared) == put_together(whole)
    assert shared.audio_tokens == whole.audio_tokens
    assert torch.equal(shared.label_task, whole.label_task)
    assert shared.example_clips.values.tolist() == whole.example_clips.values.tolist()
    # each beginning stands once, where anything is behind it
    known, tokens = set(), 0
    for example in some:
        pieces = example.prompt
        key = (example.id.split("/")[0], pieces[:-1])
        tokens += len(pieces[-1].split()) + len(example.answer.split())
        if key not in known:
            tokens += sum(len(p.split()) for p in pieces[:-1]) + sum(
                count_slots(len(c)) for c in example.clips
            )
        known.add(key)
    assert len(shared.tokens.values) == tokens


@pytest.mark.parametrize("shares", [True, False])
def test_a_row_costs_the_tokens_it_has(tone_run, chat_tokenizer, shares):
    folder = tone_run.parent
    for name, prompts in (
        ("one", ["<audio>A?", "B?<audio>"]),
        ("two", ["<audio>C D?"]),
        ("three", ["<audio>E."]),
    ):
        keys = {
            "task": name,
            "domain": "sound",
            "inputs": ["label"],
            "prompts": prompts,
            "target": "{{ label }}",
        }
        (folder / f"{name}.yaml").write_text(dump_yaml(keys))
    (folder / "all.yaml").write_text(
        dump_yaml({"recipe": "all", "train": [{"dataset": "tones", "template": ["one", "two", "three"]}]})
    )
    recipe = load_recipe(str(folder / "all.yaml"))
    mixture = Mixture(
        recipe=recipe,
        sources=[open_source(recipe.train[0].dataset, "train")],
        format=ChatFormat(chat_tokenizer),
        count_slots=lambda samples: samples // 320 + 1,
        seed=0,
        audio_seconds=1e9,
        per_example=0.0,
        max_seconds=30.0,
        micro_batches=1,
        streams=1,
        tokens=1000,
        pool=16,
        shares_prefixes=shares,
    )
    steps = make_loader(mixture, ("one", "three", "two"), 0, 1, 0, 2)
    for _ in range(6):
        step = next(steps)
        [batch] = step.micro
        assert step.cost * 1000 == pytest.approx(len(batch.tokens.values))
        assert (batch.prefixes is not None) == shares
