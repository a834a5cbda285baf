"""Every adapter by config, from training to a question."""

import json

import pytest

from uniaudio.commands.ask import answer_file_question
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError

KINDS = [
    "{kind: stack, rate: 25, lr: 1e-3}",
    "{kind: pool, rate: 12.5, lr: 1e-3}",
    "{kind: conv, rate: 12.5, kernel: 3, lr: 1e-3}",
    "{kind: qformer, window_seconds: 0.2, queries: 2, layers: 1, heads: 4, lr: 1e-3}",
    "{kind: perceiver, queries: 5, layers: 1, heads: 4, lr: 1e-3}",
    "{kind: tokens, tokens: 6, stack: 3, hidden: 64, lr: 1e-3}",
]


@pytest.mark.parametrize("adapter", KINDS, ids=[kind.split(",")[0][7:] for kind in KINDS])
def test_it_trains_and_answers(tone_run, adapter):
    run_training(load_run(tone_run, [f"adapter={adapter}"]), None)
    out = tone_run.parent / "out"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    assert all(0 <= row["padding_share"] < 1 for row in rows if "loss" in row)
    assert isinstance(
        answer_file_question(str(out), tone_run.parent / "tones" / "0.wav", "Which tone is it?", 4), str
    )


def test_settings_of_another_kind_are_refused(tone_run):
    with pytest.raises(UserError, match=r"adapter\.queries: unknown key"):
        load_run(tone_run, ["adapter={kind: stack, queries: 3}"])
