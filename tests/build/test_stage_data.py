"""What the position of a checkpoint holds of the files behind the shards, and when it is compared."""

from types import SimpleNamespace

import pytest
from helpers.files import card, write_tar

from uniaudio.build.stage_data import CONTENTS, StageData, compare_contents
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import UserError

ENTRY = "set:train"


@pytest.fixture
def mixture(tmp_path):
    write_tar(tmp_path / "data" / "set.tar", range(3))
    source = open_source(card(tmp_path, {"webdataset": str(tmp_path / "data")}), "train")
    entry = SimpleNamespace(name=ENTRY, dataset=SimpleNamespace(name="set"))
    return SimpleNamespace(
        recipe=SimpleNamespace(train=[entry]), sources=[source], source_fingerprints={ENTRY: "same"}
    )


def position(contents, fingerprint="same"):
    return {"sources": {ENTRY: fingerprint}, CONTENTS: {ENTRY: contents}}


def test_files_are_compared_where_the_checkpoint_knows_them(mixture):
    contents = compare_contents(mixture, None)
    (known,) = contents[ENTRY]
    assert len(known) == 32
    assert compare_contents(mixture, position([known])) == contents
    assert compare_contents(mixture, position([None])) == contents
    assert compare_contents(mixture, {"sources": {ENTRY: "same"}}) == contents  # of an earlier version
    with pytest.raises(UserError, match=r"^dataset set: .*set\.tar is not what it was at the checkpoint"):
        compare_contents(mixture, position(["0" * 32]))


def test_files_of_a_dataset_that_is_refused_anyway_are_not_compared(mixture):
    contents = compare_contents(mixture, None)
    assert compare_contents(mixture, position(["0" * 32, "1" * 32], fingerprint="another")) == contents


def test_the_contents_of_the_stage_that_was_opened_last_are_part_of_the_position():
    data = StageData(None, (), None)
    states = [{"streams": {"1": "one"}}, {"streams": {"0": "zero"}}]
    assert data.join_states(states) == {"streams": {"0": "zero", "1": "one"}}
    data.contents.update({0: {"set": ["a"]}, 1: {}})
    assert CONTENTS not in data.join_states(states)
    data.contents[2] = {"set": ["b"]}
    assert data.join_states(states) == {"streams": {"0": "zero", "1": "one"}, CONTENTS: {"set": ["b"]}}
