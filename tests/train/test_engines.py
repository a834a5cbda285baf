"""Every engine in real processes under its launch file: the numbers of one process, checkpoints for the others.

What is trained under one engine shares the processes of one launch, because starting them takes longer than the runs.
"""

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import tiny_qwen
from helpers.figures import assert_same_figures
from helpers.files import several_questions
from safetensors.torch import load_file

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.collate import collate
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.train.engines.accelerator import disable_shm_extension
from uniaudio.types import Example

ROOT = Path(__file__).parent.parent.parent
LAUNCHER = Path(sys.prefix) / "bin" / "accelerate"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}
COMMAND = ("-m", "uniaudio.train")  # of the user's guide
SEVERAL = ROOT / "tests" / "several_runs.py"
WORKER = ROOT / "tests" / "broken_step.py"
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENGINES = ("zero1", "zero2", "ddp", "zero3_spread", "fsdp2", "zero0", "zero3", "zero3_offload")
EVALUATED = ("ddp", "zero3_spread", "fsdp2")  # these runs answer the evaluation set as well
# what an engine calls itself, where that is not its file's name
TOLD = {"one": "single", "zero3_offload": "zero3", "zero3_spread": "zero3"}
LOSS, NORM, STATE = 1e-6, 1e-5, 1e-5  # measured: 1.2e-7, 2e-7, 7e-7
# of a weight, in addition: where a gradient is about as small as AdamW's epsilon, its rounding moves the weight by up
# to a hundredth of a step (measured: 2.2e-6, in one element of one bias); moments are compared without it
ROUNDED = 4e-6
BF16, BF16_NORM = 1e-3, 2e-2  # from float32; measured: 1e-4, 6.4e-3
FP8 = 1e-2  # from float32
APART, APART_NORM = 5e-4, 1e-2  # engines in bfloat16 from each other; measured: 3e-5, 1.8e-3

pytestmark = pytest.mark.slow


def launch(engine, folder, *words, expect=0, file=None, timeout=300):
    """Run a script or a module with its arguments under a shipped launch file (``one``: without a launcher).

    Files that are not shipped are written to ``folder``.
    """
    start = [sys.executable]
    if engine != "one":
        file = file or launch_file(engine, folder)
        start = [LAUNCHER, "launch", "--config_file", file, "--num_processes", "2"]
        start += ["--main_process_port", free_port()]  # else all launchers of a machine take the same one
    done = subprocess.run(
        [str(word) for word in (*start, *words)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def launch_file(engine, folder):
    """Return the launch file of an engine; two are not shipped.

    ``zero0`` is ZeRO-1 with another stage. ``zero3_spread`` is ZeRO-3 that spreads the smallest weights too: it keeps
    those of less than 100,000 numbers whole otherwise, which in these models are all, so that nothing is gathered.
    """
    if engine == "zero0":
        text = shipped("zero1")
        assert "zero_stage: 1" in text
        text = text.replace("zero_stage: 1", "zero_stage: 0")
    elif engine == "zero3_spread":
        text = with_deepspeed(folder, {"stage": 3, "stage3_param_persistence_threshold": 0})
    else:
        return ROOT / "configs" / "accelerate" / f"{engine}.yaml"
    (folder / f"{engine}.yaml").write_text(text)
    return folder / f"{engine}.yaml"


def shipped(engine):
    return (ROOT / "configs" / "accelerate" / f"{engine}.yaml").read_text()


def with_deepspeed(folder, zero, **more):
    """Return a launch file that names a DeepSpeed config of the user's own, and write that one."""
    settings = {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        **more,
    }
    (folder / "deepspeed.json").write_text(json.dumps(settings))
    single = {"deepspeed_config_file": str(folder / "deepspeed.json"), "zero3_init_flag": False}
    return dump_yaml(
        {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": single,
            "num_machines": 1,
            "num_processes": 2,
            "machine_rank": 0,
        }
    )


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def of_steps(folder, key):
    return {row["step"]: row[key] for row in rows(folder) if "loss" in row}


def stages(folder):
    """Return engine and number of processes of every start of the run."""
    return [(row["engine"], row["processes"]) for row in rows(folder) if row.get("event") == "stage"]


def saved(folder, step=8):
    """Return weights, moments and the number of optimizer files of a checkpoint."""
    path = folder / "checkpoints" / f"step-{step:06d}"
    shards = [load_file(file) for file in sorted(path.glob("optimizer-*.safetensors"))]
    moments = {key: tensor for shard in shards for key, tensor in shard.items()}
    assert all(shards)  # every rank has written some
    assert sum(map(len, shards)) == len(moments)  # and none what another one has
    return load_file(path / "model.safetensors"), moments, len(shards)


def assert_same(result, expected):
    """Compare tensor by tensor: the distance, relative to the size of the tensor."""
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        assert result[name].dtype == torch.float32
        rounded = 0 if "|" in name else ROUNDED
        assert (result[name] - tensor).norm() <= STATE * tensor.norm() + rounded, name


def assert_same_run(folder, whole):
    """Compare losses and norms of all steps and what was saved at the end with another run."""
    assert of_steps(folder, "loss") == pytest.approx(of_steps(whole, "loss"), rel=LOSS)
    assert of_steps(folder, "grad_norm") == pytest.approx(of_steps(whole, "grad_norm"), rel=NORM)
    for result, expected in zip(saved(folder)[:2], saved(whole)[:2], strict=True):
        assert_same(result, expected)


KINDS = {  # what is trained under every engine, in the processes of one launch
    "one": ["one", "one fp8", "one questions", "one unshared", "one evaluated", "one unreadable", "one deep"],
    "ddp": ["ddp", "ddp recomputing", "ddp bf16", "ddp fp8", "ddp questions", "ddp deep"],
    "zero2": ["zero2", "zero2 recomputing", "zero2 bf16", "zero2 deep"],
    "zero3_spread": [
        "zero3_spread",
        *(
            f"zero3_spread {kind}"
            for kind in ("recomputing", "bf16", "fp8", "questions", "unreadable", "deep")
        ),
    ],
    "fsdp2": ["fsdp2", *(f"fsdp2 {kind}" for kind in ("recomputing", "bf16", "fp8", "unreadable", "deep"))],
}
# whose run goes on under which engine, in the processes of that one
CONTINUED = {
    "zero1": ["one"],
    "zero2": ["zero1"],
    "ddp": ["zero2", "one deep"],
    "zero3_spread": ["ddp", "ddp deep"],
    "fsdp2": ["zero3_spread", "zero3_spread deep"],
    "zero3_offload": ["zero0"],
}
# features for layers of the decoder and time markers, with low-rank updates in a decoder of three layers
DEEP = [
    "decoder.path=deep",
    "decoder.train=lora",
    "adapter.depth={encoder_layers: [0, 1], decoder_layers: [1, 0]}",
    "adapter.time_markers=0.2",
]


class Runs:
    """Runs of the tones by their names, each made when it is first asked for; four micro-batches in a step."""

    def __init__(self, folder):
        self.folder = folder
        self.config = folder / "tones" / "run.yaml"
        self.unreadable = folder / "unreadable" / "run.yaml"
        self.made = set()

    def path(self, name):
        return self.folder / name.replace(" ", "-")

    def settings(self, folder):
        return [f"output_dir={folder}", "train.micro_batches=4", "evaluate.max_new_tokens=8"]

    def arguments(self, name):
        """Return the arguments of ``uniaudio train`` for a run."""
        engine, _, kind = name.partition(" ")
        if kind == "unreadable":
            cut = ["stages.0.budget.audio_seconds=0.4", "data.max_seconds=2", "data.max_skipped_share=0.9"]
            return [self.unreadable, f"output_dir={self.path(name)}", *cut]
        given = self.settings(self.path(name))
        if kind == "bf16":
            given += ["train.precision=bf16", "decoder.dtype=bfloat16"]
        elif kind == "fp8":
            given.append("decoder.dtype=fp8")
        elif kind in ("questions", "unshared"):
            budget = "{audio_seconds: 6, per_example: 0, tokens: 300}"
            attention = "packed" if kind == "questions" else "padded"
            given += [
                "stages.0.recipe=several",
                f"stages.0.budget={budget}",
                f"decoder.attention={attention}",
            ]
        elif kind == "recomputing":
            given.append("train.memory_gib=0.0001")
        elif kind == "deep":
            given += DEEP
            if engine != "one":  # whose layers keep everything
                given.append("train.memory_gib=0.0001")
        elif engine in EVALUATED or kind == "evaluated":
            given.append("train.evaluate_every=4")
        return [self.config, *given]

    def __call__(self, name):
        """Return the folder of a run; the others of its engine are made with it."""
        engine = name.partition(" ")[0]
        if engine not in self.made:
            self.made.add(engine)
            runs = [self.arguments(single) for single in KINDS.get(engine, [engine])]
            runs += [self.cut(continued, engine) for continued in CONTINUED.get(engine, ())]
            file = self.folder / f"{engine}.json"
            file.write_text(json.dumps([[str(part) for part in run] for run in runs]))
            launch(engine, self.folder, SEVERAL, file, timeout=590)
        return self.path(name)

    def cut(self, name, engine, *overrides):
        """Copy a run as it was at step 4; return the arguments that continue it."""
        source = self(name)
        folder = self.continued_path(name, engine, *overrides)
        shutil.copytree(source, folder)
        shutil.rmtree(folder / "checkpoints" / "step-000008")
        (folder / "checkpoints" / "latest").write_text("step-000004\n")
        deep = DEEP if name.endswith(" deep") else ()
        return [self.config, *self.settings(folder), *deep, *overrides, "--resume"]

    def continued_path(self, name, engine, *overrides):
        return self.path(" ".join([name, "under", engine, *overrides]))

    def continued(self, name, engine, *overrides):
        """Return the folder of a run that went on from step 4 under another engine."""
        if name in CONTINUED.get(engine, ()) and not overrides:
            self(engine)
        else:
            launch(engine, self.folder, *COMMAND, *self.cut(name, engine, *overrides))
        return self.continued_path(name, engine, *overrides)


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def runs(shared_runs, tone_run, chat_tokenizer):
    if not shared_runs.config.exists():
        tiny_qwen(len(chat_tokenizer), layers=3).save_pretrained(tone_run.parent / "deep")
        chat_tokenizer.save_pretrained(tone_run.parent / "deep")
        shutil.copytree(tone_run.parent, shared_runs.config.parent)
        several_questions(shared_runs.config.parent)
        shutil.copytree(tone_run.parent, shared_runs.unreadable.parent)
        make_unreadable(shared_runs.unreadable.parent / "tones")
    return shared_runs


def make_unreadable(clips):
    """Write clips that fail to decode, so many that a micro-batch can be left without any."""
    for index in (1, 5, 8, 12, 17, 20, 25):
        samples, rate = soundfile.read(clips / f"{index}.wav", dtype="float32")
        samples[100] = np.nan
        soundfile.write(clips / f"{index}.wav", samples, rate, subtype="FLOAT")


def message(engine):
    return (TOLD.get(engine, engine), 1 if engine == "one" else 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_give_the_losses_and_states_of_one(runs, engine):
    """Two micro-batches on each of two ranks, or four on one; some of these runs are evaluated meanwhile."""
    whole, folder = runs("one"), runs(engine)
    assert stages(whole) == [message("one")]
    assert stages(folder) == [message(engine)]
    assert of_steps(folder, "loss").keys() == set(range(1, 9))
    assert_same_run(folder, whole)
    assert rows(folder)[-1] == {"event": "finished", "step": 8}
    weights, moments, shards = saved(folder)
    assert shards == 2
    assert {name.split(".")[0] for name in weights} == {"encoder", "adapter"}  # no frozen decoder
    assert moments.keys() == {f"{name}|{kind}" for name in weights for kind in ("exp_avg", "exp_avg_sq")}
    before = saved(folder, 4)[0]
    assert all(not torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3_spread", "fsdp2"])
def test_two_processes_choose_together_what_recomputes(runs, engine):
    """Too little memory: encoder and decoder, and the numbers stay those of one process that keeps everything."""
    folder = runs(f"{engine} recomputing")
    (stage,) = [row for row in rows(folder) if row.get("event") == "stage"]
    assert set(stage["recompute"]) == {"whisper", "decoder"}
    assert stage["estimated_gib"] > stage["limit_gib"]
    assert_same_run(folder, runs("one"))


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3_spread", "fsdp2"])
def test_features_for_decoder_layers_and_time_markers(runs, engine):
    """Two processes that recompute against one that keeps everything; trained are all parts, the decoder low-rank."""
    folder = runs(f"{engine} deep")
    (stage,) = [row for row in rows(folder) if row.get("event") == "stage"]
    assert set(stage["recompute"]) == {"whisper", "decoder"}
    assert_same_run(folder, runs("one deep"))
    weights = saved(folder)[0]
    for part in ("adapter.adapter.projections.1.out.weight", "lora_B", "encoder.whisper.conv1.weight"):
        assert any(part in name for name in weights), part


@pytest.mark.parametrize(
    ("engine", "other"), [("one", "ddp"), ("ddp", "zero3_spread"), ("zero3_spread", "fsdp2")]
)
def test_a_run_with_features_and_markers_goes_on_under_another_engine(runs, engine, other):
    folder = runs.continued(f"{engine} deep", other)
    assert stages(folder) == [message(engine), message(other)]
    assert_same_run(folder, runs("one deep"))


@pytest.mark.parametrize(
    ("engine", "other"),
    [
        ("one", "zero1"),
        ("zero1", "zero2"),
        ("zero2", "ddp"),
        ("ddp", "zero3_spread"),
        ("zero3_spread", "fsdp2"),
        ("fsdp2", "one"),
        ("zero0", "zero3_offload"),
        ("zero3_offload", "zero0"),
    ],
)
def test_a_run_goes_on_under_another_engine(runs, engine, other):
    folder = runs.continued(engine, other)
    assert stages(folder) == [message(engine), message(other)]
    assert_same_run(folder, runs("one"))


def test_a_run_goes_on_in_another_precision(runs):
    folder = runs.continued("zero2", "one", "train.precision=bf16")
    result, expected = of_steps(folder, "loss"), of_steps(runs("one"), "loss")
    assert result == pytest.approx(expected, rel=BF16)
    assert all(result[step] == pytest.approx(expected[step], rel=LOSS) for step in range(1, 5))
    assert max(abs(result[step] / expected[step] - 1) for step in range(5, 9)) > 1e-5  # really bfloat16
    assert all(tensor.dtype == torch.float32 for part in saved(folder)[:2] for tensor in part.values())


def test_bf16_with_a_bf16_decoder(runs):
    exact = of_steps(runs("one"), "loss")
    exact_norms = of_steps(runs("one"), "grad_norm")
    result, norms = {}, {}
    for engine in ("ddp", "zero2", "zero3_spread", "fsdp2"):
        folder = runs(f"{engine} bf16")
        assert stages(folder) == [message(engine)]
        result[engine] = of_steps(folder, "loss")
        assert result[engine] == pytest.approx(exact, rel=BF16)
        norms[engine] = of_steps(folder, "grad_norm")
        assert norms[engine] == pytest.approx(exact_norms, rel=BF16_NORM)
        assert max(abs(result[engine][step] / exact[step] - 1) for step in exact) > 1e-5  # really bfloat16
        for part in saved(folder)[:2]:
            assert all(tensor.dtype == torch.float32 for tensor in part.values())
            # not rounded to bfloat16 on the way
            assert any(not torch.equal(tensor.bfloat16().float(), tensor) for tensor in part.values())
    for one, other in pairwise(result):
        assert result[one] == pytest.approx(result[other], rel=APART)
        assert norms[one] == pytest.approx(norms[other], rel=APART_NORM)


def test_an_8_bit_decoder(runs):
    """Spread over processes or not. Rounding to 8 bits makes more of the order of sums than float32 does."""
    whole, plain = runs("one fp8"), of_steps(runs("one"), "loss")
    losses, norms = of_steps(whole, "loss"), of_steps(whole, "grad_norm")
    assert losses == pytest.approx(plain, rel=FP8)
    assert max(abs(losses[step] / plain[step] - 1) for step in plain) > 1e-4  # really 8 bits
    for engine in ("ddp", "zero3_spread", "fsdp2"):
        folder = runs(f"{engine} fp8")
        assert stages(folder) == [message(engine)]
        assert of_steps(folder, "loss") == pytest.approx(losses, rel=BF16)
        assert of_steps(folder, "grad_norm") == pytest.approx(norms, rel=BF16_NORM)
        assert {name.split(".")[0] for name in saved(folder)[0]} == {"encoder", "adapter"}


def test_questions_that_share_the_beginning_of_their_prompts(runs):
    """Under a budget of tokens micro-batches then hold more of them, on every engine the same as in one process."""
    whole = runs("one questions")
    shared, alone = (questions_seen(runs(f"one {kind}")) for kind in ("questions", "unshared"))
    assert shared > 1.1 * alone
    for engine in ("ddp", "zero3_spread"):
        folder = runs(f"{engine} questions")
        assert stages(folder) == [message(engine)]
        assert questions_seen(folder) == shared
        assert_same_run(folder, whole)


def questions_seen(folder):
    return sum(len(step) for row in rows(folder) if "ids" in row for step in row["ids"])


def test_a_rank_without_a_readable_clip_stays_in_step(runs):
    """Rows that fail to decode can leave a micro-batch empty, and layers are gathered by all ranks together."""
    whole = runs("one unreadable")
    inputs = [len(micro) for row in rows(whole) if "ids" in row for micro in row["ids"]]
    assert min(inputs) < max(inputs)
    for engine in ("zero3_spread", "fsdp2"):
        assert_same_run(runs(f"{engine} unreadable"), whole)


def test_evaluation_during_training(runs):
    """Ranks share the rows out where each has the whole model, elsewhere they answer all of them together; the figures
    are those of one process.
    """
    results = {
        name: [(row["step"], row["results"]) for row in rows(runs(name)) if row.get("event") == "evaluation"]
        for name in ("one evaluated", *EVALUATED)
    }
    expected = results["one evaluated"]
    assert [step for step, _ in expected] == [4, 8]
    first, last = (message["tones:tone"] for _, message in expected)
    assert first["examples"] == 10
    assert first["loss"] > last["loss"]
    figures = {"accuracy", "uar", "macro_f1", "map", "ece", "interval", "intervals"}
    assert first["labels"].keys() == figures
    for engine in EVALUATED:
        for (step, result), (same_step, wanted) in zip(results[engine], expected, strict=True):
            assert step == same_step
            assert_same_figures(result, wanted)
        assert_same_run(runs(engine), runs("one"))  # which was not evaluated


def test_a_step_without_a_finite_gradient_is_left_out_on_all_ranks():
    """One rank's objective is NaN in the second step, under every engine."""
    engines = ["ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3"]
    done = subprocess.run(
        [*TWO, str(WORKER), *engines],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    message = json.loads(done.stdout.strip().splitlines()[-1])
    assert list(message) == engines
    for engine, facts in message.items():
        assert facts["engine"] == engine
        assert facts["finite"] == [[True, False, True]] * 2, engine  # of the norms, on both ranks
        assert facts["first step changed"], engine
        assert facts["broken step changed"] == [], engine
        assert facts["other than without it"] == [], engine
        assert facts["off from one process"] < 1e-6, engine
        assert facts["damaged"] == ["adapter.weight"] * 2, engine


def conflict(runs, name, launch_file, *overrides):
    """Launch with a file of one's own and return what the workers said."""
    file = runs.folder / f"{name}.yaml"
    file.write_text(launch_file)
    words = (*COMMAND, runs.config, f"output_dir={runs.folder / name}", *overrides)
    done = launch("ddp", runs.folder, *words, expect=1, file=file)
    said = {line.strip() for line in done.stderr.splitlines() if line.startswith("uniaudio:")}
    assert len(said) == 1, done.stderr
    assert "uniaudio/" not in done.stderr.replace(str(runs.folder), "")  # no traceback from us
    assert not (runs.folder / name / "checkpoints").exists()
    return said.pop()


def test_deepspeed_compiles_nothing_on_cpus(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    disable_shm_extension()
    assert importlib.import_module("deepspeed.comm.torch").build_shm_op() is None
    assert not (tmp_path / "extensions").exists()


def test_clipping_of_a_deepspeed_config_must_be_the_run_configs(runs):
    said = conflict(runs, "clipped", with_deepspeed(runs.folder, {"stage": 2}, gradient_clipping=0.3))
    assert "gradient_clipping 0.3, but train.clip is 1.0" in said


def test_fsdp_1_is_refused(runs):
    file = shipped("fsdp2").replace("fsdp_version: 2", "fsdp_version: 1")
    file = file.replace("fsdp_reshard_after_forward: true", "fsdp_sharding_strategy: FULL_SHARD")
    said = conflict(runs, "fsdp1", file)
    assert "sets FSDP 1; set fsdp_version: 2" in said


def test_precision_of_the_launch_file_must_be_the_run_configs(runs):
    said = conflict(runs, "fp16", shipped("ddp") + "mixed_precision: fp16\n", "train.precision=bf16")
    assert "mixed_precision fp16, but train.precision is bf16" in said


def examples(count):
    rng = np.random.default_rng(0)
    clips = [rng.integers(-3000, 3000, 3000 + 700 * i, dtype=np.int16) for i in range(count)]
    return [
        Example(f"a/b/{i}", "tag", "a", (clip,), ("", "Which tone is it?"), "low and high"[: 3 + 4 * i])
        for i, clip in enumerate(clips)
    ]


@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_recomputing_the_frozen_decoders_layers_gives_the_same_gradients(
    whisper, qwen, chat_tokenizer, attention, recomputes
):
    encoder = WhisperAudioEncoder(whisper)
    decoder = TextDecoder(qwen, attention)
    assert decoder.packed == (attention == "packed")
    model = AudioLM(encoder, StackAdapter(encoder.dim, 50.0, 64), decoder).double()
    model.train()
    batch = collate(examples(3), ChatFormat(chat_tokenizer), model.count_slots, ("tag",))
    seen = []
    qwen.model.layers[0].mlp.register_forward_pre_hook(lambda *message: seen.append(message))

    def gradients():
        model.zero_grad()
        model(batch).total.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    assert len(seen) == 1
    if recomputes:
        decoder.recompute()
        model.train()
        assert not qwen.model.layers[0].mlp.training
    result = gradients()
    assert len(seen) == (3 if recomputes else 2)
    assert {name.split(".")[0] for name in result} == {"encoder", "adapter"}
    assert result.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.dtype == torch.float64
        torch.testing.assert_close(result[name], gradient, rtol=1e-9, atol=1e-12)
