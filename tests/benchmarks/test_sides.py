"""Sides that claim to compute the same do so, in loss and gradient, on models small enough for a test."""

import json
from pathlib import Path

import bench_decoder
import bench_run
import bench_step
import pytest
import torch
from measure import Run
from sizes import Sizes, new_qwen3

MINIATURE = Sizes("miniature", "miniature")


@pytest.fixture
def small_runs(monkeypatch):
    """Let the benchmark of whole runs take the smallest models."""
    monkeypatch.setattr(bench_run, "SIZES", MINIATURE)


@pytest.mark.parametrize("with_loss", [False, True])
def test_all_ways_through_the_decoder_agree(with_loss):
    lm = new_qwen3("miniature", dtype=torch.float64)

    def loss_and_gradients(make):
        rows = bench_decoder.rows_of(6, MINIATURE)
        rows = bench_decoder.Rows([row.double().requires_grad_() for row in rows.embeds], rows.answers)
        loss = make(rows)()
        return loss, torch.cat([row.grad for row in rows.embeds])

    ways = [
        lambda rows: bench_decoder.padded(lm, rows, with_loss, in_order=False),
        lambda rows: bench_decoder.padded(lm, rows, with_loss, in_order=True),
        lambda rows: bench_decoder.block_mask(lm, rows, with_loss),
        lambda rows: bench_decoder.ours(lm, rows, with_loss),
    ]
    results = [loss_and_gradients(way) for way in ways]
    for loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)  # rotary angles are float32
        torch.testing.assert_close(gradients, results[0][1], rtol=1e-4, atol=1e-8)


def test_the_peer_and_ours_compute_the_same_at_thirty_seconds():
    seconds = [30.0]
    examples = bench_step.examples_of(seconds, MINIATURE)
    theirs, ours = (
        make(seconds, examples, MINIATURE)()["loss"] for make in (bench_step.peer, bench_step.ours_at_25)
    )
    assert theirs == pytest.approx(ours, rel=1e-5)


def test_the_peer_hears_as_many_tokens_of_shorter_clips():
    """A token more or less would be an error of the stock model."""
    seconds = [0.08, 1.04, 29.92]
    examples = bench_step.examples_of(seconds, MINIATURE)
    theirs, ours = (
        make(seconds, examples, MINIATURE)()["loss"] for make in (bench_step.peer, bench_step.ours_at_25)
    )
    assert theirs == pytest.approx(ours, rel=0.02)  # of what surrounds a clip, the convolutions see a little


@pytest.mark.slow
def test_both_whole_runs_train_on_every_clip_once(small_runs, tmp_path, fresh_accelerate):
    shared = tmp_path / "shared"
    shared.mkdir()
    bench_run.prepare(shared, True)
    facts = json.loads((shared / "facts.json").read_text())
    assert len(list(shared.glob("train-*.parquet"))) == len(list(shared.glob("train-*.tar"))) == 4

    def figures(side: str) -> dict[str, float]:
        scratch: Path = tmp_path / side
        scratch.mkdir()
        return bench_run.figures(Run("mix", side, True, 1, shared, scratch))

    theirs, ours = figures("Qwen2-Audio"), figures("ours")
    for result in (theirs, ours):
        assert result["clips"] == facts["clips"] == 4
        assert result["steps"] == 1
        assert result["audio_seconds"] == pytest.approx(facts["audio_seconds"])
        assert 0 <= result["data_wait_share"] < 1
        assert result["loss"] == pytest.approx(7.6, abs=0.5)  # ln 2048
    assert ours["audio_seconds_per_second"] * ours["seconds_per_clip"] == pytest.approx(
        facts["audio_seconds"] / 4
    )


def test_labels_of_the_peer_are_the_answers_alone(small_runs, tmp_path):
    bench_run.write_models(tmp_path, ["one", "two", "three"])
    processor = bench_run.peer_processor(tmp_path)
    rows = [
        {"audio": {"bytes": bench_run.encoded(seconds, "FLAC", 0)}, "text": text}
        for seconds, text in ((1.0, "one two"), (2.0, "three"))
    ]
    batch = bench_run.PeerCollate(processor)(rows)
    for row, (text, frames) in enumerate((("one two", 25), ("three", 50))):
        kept = batch["labels"][row] != bench_run.IGNORED
        assert processor.tokenizer.decode(batch["labels"][row][kept]) == f"{text}<|im_end|>"
        assert torch.equal(batch["input_ids"][row][kept], batch["labels"][row][kept])
        assert int((batch["input_ids"][row] == processor.audio_token_id).sum()) == frames
