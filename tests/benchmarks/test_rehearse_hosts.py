"""The rehearsal of several machines: a light part of it, where network namespaces can be made."""

import contextlib
import importlib

import pytest


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    """A rehearsal; what its cases compare with is trained once."""
    if reason := importlib.import_module("hosts").explain_no_hosts():
        pytest.skip(f"hosts cannot be made here: {reason}")
    with importlib.import_module("host_runs").Rehearsal(tmp_path_factory.mktemp("hosts")) as rehearsal:
        yield rehearsal


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ddp", "zero2", "kill-step"])
def test_two_hosts(case, two_hosts):
    result = importlib.import_module("rehearse_hosts").CASES[case](two_hosts)
    assert result.engine == ("zero2" if case == "zero2" else "ddp")
    assert (result.exact == "-") == (case == "kill-step")


def test_losses_that_differ_by_more_than_rounding_fail_a_case(tmp_path):
    module = importlib.import_module("rehearsal")
    rehearsal = importlib.import_module("host_runs").Rehearsal(tmp_path)
    records = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"event": "saved", "step": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(records + '{"step": 3, "lo')  # in the middle of being written
    assert rehearsal.compare(tmp_path, {1: 2.0, 2: 1.0}) == "yes"
    assert rehearsal.compare(tmp_path, {1: 2.0, 2: 1.00001}) == "to 1e-05"
    for expected in ({1: 2.0, 2: 1.001}, {1: 2.0}, {1: 2.0, 2: 1.0, 3: 1.0}):
        with pytest.raises(module.RehearsalError):
            rehearsal.compare(tmp_path, expected)
    (tmp_path / "metrics.jsonl").write_text(records + '{"event": "saved", "step": 2}\n')
    with pytest.raises(module.RehearsalError, match="written twice"):
        rehearsal.compare(tmp_path, {1: 2.0, 2: 1.0})


def test_a_case_that_fails_gives_the_others_of_its_group_new_hosts(tmp_path, capsys):
    module, opened = importlib.import_module("rehearsal"), []

    def fail(rehearsal):
        raise module.RehearsalError("no step was done")

    def open_rehearsal(folder):
        opened.append(folder)
        return contextlib.nullcontext(folder)

    cases = {
        "one": lambda folder: module.Result("ddp", "2x1", "yes"),
        "two": fail,
        "three": lambda folder: module.Result("zero2", "2x1", "-", 12.4, folder.name),
    }
    table = module.Table(cases, open_rehearsal, tmp_path)
    table.run([["one", "two", "three"]], parallel=2)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[:4]] == ["case", "one", "two", "three"]
    assert rows[2].endswith("no step was done")
    assert rows[3].split()[4] == "12"
    assert (len(opened), table.failed) == (2, 1)
    assert rows[4].startswith("3 cases in 0 s, 1 failed")


def test_every_case_is_in_one_group():
    module = importlib.import_module("rehearse_hosts")
    assert sorted(case for group in module.GROUPS for case in group) == sorted(module.CASES)
