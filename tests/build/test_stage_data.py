"""What the position of a checkpoint holds of the files behind the shards, and when it is compared."""

import os
from types import SimpleNamespace

import pytest
from helpers.files import card, write_tar

from uniaudio.build.stage_data import CONTENTS, WRITTEN, StageData, compare_contents, compare_write_times
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


def test_files_that_were_written_since_the_checkpoint_are_named_on_the_console(mixture, tmp_path, capsys):
    file = tmp_path / "data" / "set.tar"
    os.utime(file, (1_000_000_000, 1_000_000_000))
    times = compare_write_times(mixture, None)
    assert times == {ENTRY: [1_000_000_000]}
    state = position(None) | {WRITTEN: times}
    assert compare_write_times(mixture, state) == times
    assert capsys.readouterr().out == ""
    os.utime(file, (1_000_000_007, 1_000_000_007))
    assert compare_write_times(mixture, {**state, "sources": {ENTRY: "another"}}) == {ENTRY: [1_000_000_007]}
    assert capsys.readouterr().out == ""  # it is refused anyway
    assert compare_write_times(mixture, state) == {ENTRY: [1_000_000_007]}
    assert f"dataset set: {file} has been written since the checkpoint, or copied" in capsys.readouterr().out


def test_the_contents_of_the_stage_that_was_opened_last_are_part_of_the_position():
    data = StageData(None, (), None)
    states = [{"streams": {"1": "one"}}, {"streams": {"0": "zero"}}]
    assert data.join_states(states) == {"streams": {"0": "zero", "1": "one"}}
    data.contents.update({0: {"set": ["a"]}, 1: {}})
    assert CONTENTS not in data.join_states(states)
    data.contents[2], data.written[2] = {"set": ["b"]}, {"set": [7]}
    assert data.join_states(states) == {
        "streams": {"0": "zero", "1": "one"},
        CONTENTS: {"set": ["b"]},
        WRITTEN: {"set": [7]},
    }
