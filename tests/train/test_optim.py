"""Learning rates by component, expression and layer against loops, and the schedule."""

import itertools
import json
import math
import re

import pytest
import torch
from conftest import tiny_whisper
from helpers.checkpoints import save_miniature
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.build.model import build_model
from uniaudio.config.run_files import load_run
from uniaudio.config.stages import Stage
from uniaudio.errors import UserError
from uniaudio.train.optim import (
    build_optimizer,
    component_of,
    compute_lr_share,
    compute_parameter_rates,
    count_layers_above,
    set_learning_rate,
)
from uniaudio.train.trainable import go_through_stages

STAGE = {"name": "one", "recipe": "tone_recipe", "steps": 8, "budget": {"audio_seconds": 6}}
CPU = torch.device("cpu")


def opened(tone_run, stage, *overrides):
    config = load_run(tone_run, [f"stages={json.dumps([STAGE | stage])}", *overrides])
    model = build_model(config, config.decoder.path, CPU).model
    go_through_stages(model, config, 0)
    return model, config, config.stages[0]


def deep_whisper(folder, layers=4):
    torch.manual_seed(3)
    config = WhisperConfig(
        d_model=64, encoder_layers=layers, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=80
    )
    WhisperEncoder(config).save_pretrained(folder)


def decay_of(name, layers):
    """Layers of a Whisper above a parameter: 0 for the last layer and the norm behind it, L below the first."""
    for layer in range(layers):
        if f".layers.{layer}." in name:
            return layers - 1 - layer
    return 0 if ".whisper.layer_norm." in f".{name}" else layers


# ---------------------------------------------------------------------- rates


def test_rates_are_those_of_the_components(tone_run):
    model, config, stage = opened(tone_run, {}, "encoders.whisper.lr=3e-4", "adapter.lr=5e-4")
    rates = compute_parameter_rates(model, config, stage)
    assert set(rates) == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        wanted = ("whisper", 3e-4) if name.startswith("encoder.") else ("adapter", 5e-4)
        assert (rate.name, rate.lr) == wanted


def test_the_last_expression_that_matches_sets_the_rate(tone_run):
    patterns = {"fc1": 1e-2, "layers\\.1\\.": 1e-3, "layers\\.1\\.fc2": 1e-4, "^adapter.*bias": 1e-5}
    model, config, stage = opened(tone_run, {"lr": patterns}, "encoders.whisper.lr=3e-4", "adapter.lr=5e-4")
    seen = set()
    for name, rate in compute_parameter_rates(model, config, stage).items():
        component = "whisper" if name.startswith("encoder.") else "adapter"
        wanted = (component, 3e-4 if component == "whisper" else 5e-4)
        for pattern, lr in patterns.items():
            if re.search(pattern, name):
                wanted = (f"{component}[{pattern}]", lr)
        assert (rate.name, rate.lr) == wanted
        seen.add(wanted[1])
    assert seen == {1e-2, 1e-3, 1e-4, 1e-5, 3e-4, 5e-4}


def test_low_rank_updates_are_found_by_the_name_of_their_map(tone_run):
    stage = {"lr": {"fc1\\.lora_B": 1e-2, "q_proj": 2e-2}, "train": {"^encoder": "lora"}}
    model, config, stage = opened(tone_run, stage)
    for name, rate in compute_parameter_rates(model, config, stage).items():
        if name.startswith("encoder."):
            low = "fc1.lora_B" in name
            assert rate.lr == (1e-2 if low else 2e-2 if "q_proj" in name else 1e-3)


@pytest.mark.parametrize(
    ("stage", "pattern"),
    [
        ({"lr": {"^encoder\\.wisper": 1.0}}, "^encoder\\.wisper"),
        ({"lr": {"^encoder": 1.0}, "train": {"^encoder": "frozen"}}, "^encoder"),
    ],
)
def test_a_rate_for_nothing_that_is_trained_is_refused(tone_run, stage, pattern):
    model, config, stage = opened(tone_run, stage)
    with pytest.raises(UserError) as message:
        build_optimizer(model, config, stage, CPU)
    assert str(message.value).startswith(
        f"stages.one.lr: '{pattern}' matches no parameter; their names begin with"
    )
    assert "adapter." in str(message.value)


def test_a_stage_that_trains_nothing_is_refused(tone_run):
    model, config, stage = opened(tone_run, {"train": {".": "frozen"}})
    with pytest.raises(
        UserError, match=r"stage one: nothing is trained, because stages\.one\.train sets '\.'"
    ):
        build_optimizer(model, config, stage, CPU)


def test_layers_get_less_the_further_down_they_are(tone_run):
    deep_whisper(tone_run.parent / "deep")
    model, config, stage = opened(
        tone_run, {"layer_decay": 0.5, "lr": {"fc1": 8e-3}}, "encoders.whisper={path: deep, lr: 4e-3}"
    )
    depths = set()
    for name, rate in compute_parameter_rates(model, config, stage).items():
        if not name.startswith("encoder."):
            assert (rate.name, rate.lr) == ("adapter", 1e-3)
            continue
        depth = decay_of(name, 4)
        depths.add(depth)
        peak = 8e-3 if "fc1" in name else 4e-3
        assert rate.lr == pytest.approx(peak * 0.5**depth, rel=1e-12)
        assert rate.name == ("whisper[fc1]" if "fc1" in name else "whisper") + (f"-{depth}" if depth else "")
    assert depths == {0, 1, 2, 3, 4}
    below = count_layers_above(model, config)
    assert below["encoder.whisper.conv1.weight"] == below["encoder.whisper.embed_positions.weight"] == 4
    assert below["encoder.whisper.layers.0.fc1.weight"] == 3
    assert below["encoder.whisper.layer_norm.weight"] == 0


@pytest.mark.parametrize(("kind", "depth"), [("wav2vec2", 2), ("hubert", 0), ("wav2vec2-conformer", 0)])
def test_a_norm_counts_where_it_is_applied(tone_run, kind, depth):
    """The stock encoders list it before their layers; those of the last two apply it behind them."""
    save_miniature(kind, tone_run.parent / "wave")
    model, config, _ = opened(tone_run, {}, "encoders={wave: {path: wave}}")
    below = count_layers_above(model, config)
    norms = [name for name in below if name.endswith("encoder.layer_norm.weight")]
    assert [below[name] for name in norms] == [depth]
    assert {below[name] for name in below if "pos_conv_embed" in name} == {2}


def test_low_rank_updates_stand_in_their_layers(tone_run):
    deep_whisper(tone_run.parent / "deep", 3)
    model, config, stage = opened(
        tone_run,
        {"layer_decay": 0.1, "train": {"^encoder": "lora"}},
        "encoders.whisper={path: deep, lr: 1e-2}",
    )
    for name, rate in compute_parameter_rates(model, config, stage).items():
        if name.startswith("encoder."):
            assert rate.lr == pytest.approx(1e-2 * 0.1 ** decay_of(name, 3))


def test_fused_encoders_count_layers_of_each(tone_run):
    deep_whisper(tone_run.parent / "deep")
    model, config, stage = opened(
        tone_run,
        {"layer_decay": 0.5},
        "encoders.whisper.lr=1e-3",
        "encoders.deep={path: deep, lr: 2e-3}",
        "fusion={kind: gate, lr: 7e-3}",
    )
    result = set()
    for name, rate in compute_parameter_rates(model, config, stage).items():
        component = component_of(name, config)
        result.add(component)
        if component == "whisper":
            assert name.startswith("encoder.encoders.whisper.")
            assert rate.lr == pytest.approx(1e-3 * 0.5 ** decay_of(name, 2))
        elif component == "deep":
            assert name.startswith("encoder.encoders.deep.")
            assert rate.lr == pytest.approx(2e-3 * 0.5 ** decay_of(name, 4))
        else:
            assert (rate.name, rate.lr) == (component, {"fusion": 7e-3, "adapter": 1e-3}[component])
    assert result == {"whisper", "deep", "fusion", "adapter"}


def test_groups_hold_every_trained_parameter_once_and_only_matrices_decay(tone_run):
    tiny_whisper(seed=1).save_pretrained(tone_run.parent / "second")
    model, config, stage = opened(
        tone_run,
        {"layer_decay": 0.7, "lr": {"fc2": 1e-2}, "train": {"^encoder.*k_proj": "frozen"}},
        "train.weight_decay=0.3",
        "train.betas=[0.8, 0.95]",
    )
    optimizer = build_optimizer(model, config, stage, CPU)
    rates = compute_parameter_rates(model, config, stage)
    group_of = {}
    for group in optimizer.param_groups:
        assert group["betas"] == (0.8, 0.95)
        for parameter in group["params"]:
            assert id(parameter) not in group_of
            group_of[id(parameter)] = group
    for name, parameter in model.named_parameters():
        assert (id(parameter) in group_of) == parameter.requires_grad
        if parameter.requires_grad:
            group = group_of[id(parameter)]
            assert group["weight_decay"] == (0.0 if len(parameter.shape) == 1 else 0.3)
            assert group["lr"] == group["peak_lr"] == rates[name].lr
            assert group["component"] == rates[name].name
    assert any(len(p.shape) == 3 for p in model.parameters() if p.requires_grad)  # convolutions decay too


# ---------------------------------------------------------------------- schedule


def stage(**settings):
    return Stage(**STAGE | settings)


def test_warm_up_then_half_a_cosine():
    planned = stage(steps=12, warmup=4, final_lr_share=0.2)
    result = [compute_lr_share(planned, step, 12, 0.0) for step in range(12)]
    wanted = [0.25, 0.5, 0.75, 1.0]
    for step in range(8):
        wanted.append(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * step / 8)))
    assert result == pytest.approx(wanted)
    assert result[8] == pytest.approx(0.6)  # half way
    assert compute_lr_share(planned, 12, 12, 0.0) == pytest.approx(0.2)


def test_a_line_after_warm_up():
    planned = stage(warmup=2, schedule="linear")
    shares = [compute_lr_share(planned, step, 6, 0.0) for step in range(7)]
    assert shares == pytest.approx([1 / 2, 1, 1, 3 / 4, 1 / 2, 1 / 4, 0])
    floored = stage(warmup=0, schedule="linear", final_lr_share=0.2)
    assert compute_lr_share(floored, 3, 4, 0.0) == pytest.approx(0.2 + 0.8 / 4)


def test_a_constant_rate_only_warms_up():
    planned = stage(warmup=3, schedule="constant", final_lr_share=0.1)
    assert [compute_lr_share(planned, s, 8, 0.0) for s in range(8)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]
    )
    by_hours = stage(steps=None, hours=1, warmup=2, schedule="constant")
    assert [compute_lr_share(by_hours, s, None, 0.5) for s in range(3)] == [0.5, 1.0, 1.0]


def test_where_hours_end_a_stage_they_move_the_cosine():
    planned = stage(steps=None, hours=2, warmup=2, final_lr_share=0.1)
    inputs = [0.0, 0.1, 0.5, 0.9, 1.0, 1.3]
    result = [compute_lr_share(planned, step, None, done) for step, done in enumerate(inputs)]
    wanted = []
    for step, done in enumerate(inputs):
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(done, 1)))
        wanted.append(cosine * min((step + 1) / 2, 1))
    assert result == pytest.approx(wanted)
    assert result[2] == pytest.approx(0.55)
    assert result[-1] == pytest.approx(0.1)


def test_of_hours_and_a_last_step_the_nearer_end_moves_the_cosine():
    planned = stage(steps=None, hours=2)
    far = compute_lr_share(planned, 10, 100_000, 0.75)
    assert far == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.75)))
    near = compute_lr_share(planned, 60, 100, 0.001)
    assert near == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.6)))


@given(st.data())
def test_shares_rise_fall_and_stay_between_their_ends(data):
    steps = data.draw(st.integers(1, 60))
    warmup = data.draw(st.integers(0, steps))
    last = data.draw(st.floats(0, 1))
    planned = stage(steps=steps, warmup=warmup, final_lr_share=last)
    result = [compute_lr_share(planned, step, steps, 0.0) for step in range(steps)]
    assert all(0 <= share <= 1 + 1e-12 for share in result)
    assert all(a < b for a, b in itertools.pairwise(result[:warmup]))
    after = result[warmup:]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))
    assert all(share >= last - 1e-12 for share in after)
    if warmup < steps:
        assert after[0] == pytest.approx(1.0)
    if warmup:
        assert result[warmup - 1] == pytest.approx(1.0)


def test_every_group_gets_its_share():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [{"params": [w], "lr": lr, "peak_lr": lr} for w, lr in zip(weights, (1e-2, 3e-3), strict=True)]
    optimizer = torch.optim.AdamW(groups)
    for share in (0.5, 0.25):
        set_learning_rate(optimizer, share)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-2 * share, 3e-3 * share])
