"""Conditions that divide rows by a hash: the same rows on the same side, always and everywhere."""

import pytest
from helpers.files import card, write_parquet

from uniaudio.data.jinja import Text, compute_unit_hash
from uniaudio.data.keep_conditions import Condition
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.source_kinds import open_source


def test_the_hash_of_a_value_never_changes():
    assert compute_unit_hash("george") == 0.06714814175896322
    assert compute_unit_hash("george", 7) == 0.4186569981043604
    assert compute_unit_hash(5) == compute_unit_hash("5") == 0.7328681953775025
    assert Text("{{ speaker | unit_hash(7) }}", "here").render({"speaker": "george"}) == "0.4186569981043604"


@pytest.mark.parametrize("seed", ["", "(0)", "(7)"])
@pytest.mark.parametrize("sign", [">=", "<"])
def test_the_quick_way_equals_that_of_the_template_language(seed, sign):
    quick = Condition(f"speaker | unit_hash{seed} {sign} 0.3", "here")
    plain = Condition(f"(speaker | unit_hash{seed}) {sign} (0.3)", "here")
    assert quick.hashed is not None
    assert plain.hashed is None
    speakers = [f"s{n}" for n in range(200)]
    kept = [quick.is_true({"speaker": name}) for name in speakers]
    assert kept == [plain.is_true({"speaker": name}) for name in speakers]
    assert 30 < sum(kept) < 170


def test_rows_without_a_column_to_go_by_are_divided_by_their_keys(tmp_path):
    write_parquet(tmp_path / "set", rows=20, group=7)
    splits = {
        "train": {"keep": "__key__ | unit_hash >= 0.5"},
        "test": {"name": "train", "keep": "__key__ | unit_hash < 0.5"},
    }
    made = card(tmp_path, {"parquet": str(tmp_path / "set")}, splits=splits)
    train, test = (
        [row.columns["n"] for row in open_source(made, split).rows() if isinstance(row, Row)]
        for split in splits
    )
    assert sorted(train + test) == list(range(40))
    assert min(len(train), len(test)) > 5
