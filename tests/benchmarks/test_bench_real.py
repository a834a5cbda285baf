"""The step with real weights: folders are found or named, and the sides agree where both pad to 30 s."""

import bench_real
import bench_step
import pytest
import torch
from sizes import new_qwen3, whisper_config
from transformers import WhisperModel


@pytest.fixture
def small_models(tmp_path, monkeypatch):
    """Miniatures under the names of the real models."""
    monkeypatch.setenv("UNIAUDIO_REALMODELS", str(tmp_path))
    torch.manual_seed(0)
    config = whisper_config("miniature")
    config.decoder_layers, config.decoder_attention_heads, config.decoder_ffn_dim = 1, 2, 32
    WhisperModel(config).save_pretrained(tmp_path / "whisper-base")
    new_qwen3("miniature").save_pretrained(tmp_path / "smollm2-135m-instruct")
    return tmp_path


def test_the_sides_agree_where_both_pad(small_models):
    parts = bench_real.real_parts("SmolLM2-135M")
    assert (parts.widths, parts.vocabulary, parts.mel_bins) == ((64, 64), 2048, 80)
    seconds = bench_real.short_clips(2)
    examples = bench_step.examples_of(seconds, parts, bench_real.BEFORE, bench_real.AFTER, bench_real.SYSTEM)
    assert [len(piece.split()) for piece in examples[0].prompt] == [28, 14]
    openings = [example.prompt[0].split() for example in examples]
    assert openings[0][:24] == openings[1][:24]
    assert openings[0][24:] != openings[1][24:]
    stock = bench_step.stock(seconds, examples, parts)()["loss"]
    assert bench_step.ours(seconds, examples, parts, 30.0)()["loss"] == pytest.approx(
        stock, rel=bench_real.AGREEMENT
    )


def test_clips_are_short_and_the_same_in_every_process():
    seconds = bench_real.short_clips(16)
    assert seconds == bench_real.short_clips(16) == sorted(seconds)
    assert seconds[0] >= 0.28
    assert seconds[-1] <= 5.52


def test_a_missing_model_is_named(small_models):
    with pytest.raises(
        SystemExit, match=r"there is no .*qwen2\.5-coder-0\.5b-instruct; set UNIAUDIO_REALMODELS"
    ):
        bench_real.real_parts("Qwen2.5-Coder-0.5B")
