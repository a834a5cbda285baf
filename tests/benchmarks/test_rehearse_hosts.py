"""The rehearsal of several machines: a light part of it, where network namespaces can be made."""

import importlib

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ddp", "zero2", "kill-step"])
def test_two_hosts(case, tmp_path):
    hosts = importlib.import_module("hosts")
    rehearsal = importlib.import_module("rehearse_hosts")
    if reason := hosts.explain_no_hosts():
        pytest.skip(f"hosts cannot be made here: {reason}")
    with hosts.Hosts(2, tmp_path) as both:
        result = rehearsal.CASES[case](rehearsal.Rehearsal(tmp_path, both))
    assert result.engine == ("zero2" if case == "zero2" else "ddp")
    assert (result.exact == "-") == (case == "kill-step")


def test_losses_that_differ_by_more_than_rounding_fail_a_case(tmp_path):
    module = importlib.import_module("rehearse_hosts")
    rehearsal = module.Rehearsal.__new__(module.Rehearsal)
    records = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"event": "saved", "step": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(records)
    assert rehearsal.compare(tmp_path, {1: 2.0, 2: 1.0}) == "yes"
    assert rehearsal.compare(tmp_path, {1: 2.0, 2: 1.00001}) == "to 1e-05"
    for expected in ({1: 2.0, 2: 1.001}, {1: 2.0}, {1: 2.0, 2: 1.0, 3: 1.0}):
        with pytest.raises(module.RehearsalError):
            rehearsal.compare(tmp_path, expected)
    (tmp_path / "metrics.jsonl").write_text(records + '{"event": "saved", "step": 2}\n')
    with pytest.raises(module.RehearsalError, match="written twice"):
        rehearsal.compare(tmp_path, {1: 2.0, 2: 1.0})
