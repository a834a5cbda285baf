"""Compiled layers: the numbers of plain ones, and no new compilation for batches of other sizes.

Cases run in processes of their own, ``compiled_batches.py``; one is written as that script takes it.
"""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny_qwen

from uniaudio.errors import UserError
from uniaudio.model.compile import compile_layers, refuse_without_compiler
from uniaudio.model.decoder import TextDecoder

WORKER = Path(__file__).parent.parent / "compiled_batches.py"
LOOPED = 12  # graphs of encoder and decoder, where attention lies between them
BATCHES = 12


@functools.cache
def compiled(*cases):
    """Return what the worker tells of each of some cases, which share its process."""
    done = subprocess.run(
        [sys.executable, str(WORKER), *cases],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_same_and_settled(message, tolerance, most):
    assert message["loss"] <= tolerance
    assert message["gradient"] <= tolerance
    assert message["gradients"] >= 20
    assert 2 <= message["graphs"][0] <= most
    assert set(message["graphs"]) == {message["graphs"][0]}  # the first batch was the last to be compiled for
    assert message["with_evaluation"] <= 2 * most


CUDA = f"whisper dtype=float64 kernel=1 batches={BATCHES}"
LOOPS = {
    f"whisper dtype={dtype} batches={BATCHES}": most
    for dtype, most in (("float32", 1e-5), ("float64", 1e-12))
}
OTHERS = [
    f"{kind} dtype=float64 batches=4"
    for kind in ("wav2vec2", "hubert", "wavlm", "qwen2_5_omni", "qwen3_omni")
]
LOW_RANK = {
    f"whisper dtype=float64 lora=1 recompute=1 batches=5{more}": most
    for more, most in (
        ("", LOOPED),
        (" kernel=1", 4),
        (" frozen=1 kernel=1", 4),
        (" deep=1 kernel=1", 4),
    )
}
EIGHT_BITS = {
    "whisper fp8=1 batches=5 kernel=1": 1e-6,
    "whisper fp8=1 batches=5 recompute=1": 1e-6,
    "whisper fp8=1 batches=5 kernel=1 backend=inductor": 1e-3,
}
REAL = [f"whisper backend=inductor batches={BATCHES}{more}" for more in ("", " kernel=1")]


def test_on_cuda_a_layer_is_one_graph_for_all_batches():
    message = compiled(CUDA)[CUDA]
    assert len(message["graphs"]) == BATCHES
    assert message["stacks"] == message["graphs"][0] == 2  # encoder and decoder, once each
    assert message["breaks"] == 0
    assert_same_and_settled(message, 1e-12, 2)


@pytest.mark.slow
@pytest.mark.parametrize("case", LOOPS)
def test_attention_in_loops_between_the_graphs(case):
    assert_same_and_settled(compiled(*LOOPS)[case], LOOPS[case], LOOPED)


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_other_packed_encoders(case):
    assert_same_and_settled(compiled(*OTHERS)[case], 1e-12, LOOPED)


@pytest.mark.slow
@pytest.mark.parametrize("case", LOW_RANK)
def test_low_rank_updates_and_recomputed_activations(case):
    assert_same_and_settled(compiled(*LOW_RANK)[case], 1e-12, LOW_RANK[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", EIGHT_BITS)
def test_an_8_bit_decoder(case):
    """The real compiler merges passes, and a last bit that differs can round to the next number in 8 bits."""
    assert_same_and_settled(compiled(*EIGHT_BITS)[case], EIGHT_BITS[case], LOOPED)


@pytest.mark.slow
@pytest.mark.parametrize("case", REAL)
def test_with_the_real_compiler(case):
    assert_same_and_settled(compiled(*REAL)[case], 1e-4, LOOPED)


def test_a_machine_without_a_compiler(monkeypatch):
    config = pytest.importorskip("torch._inductor.config")
    monkeypatch.setattr(config.cpp, "cxx", (None, "/no/such/g++"))
    started = time.process_time()
    with pytest.raises(
        UserError, match=r"train\.compile: .*No working C\+\+ compiler.*install a C\+\+ compiler"
    ):
        refuse_without_compiler(torch.device("cpu"))
    assert time.process_time() - started < 20


def test_nothing_to_compile():
    decoder = TextDecoder(tiny_qwen(), "padded")
    with pytest.raises(UserError, match=r"train\.compile: neither an encoder nor the decoder runs packed"):
        compile_layers(torch.nn.ModuleList([decoder, torch.nn.Linear(2, 2)]))
