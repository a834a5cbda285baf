"""Compiled layers: the numbers of plain ones, and no new compilation for batches of other sizes.

Every case runs in a process of its own, ``compiled_batches.py``.
"""

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
from uniaudio.model.compiled import compile_layers, refuse_without_compiler
from uniaudio.model.decoder import TextDecoder

WORKER = Path(__file__).parent.parent / "compiled_batches.py"
LOOPED = 12  # graphs of encoder and decoder, where attention lies between them
BATCHES = 12


def compiled(kind, **settings):
    given = [f"{key}={value}" for key, value in settings.items()]
    done = subprocess.run(
        [sys.executable, str(WORKER), kind, *given],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_same_and_settled(told, tolerance, most):
    assert told["loss"] <= tolerance
    assert told["gradient"] <= tolerance
    assert told["gradients"] >= 20
    assert 2 <= told["graphs"][0] <= most
    assert set(told["graphs"]) == {told["graphs"][0]}  # the first batch was the last to be compiled for
    assert told["with_evaluation"] <= 2 * most


def test_on_cuda_a_layer_is_one_graph_for_all_batches():
    told = compiled("whisper", dtype="float64", kernel=1, batches=BATCHES)
    assert len(told["graphs"]) == BATCHES
    assert told["stacks"] == told["graphs"][0] == 2  # encoder and decoder, once each
    assert told["breaks"] == 0
    assert_same_and_settled(told, 1e-12, 2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_in_loops_between_the_graphs(dtype):
    told = compiled("whisper", dtype=dtype, batches=BATCHES)
    assert_same_and_settled(told, 1e-5 if dtype == "float32" else 1e-12, LOOPED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "qwen2_5_omni", "qwen3_omni"])
def test_other_packed_encoders(kind):
    assert_same_and_settled(compiled(kind, dtype="float64", batches=4), 1e-12, LOOPED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"kernel": 1}, {}, {"frozen": 1, "kernel": 1}], ids=["cuda", "loops", "frozen"]
)
def test_low_rank_updates_and_recomputed_activations(settings):
    told = compiled("whisper", dtype="float64", lora=1, recompute=1, batches=5, **settings)
    assert_same_and_settled(told, 1e-12, 4 if settings else LOOPED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [({"kernel": 1}, 1e-6), ({"recompute": 1}, 1e-6), ({"kernel": 1, "backend": "inductor"}, 1e-3)],
    ids=["cuda", "recomputed loops", "real compiler"],
)
def test_an_8_bit_decoder(settings, tolerance):
    """The real compiler merges passes, and a last bit that differs can round to the next number in 8 bits."""
    told = compiled("whisper", fp8=1, batches=5, **settings)
    assert_same_and_settled(told, tolerance, LOOPED)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"kernel": 1}, {}], ids=["cuda", "loops"])
def test_with_the_real_compiler(settings):
    told = compiled("whisper", backend="inductor", batches=BATCHES, **settings)
    assert_same_and_settled(told, 1e-4, LOOPED)


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
    with pytest.raises(UserError, match=r"train\.compile: no encoder runs packed here"):
        compile_layers(torch.nn.ModuleList([decoder, torch.nn.Linear(2, 2)]))
