"""Exports in published formats, opened by vLLM itself, answer as the run does."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from export.test_stock_model import EXACT, noise, read_prompt, write_turn
from transformers import AutoProcessor, AutoTokenizer

from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.export.stock_formats import STOCK_FORMATS
from uniaudio.export.stock_model import write_stock_model
from uniaudio.model.adapters.stock_projectors import make_stock_projector
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder_loading import load_decoder
from uniaudio.model.encoders.whisper import load_whisper

SCRIPT = Path(__file__).parents[1] / "helpers" / "vllm_answers.py"
QUESTION = "Which tone is it?"


@pytest.mark.vllm
@pytest.mark.realmodels
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("qwen2-audio", "qwen2.5-coder-0.5b-instruct"),
        ("audio-flamingo3", "qwen2.5-coder-0.5b-instruct"),
        ("ultravox", "smollm2-135m-instruct"),
        ("ultravox", "qwen2.5-coder-0.5b-instruct"),
    ],
)
def test_vllm_answers_as_the_run(name, decoder, realmodels, vllm, tmp_path):
    encoder = load_whisper(str(realmodels / "whisper-base"), **EXACT[name])
    lm, tokenizer = (
        load_decoder(str(realmodels / decoder)),
        AutoTokenizer.from_pretrained(realmodels / decoder),
    )
    torch.manual_seed(1)
    target = STOCK_FORMATS[name]
    adapter = make_stock_projector(target.adapter, encoder.dim, encoder.frame_rate, lm.dim)
    model, format = AudioLM(encoder, adapter, lm).eval(), ChatFormat(tokenizer, vocabulary=lm.vocabulary)
    write_stock_model(model, format, tmp_path / "model", name, target)

    processor = AutoProcessor.from_pretrained(tmp_path / "model", trust_remote_code=target.has_code)
    (tmp_path / "text.txt").write_text(write_turn(processor, None, QUESTION))
    clips = noise(0.3, 4.21)
    np.savez(tmp_path / "clips.npz", *[clip / np.float32(32768) for clip in clips])
    command = [vllm, str(SCRIPT), "model", "clips.npz", "text.txt"]
    command += ["--trust-remote-code"] if target.has_code else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    for clip, result in zip(clips, json.loads(done.stdout.splitlines()[-1]), strict=True):
        logits, ids = read_prompt(model, format, [clip], ("", QUESTION))
        assert result["tokens"] == len(logits)
        assert result["ids"][: len(ids)] == ids
        expected = torch.log_softmax(logits[-1], 0)
        for token, value in result["logprobs"].items():
            assert value == pytest.approx(float(expected[int(token)]), abs=1e-3)
