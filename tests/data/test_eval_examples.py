"""A capped evaluation set is a sample over all of its classes, and the same one every time."""

import json
from collections import Counter

import pytest
from helpers.sources import Rows, Shards

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data import eval_examples
from uniaudio.data.eval_examples import MOST_CANDIDATES, EvalSamples, choose_sample, sample_indexed_rows
from uniaudio.data.recipe import load_recipe
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError

TEMPLATE = {
    "task": "digit",
    "domain": "speech",
    "inputs": ["label"],
    "prompts": ["<audio>Which digit?"],
    "target": "{{ label }}",
}


@pytest.fixture
def entry(tmp_path):
    """An evaluation line over a manifest that is sorted by label: 320 rows of ten digits."""
    rows = [
        {"audio": f"{i}.wav", "label": str(i // 32), "split": "test", "duration": 1.0} for i in range(320)
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = {"dataset": "digits", "load": {"jsonl": "."}, "license": "CC0-1.0", "splits": {"test": {}}}
    recipe = {
        "recipe": "digits_eval",
        "train": [{"dataset": "digits", "split": "test", "template": "digit"}],
        "evaluate": [{"dataset": "digits", "template": "digit"}],
    }
    for name, content in (("digit", TEMPLATE), ("digits", card), ("digits_eval", recipe)):
        (tmp_path / f"{name}.yaml").write_text(dump_yaml(content))
    return load_recipe(str(tmp_path / "digits_eval.yaml")).evaluate[0]


class Labelled:
    """Mixes labels into made-up rows; ``labels[i]`` is that of row i."""

    def labelled(self, row):
        if isinstance(row, Row):
            number = int(row.key.replace("shard", "").split("/")[-1])
            return Row(row.key, {"label": str(self.label(row.key, number))}, row.audio)
        return row


class LabelledRows(Labelled, Rows):
    def __init__(self, count, label, **more):
        super().__init__(count, **more)
        self.label = lambda key, number: label(number)

    def row(self, index):
        return self.labelled(super().row(index))


class LabelledShards(Labelled, Shards):
    def __init__(self, *counts, label, **more):
        super().__init__(*counts, **more)
        self.label = label

    def read(self, shard, place):
        for row, behind in super().read(shard, place):
            yield (None if row is None else self.labelled(row)), behind


def labels_of(source, sample):
    return Counter(
        row.columns["label"] for row in sample_indexed_rows(source, sample) if isinstance(row, Row)
    )


def test_a_sorted_set_keeps_all_classes_in_their_shares(entry):
    source = open_source(entry.dataset, entry.split)
    sample = choose_sample(entry, source, 200)
    assert sample.rows == 320
    assert labels_of(source, sample) == {str(digit): 20 for digit in range(10)}
    keys = [row.key for row in sample_indexed_rows(source, sample)]
    assert keys == sorted(keys, key=lambda key: int(key.split(".")[0]))  # in the order of the source
    assert labels_of(source, choose_sample(entry, source, 10)) == {str(digit): 1 for digit in range(10)}


@pytest.mark.parametrize("limit", [None, 320, 1000])
def test_without_a_cap_all_rows(entry, limit):
    source = open_source(entry.dataset, entry.split)
    sample = choose_sample(entry, source, limit)
    assert (sample.addresses, sample.rows) == (None, 320)
    assert len(list(sample_indexed_rows(source, sample))) == 320


def test_rare_classes_have_one_row_at_least(entry):
    source = LabelledRows(1000, lambda i: "rare" if i == 7 else i % 2)
    assert labels_of(source, choose_sample(entry, source, 101)) == {"rare": 1, "0": 50, "1": 50}


def test_a_set_is_looked_at_once_for_each_limit_by_the_same_owner(entry):
    read = []
    source, samples = LabelledRows(300, lambda i: read.append(i) or str(i % 3)), EvalSamples()
    chosen = samples.choose(entry, source, 60)
    assert samples.choose(entry, source, 60) is chosen
    assert sorted(read) == list(range(300))
    samples.choose(entry, source, 61)
    assert len(read) == 600
    assert EvalSamples().choose(entry, source, 60) == chosen
    assert len(read) == 900


def test_the_choice_is_of_the_rows_and_not_of_their_order(entry):
    class Reversed(LabelledRows):
        def row(self, index):
            return super().row(self.size - 1 - index)

    one, other = (kind(300, lambda i: i % 3) for kind in (LabelledRows, Reversed))
    chosen = [
        {row.key for row in sample_indexed_rows(s, choose_sample(entry, s, n))}
        for s, n in ((one, 60), (one, 90))
    ]
    assert {row.key for row in sample_indexed_rows(other, choose_sample(entry, other, 60))} == chosen[0]
    assert chosen[0] < chosen[1]  # a larger cap adds rows


def test_more_answers_than_rows_are_drawn_from_all(entry):
    source = LabelledRows(5000, lambda i: i)
    sample = choose_sample(entry, source, 100)
    places = [index for _, index in sample.addresses]
    assert len(places) == 100
    assert all(sum(low <= place < low + 1000 for place in places) > 8 for low in range(0, 5000, 1000))


def test_a_large_set_is_seen_from_end_to_end(entry):
    source = LabelledRows(10 * MOST_CANDIDATES, lambda i: i // (2 * MOST_CANDIDATES))
    assert labels_of(source, choose_sample(entry, source, 50)) == {str(k): 10 for k in range(5)}


def test_no_row_of_a_large_set_is_chosen_twice(entry, monkeypatch):
    monkeypatch.setattr(eval_examples, "MOST_CANDIDATES", 200)
    source = LabelledRows(301, lambda i: i % 2)  # stretches of one and a half rows
    for limit in (100, 250):
        addresses = choose_sample(entry, source, limit).addresses
        assert len(set(addresses)) == len(addresses) == limit


def test_a_split_in_few_of_many_shards_is_not_taken_for_all_that_was_read(entry):
    hidden = [(shard, row) for shard in range(11) for row in range(40)]
    source = LabelledShards(*[40] * 11, 400, label=lambda key, n: n % 2, hidden=hidden)
    sample = choose_sample(entry, source, 30)  # of each shard, 25 rows would be 300 candidates
    assert sample.rows is None
    assert labels_of(source, sample) == {"0": 15, "1": 15}
    assert choose_sample(entry, LabelledShards(5, 5, 400, label=lambda key, n: 0), 20).rows is None
    whole = choose_sample(entry, source, 400)
    assert (whole.addresses, whole.rows) == (None, 400)


def test_shards_give_rows_alike_and_hidden_rows_are_none(entry):
    source = LabelledShards(
        40, 40, 40, label=lambda key, n: key.split("/")[0], hidden=[(1, n) for n in range(30)]
    )
    sample = choose_sample(entry, source, 40)
    assert sample.rows == 90
    assert labels_of(source, sample) == {"0": 18, "1": 4, "2": 18}
    large = LabelledShards(4000, 4000, label=lambda key, n: key.split("/")[0])
    assert choose_sample(entry, large, 100).rows is None  # nobody counted
    assert labels_of(large, choose_sample(entry, large, 100)) == {"0": 50, "1": 50}
    assert large.rows_read < 4000


def test_rows_that_cannot_be_used_are_part_of_the_sample(entry):
    source = LabelledRows(400, lambda i: i % 2, bad=range(0, 40))
    rows = list(sample_indexed_rows(source, choose_sample(entry, source, 100)))
    assert sum(isinstance(row, RowError) for row in rows) == 10
