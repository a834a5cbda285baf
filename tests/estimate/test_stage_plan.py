"""What a plan says, against what a real model keeps, computes and allocates."""

import gc
import json
import shutil

import pytest
import torch
from helpers.runs import write_run, write_weights
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from uniaudio.build.encoder_sketch import sketch_encoder
from uniaudio.build.model import build_model
from uniaudio.checks.first_rows import AverageClip
from uniaudio.cli import main
from uniaudio.commands.plan import show_plan
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml, load_yaml
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError
from uniaudio.estimate import flops
from uniaudio.estimate.fake_model import make_equal_clips
from uniaudio.estimate.gpus import Machine
from uniaudio.estimate.memory import ENGINES
from uniaudio.estimate.stage_plan import plan_stage, sum_pass_hours
from uniaudio.estimate.step_trace import count_attention_backward_flops, count_attention_flops
from uniaudio.train.continual.distill import Distiller
from uniaudio.train.continual.ema import MovingAverage
from uniaudio.train.continual.l2_sp_ewc import Anchor, copy_parameters, find_anchored_parameters
from uniaudio.train.engines.base import Engine

WHISPER = {"d_model": 128, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 512}
QWEN = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 3000,
    "tie_word_embeddings": True,
}
STAGE = {"name": "one", "recipe": "none", "steps": 10, "budget": {"audio_seconds": 40, "per_example": 1.0}}
GATE = {
    "encoders": {"a": {"path": "whisper"}, "b": {"path": "whisper", "train": "frozen"}},
    "fusion": {"kind": "gate"},
}
ALL = {
    "encoders": {"whisper": {"path": "whisper", "recompute": True}},
    "decoder": {"path": "qwen", "recompute": True},
}
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: count_attention_backward_flops,
}
CLIP = AverageClip(4.0, 24, 10)


@pytest.fixture
def run(tmp_path, chat_tokenizer):
    """Return a function that writes a run config over two small checkpoints, changed as its arguments say."""
    torch.manual_seed(0)
    decoder = {"decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 256}
    WhisperForConditionalGeneration(WhisperConfig(**WHISPER, **decoder)).save_pretrained(tmp_path / "whisper")
    Qwen3ForCausalLM(Qwen3Config(**QWEN)).save_pretrained(tmp_path / "qwen")
    for folder in ("whisper", "qwen"):
        chat_tokenizer.save_pretrained(tmp_path / folder)

    def write(**changes):
        config = {
            "output_dir": str(tmp_path / "out"),
            "encoders": {"whisper": {"path": "whisper"}},
            "decoder": {"path": "qwen"},
            "train": {"precision": "no"},
            "stages": [STAGE],
            **changes,
        }
        (tmp_path / "run.yaml").write_text(dump_yaml(config))
        return load_run(str(tmp_path / "run.yaml"))

    return write


def with_continual(**ways):
    return {"stages": [{**STAGE, "continual": ways}]}


DISTILL = with_continual(distill={"weight": 1.0, "distance": "cosine"})
DISTILL_MSE = with_continual(distill={"weight": 1.0, "distance": "mse"})
DEPTH = {"adapter": {"depth": {"encoder_layers": [1], "decoder_layers": [0]}, "time_markers": 0.5}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoders": {"whisper": {"path": "whisper", "train": "lora"}}},
        {"encoders": {"whisper": {"path": "whisper", "train": "frozen"}}},
        {"decoder": {"path": "qwen", "train": "lora"}},
        {"decoder": {"path": "qwen", "recompute": True}},
        DEPTH,
        {**DEPTH, "decoder": {"path": "qwen", "recompute": True}},
        {"encoders": {"whisper": {"path": "whisper", "recompute": True}}},
        {"encoders": {"whisper": {"path": "whisper", "train": "lora", "recompute": True}}},
        DISTILL,
        DISTILL_MSE,
        GATE | DISTILL,
        DISTILL | {"encoders": {"whisper": {"path": "whisper", "recompute": True}}},
        {"decoder": {"path": "whisper", "kind": "whisper"}},
        {"decoder": {"path": "whisper", "kind": "whisper", "recompute": True}},
        {"decoder": {"path": "whisper", "kind": "whisper", "train": "full"}},
        GATE,
    ],
    ids=[
        "plain",
        "lora",
        "frozen encoder",
        "decoder lora",
        "decoder recomputes",
        "depth",
        "depth recomputes",
        "encoder recomputes",
        "lora recomputes",
        "distillation",
        "distillation mse",
        "distillation gate",
        "distillation recomputes",
        "whisper decoder",
        "whisper decoder recomputes",
        "whisper decoder trained",
        "gate",
    ],
)
def test_every_choice_costs_what_a_real_step_keeps_and_computes(run, changes, dtype):
    """Against a model with values whose layers do recompute, by torch's own counter."""
    config = run(**changes)
    config = config.model_copy(
        update={"decoder": config.decoder.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})}
    )
    plan = plan_stage(config, 0, CLIP, dtype)
    model = build_model(config, config.decoder.path, torch.device("cpu")).model.train()
    batch = make_equal_clips(model, CLIP, 3)
    distill = config.stages[0].continual.distill
    teacher = Distiller(model, distill) if distill is not None else None
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape[-1:] != (model.decoder.vocabulary,):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(batch)
                before = None if teacher is None else teacher.frames(batch)
            total = loss.total if teacher is None else loss.total + teacher.compute_total(before, loss.frames)
        total.backward()
    assert plan.cost.compute_saved_bytes(3) == pytest.approx(sum(kept.values()), rel=2e-3)
    assert plan.cost.flops * 3 == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert plan.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plan.frozen == sum(p.nbytes for p in model.parameters() if not p.requires_grad)


def test_a_router_that_reads_questions_is_as_wide_as_the_decoder(run):
    config = run(**{**GATE, "fusion": {"kind": "mowe", "reads_prompt": True}})
    plan = plan_stage(config, 0, CLIP, torch.float32)
    model = build_model(config, config.decoder.path, torch.device("cpu")).model
    assert plan.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_stage_that_trains_less_keeps_less(run):
    frozen = {**STAGE, "name": "warm", "train": {"^encoder[.]": "frozen"}}
    config = run(stages=[frozen, STAGE])
    warm, joint = (plan_stage(config, i, CLIP, torch.float32) for i in (0, 1))
    assert warm.trained < joint.trained
    assert warm.cost.per_clip < joint.cost.per_clip / 2
    assert warm.trained + warm.frozen / 4 == joint.trained + joint.frozen / 4


def allocated_peak(work, tmp_path):
    """Return the peak of what torch allocates on the CPU while ``work`` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as looked:
        work()
        gc.collect()  # what is freed later is not seen, and would count in the next test, too
    looked.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    return max(e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]")


def make_reference_anchors(model, ways):
    """Return the penalties of a stage with Fisher information of ones."""
    anchors = []
    for settings, has_fisher in ((ways.l2sp, False), (ways.ewc, True)):
        if settings is not None:
            start = copy_parameters(find_anchored_parameters(model, settings.on, "continual"))
            fisher = {name: torch.ones_like(p) for name, p in start.items()} if has_fisher else None
            anchors.append(Anchor(start, settings.weight, fisher))
    return anchors


@pytest.mark.parametrize(
    ("changes", "vocabulary"),
    [
        ({}, 3000),
        ({}, 60_000),
        ({"encoders": {"whisper": {"path": "whisper", "train": "lora"}}}, 3000),
        ({"decoder": {"path": "qwen", "train": "full"}}, 3000),
        (GATE, 3000),
        ({"decoder": {"path": "qwen", "recompute": True}}, 3000),
        ({"encoders": {"whisper": {"path": "whisper", "recompute": True}}}, 3000),
        (ALL, 3000),
        (GATE | {"decoder": {"path": "qwen", "train": "lora", "recompute": True}}, 3000),
        (DISTILL, 3000),
        (with_continual(ema={"decay": 0.9}), 3000),
        (with_continual(l2sp={"weight": 1.0, "on": "^encoder"}), 3000),
        (with_continual(ewc={"weight": 1.0, "on": "^encoder"}), 3000),
        (
            with_continual(
                l2sp={"weight": 1.0}, ewc={"weight": 1.0}, ema={"decay": 0.9}, distill={"weight": 1.0}
            ),
            3000,
        ),
    ],
    ids=[
        "plain",
        "large vocabulary",
        "lora",
        "decoder trained",
        "gate",
        "decoder recomputes",
        "encoder recomputes",
        "both recompute",
        "decoder trained recomputes",
        "distillation",
        "moving average",
        "l2sp",
        "ewc",
        "all continual methods",
    ],
)
def test_memory_is_within_a_tenth_of_what_a_step_allocates(run, tmp_path, changes, vocabulary):
    config = run(**changes)
    if vocabulary != QWEN["vocab_size"]:
        Qwen3ForCausalLM(Qwen3Config(**{**QWEN, "vocab_size": vocabulary})).save_pretrained(tmp_path / "qwen")
    plan = plan_stage(config, 0, CLIP, torch.float32)
    assert plan.clips == 8

    def two_steps():
        model = build_model(config, config.decoder.path, torch.device("cpu")).model.train()
        for parameter in model.parameters():
            # they were mapped from their files, and nothing was allocated
            parameter.data = parameter.data.clone()
        trained = [p for p in model.parameters() if p.requires_grad]
        engine = Engine(model, torch.optim.AdamW(trained), None)
        ways = config.stages[0].continual
        anchors = make_reference_anchors(model, ways)
        teacher = Distiller(model, ways.distill) if ways.distill is not None else None
        average = MovingAverage(model, ways.ema.decay) if ways.ema is not None else None
        batch = make_equal_clips(model, CLIP, 8)
        for _ in range(2):
            for is_last in (False, True):  # the gradients of the first micro-batch are there in the second
                # first, since plans leave out working memory, and of so small a model that of a spectrogram is a tenth
                before = None if teacher is None else teacher.frames(batch)
                loss = engine.forward(batch)
                total = loss.total
                if teacher is not None:
                    total = total + teacher.compute_total(before, loss.frames)
                if is_last:
                    total = sum((anchor.compute_penalty(model) for anchor in anchors), total)
                engine.backward(total)
            engine.step(1.0)
            if average is not None:
                average.update(model)

    predicted = sum(plan.compute_memory("single", 1).values())
    assert predicted == pytest.approx(allocated_peak(two_steps, tmp_path), rel=0.1)


def test_engines_spread_what_they_should(run):
    plan = plan_stage(run(), 0, CLIP, torch.float32)
    p, b, n = plan.trained, plan.frozen, 4
    parts = ("weights", "frozen", "gradients", "optimizer")
    state = {engine: tuple(plan.compute_memory(engine, n)[part] for part in parts) for engine in ENGINES}
    assert state["single"] == state["ddp"] == (4 * p, b, 4 * p, 8 * p)
    assert state["zero1"] == (4 * p, b, 4 * p, 12 * p / n)
    assert state["zero2"] == (4 * p, b, 4 * p / n, 12 * p / n)
    assert state["zero3"] == state["fsdp2"] == (4 * p / n, b / n, 4 * p / n, 8 * p / n)


def test_engines_spread_the_moving_average_and_nothing_else_of_continual_methods(run):
    ways = {"distill": {"weight": 1.0}, "l2sp": {"weight": 1.0, "on": "^adapter"}, "ema": {"decay": 0.9}}
    config = run(**with_continual(**ways))
    plan, n = plan_stage(config, 0, CLIP, torch.float32), 4
    model = build_model(config, config.decoder.path, torch.device("cpu")).model
    encoder, adapter = (sum(p.nbytes for p in part.parameters()) for part in (model.encoder, model.adapter))
    sizes = {engine: plan.compute_memory(engine, n)["continual"] for engine in ENGINES}
    whole = encoder + 2 * adapter
    assert sizes["single"] == sizes["ddp"] == sizes["zero1"] == sizes["zero2"] == whole + 4 * plan.trained
    assert sizes["zero3"] == sizes["fsdp2"] == whole + plan.trained


def test_the_column_of_continual_methods_is_shown_where_there_are_some(run, capsys):
    show_plan(run(), Machine(gpus=2), CLIP)
    assert "continual" not in capsys.readouterr().out
    show_plan(run(**DISTILL), Machine(gpus=2), CLIP)
    assert "continual" in capsys.readouterr().out


def test_the_largest_micro_batch_fills_the_memory(run):
    config = run()
    plan = plan_stage(config, 0, CLIP, torch.float32)
    limit = 2 * sum(plan.compute_memory("ddp", 2).values())
    largest = plan.find_largest("ddp", 2, limit)
    clips = largest / CLIP.seconds
    fuller = sum(plan.compute_memory("ddp", 2).values()) + (clips - plan.clips) * plan.cost.per_clip
    assert fuller == pytest.approx(limit)
    assert plan.find_largest("ddp", 2, 1.0) == 0


def test_operations_are_those_of_the_formulas(run):
    """The formulas leave out what the adapter does, and count a gradient of the mel spectrogram."""
    config = run(decoder={"path": "qwen", "dtype": "float32"})
    plan = plan_stage(config, 0, CLIP, torch.float32)
    encoder = flops.TRAINED * flops.count_whisper_flops(WhisperConfig(**WHISPER, num_mel_bins=80), 4.0)
    qwen = Qwen3Config(**QWEN)
    read = flops.count_decoder_flops(qwen, 50 + 34) + flops.count_head_flops(qwen, 10)
    assert plan.cost.flops == pytest.approx(encoder + flops.FROZEN_BELOW_GRADIENT * read, rel=0.06)


def test_hours_follow_from_operations(run):
    config = run(train={"precision": "no", "micro_batches": 6})
    plan = plan_stage(config, 0, CLIP, torch.float32)
    assert plan.stage_hours == pytest.approx(10 * 6 * 8 * 4.0 / 3600)
    assert plan.flops_per_second == plan.flops / 32
    assert plan_stage(run(), 0, CLIP, torch.float32, gpus=3).stage_hours == pytest.approx(
        plan.stage_hours / 2
    )


def test_clips_that_may_become_longer_take_their_longest_of_memory_and_their_mean_of_hours(run):
    plain = plan_stage(run(), 0, CLIP, torch.float32)
    plan = plan_stage(run(), 0, AverageClip(3.0, 24, 10, stretch=4 / 3), torch.float32)
    assert (plan.clips, plan.compute_memory("ddp", 2)) == (8, plain.compute_memory("ddp", 2))
    limit = 2 * plain.compute_total("ddp", 2)
    assert plan.find_largest("ddp", 2, limit) == pytest.approx(plain.find_largest("ddp", 2, limit))
    assert plan.flops_per_second == pytest.approx(plain.flops_per_second)
    assert plan.stage_hours == pytest.approx(plain.stage_hours * 3 / 4)


def test_a_change_of_speed_changes_the_hours_of_a_pass(tone_run):
    card, recipe = (tone_run.parent / name for name in ("tones.yaml", "tone_recipe.yaml"))
    card.write_text(dump_yaml(load_yaml(card) | {"hours": 8}))
    values = load_yaml(recipe)
    values["train"][0]["augment"] = [{"speed": {"factor": [0.8, 0.8], "p": 0.5}}]
    recipe.write_text(dump_yaml(values))
    assert sum_pass_hours(load_recipe(str(recipe))) == pytest.approx(8 * 1.125)


@pytest.mark.parametrize(
    ("card_hours", "split_hours", "wanted"),
    [(9, {}, 9), (9, {"train": 2, "test": 1}, 2), (None, {"train": 2}, 2), (None, {"test": 1}, None)],
)
def test_a_pass_has_the_hours_of_the_splits_that_are_trained_on(tone_run, card_hours, split_hours, wanted):
    card, recipe = (tone_run.parent / name for name in ("tones.yaml", "tone_recipe.yaml"))
    values = load_yaml(card) | ({} if card_hours is None else {"hours": card_hours})
    for split, hours in split_hours.items():
        values["splits"][split]["hours"] = hours
    card.write_text(dump_yaml(values))
    assert sum_pass_hours(load_recipe(str(recipe))) == wanted


def test_the_command_reads_the_data_and_prints_every_engine(tone_run, capsys):
    main_exit(["plan", str(tone_run), "--gpus", "2"])
    out = capsys.readouterr().out
    for engine in ENGINES:
        assert engine in out
    assert "GPU-hours" in out
    assert "chosen by auto" in out
    assert "activation checkpointing: whisper" in out
    assert "stage one" in out


def test_clips_of_a_given_length_need_no_data(run, capsys):
    plans = show_plan(run(), Machine(gpus=2), CLIP)
    assert plans[0].clip == CLIP


def test_an_encoder_that_is_not_at_hand_is_reported(run, hub):
    config = run(encoders={"whisper": {"path": "openai/whisper-small"}})
    with pytest.raises(UserError, match="openai/whisper-small is not a folder here and cannot be downloaded"):
        plan_stage(config, 0, CLIP, torch.float32)


def store_run(folder, **encoders):
    """Write a run folder with one whole checkpoint, which was trained with these encoders; return its path."""
    run_dir = write_run(folder, ["task"])
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    config = {"output_dir": str(run_dir), "encoders": encoders, "stages": [STAGE]}
    (checkpoint / "config.yaml").write_text(dump_yaml(config))
    write_weights(run_dir, b"never read")
    return str(run_dir)


def test_an_encoder_that_is_a_run_costs_what_its_architecture_costs(run, tmp_path):
    """A run whose encoder is another run, which trained low-rank updates: they are merged, options of both count."""
    first = store_run(tmp_path / "first", whisper={"path": str(tmp_path / "whisper"), "train": "lora"})
    second = store_run(tmp_path / "second", whisper={"path": first, "train": "lora"})

    def plan(path, **settings):
        config = run(encoders={"whisper": {"path": path, "train": "frozen", **settings}})
        return plan_stage(config, 0, CLIP, torch.float32)

    expected, of_run = plan("whisper"), plan(second)
    assert of_run.compute_total("single", 1) == expected.compute_total("single", 1)
    assert (of_run.flops, of_run.frozen, of_run.trained) == (
        expected.flops,
        expected.frozen,
        expected.trained,
    )
    assert plan(second, tail_frames=10).flops > expected.flops
    trained = sketch_encoder(run(encoders={"whisper": {"path": second}}))
    fresh = sketch_encoder(run(encoders={"whisper": {"path": "whisper"}}))
    fixed = [name for name, each in fresh.named_parameters() if not each.requires_grad]
    assert [name for name, each in trained.named_parameters() if not each.requires_grad] == fixed
    assert [name.split(".")[-2] for name in fixed] == [
        "embed_positions"
    ]  # Whisper's sinusoids are no weights


def test_an_encoder_that_is_a_run_is_refused_where_its_config_does_not_say_enough(run, tmp_path):
    of_code = store_run(tmp_path / "code", base={"kind": "my_package:Encoder"})
    with pytest.raises(UserError, match=r"architecture of .*code is not known without its weights or code"):
        plan_stage(run(encoders={"whisper": {"path": of_code}}), 0, CLIP, torch.float32)
    empty = store_run(tmp_path / "empty", whisper={"path": str(tmp_path / "whisper")})
    shutil.rmtree(tmp_path / "empty" / "checkpoints")
    with pytest.raises(
        UserError, match=r"^encoders.whisper: .*empty is a run folder without a complete checkpoint$"
    ):
        plan_stage(run(encoders={"whisper": {"path": empty}}), 0, CLIP, torch.float32)


def main_exit(arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0


SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {**SMALL, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mamba", {**SMALL, "state_size": 8}),
        ("rwkv", {**SMALL, "attention_hidden_size": 32}),
        ("mixtral", {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}),
        ("gemma2", {**HEADS, "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}),
    ],
)
def test_decoders_with_states_experts_or_layers_of_several_kinds_have_a_plan(run, tmp_path, family, settings):
    AutoConfig.for_model(family, **settings).save_pretrained(tmp_path / "other")
    plan = plan_stage(run(decoder={"path": str(tmp_path / "other")}), 0, CLIP, torch.float32)
    assert plan.cost.flops > 0
    assert plan.cost.per_clip > 0
    assert plan.frozen > 0


def test_experts_count_for_the_tokens_that_choose_them(run, tmp_path):
    """Twice as many experts with as many chosen cost no more; every token that one more expert reads costs its maps."""
    flops_of = {}
    for experts, chosen in ((4, 1), (8, 1), (8, 2)):
        settings = {**HEADS, "num_local_experts": experts, "num_experts_per_tok": chosen}
        AutoConfig.for_model("mixtral", **settings).save_pretrained(tmp_path / "other")
        plan = plan_stage(run(decoder={"path": str(tmp_path / "other")}), 0, CLIP, torch.float32)
        flops_of[experts, chosen] = plan.cost.flops
    assert flops_of[8, 1] == pytest.approx(flops_of[4, 1], rel=0.01)
    maps = 3 * 2 * SMALL["hidden_size"] * HEADS["intermediate_size"]  # gate, up and down
    tokens = (24 + 10 + 50) * SMALL["num_hidden_layers"]
    assert flops_of[8, 2] - flops_of[8, 1] == 2 * maps * tokens  # forward, and the gradient of the input
