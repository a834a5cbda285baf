"""What a stage trains of a real small model, and that weights go through all stages unharmed."""

import copy
import json
import re

import pytest
import torch
from conftest import tiny_whisper, tone

from uniaudio.build.model import build_model
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.model.lora import list_lora_modules, strip_lora_name
from uniaudio.ragged import Ragged
from uniaudio.train.trainable import (
    LORA,
    TrainableParameters,
    collect_tensors,
    enter_stage,
    go_through_stages,
    put_tensors,
)

STAGE = {"recipe": "tone_recipe", "steps": 8, "budget": {"audio_seconds": 6}}
LAYERS = "encoder.whisper.layers"
QKV = {f"{LAYERS}.{n}.self_attn.{p}_proj.weight" for n in (0, 1) for p in "qkv"}


def read(tone_run, stages, *overrides):
    """A config with the given stages."""
    named = [STAGE | {"name": f"s{i}"} | stage for i, stage in enumerate(stages)]
    return load_run(tone_run, [f"stages={json.dumps(named)}", *overrides])


def build(config):
    return build_model(config, config.decoder.path, torch.device("cpu")).model.eval()


def entered(config, index=0):
    model = build(config)
    return model, go_through_stages(model, config, index)


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def frames(model, dtype=torch.float32):
    audio = Ragged.from_rows([torch.from_numpy(tone(s, 300, i)) for i, s in enumerate((0.5, 0.3))])
    with torch.no_grad():
        return model.eval().encoder(audio.with_values(audio.values.to(dtype) / 8000)).frames.values


def shake(model, seed=0):
    """Change everything that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += (0.05 * noise).to(parameter.dtype)


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def product(b, a):
    """B A, entry by entry."""
    b, a = b.double().tolist(), a.double().tolist()
    return torch.tensor(
        [[sum(row[k] * a[k][j] for k in range(len(a))) for j in range(len(a[0]))] for row in b],
        dtype=torch.float64,
    )


# ---------------------------------------------------------------------- modes


@pytest.mark.parametrize("mode", ["full", "lora", "frozen"])
def test_without_expressions_it_is_as_the_components_say(tone_run, mode):
    config = read(tone_run, [{}], f"encoders.whisper.train={mode}")
    model = build(config)
    before = trained(model)
    structure = go_through_stages(model, config, 0)
    assert trained(model) == before
    assert not any(name.startswith("decoder.") for name in before)
    assert all(name in before for name, _ in model.adapter.named_parameters(prefix="adapter"))
    encoder = {name for name in before if name.startswith("encoder.")}
    if mode == "frozen":
        assert not encoder
    elif mode == "lora":
        assert all(LORA in name for name in encoder)
        assert {f"{name}.weight" for name in list_lora_modules(model)} == QKV
        assert {name for name, usual in structure.usual.items() if usual == "lora"} == QKV
    else:
        assert f"{LAYERS}.0.fc1.weight" in encoder
        assert "encoder.whisper.embed_positions.weight" not in encoder


TRAIN = [
    {"^encoder": "frozen", "whisper.layers\\.1\\.": "full", "whisper.*1\\.fc": "lora", "fc2": "frozen"},
    {"whisper.layers\\.1\\.fc": "lora", "^encoder": "full"},
    {"^encoder": "lora", "^adapter": "frozen"},
    {"": "frozen", "^adapter.*bias": "full"},
    {"encoder.*layers\\.0|^adapter": "lora", "^encoder.*norm": "frozen"},
]


@pytest.mark.parametrize("train", TRAIN, ids=range(len(TRAIN)))
def test_the_last_expression_that_matches_holds(tone_run, train):
    config = read(tone_run, [{"train": train}])
    model = build(config)
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    full, low = set(), set()
    for name, parameter in model.named_parameters():
        mode = "full" if parameter.requires_grad else "frozen"
        for pattern, said in train.items():
            if re.search(pattern, name):
                mode = said
        if name.startswith("decoder"):
            mode = "frozen"
        if mode == "full":
            full.add(name)
        if mode == "lora" and name in linear:
            low.add(name)
    values = snapshot(model)
    go_through_stages(model, config, 0)
    assert {f"{name}.weight" for name in list_lora_modules(model)} == low
    assert {name for name in trained(model) if LORA not in name} == full
    result = {name.split(f".{LORA}")[0] + ".weight" for name in trained(model) if LORA in name}
    assert result == low
    assert len([name for name in trained(model) if LORA in name]) == 2 * len(low)
    for name, value in snapshot(model).items():
        if LORA not in name:
            assert torch.equal(value, values[strip_lora_name(name)])


def test_low_rank_updates_begin_at_nothing(tone_run):
    plain = build(read(tone_run, [{}]))
    model, _ = entered(read(tone_run, [{"train": {"^encoder": "lora"}}]))
    torch.testing.assert_close(frames(model), frames(plain), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("pattern", "mode", "allowed"),
    [
        ("layers\\.0", "full", False),
        (".", "lora", False),
        ("^decoder", "full", False),
        (".", "frozen", True),
        ("^decoder", "frozen", True),
    ],
)
def test_a_frozen_decoder_is_never_opened(tone_run, pattern, mode, allowed):
    config = read(tone_run, [{"train": {pattern: mode}}])
    if allowed:
        assert not any(name.startswith("decoder") for name in trained(entered(config)[0]))
        return
    with pytest.raises(UserError) as message:
        entered(config)
    text = str(message.value)
    assert text.startswith(f"stages.s0.train: '{pattern}' matches decoder.")
    assert "decoder.train says frozen; set decoder.train, or begin the expression with ^encoder" in text
    assert "\n" not in text


def test_a_trained_decoder_can_be_frozen_for_a_stage(tone_run):
    config = read(tone_run, [{"train": {"^decoder": "frozen"}}, {}], "decoder.train=lora")
    model, structure = entered(config)
    assert not any(name.startswith("decoder") for name in trained(model))
    enter_stage(model, structure, config, 1)
    opened = {name for name in trained(model) if name.startswith("decoder")}
    assert opened
    assert all(LORA in name for name in opened)


@pytest.mark.parametrize("merge", [{"merge_lora": True}, {}])
def test_low_rank_updates_of_the_decoder_are_never_merged(tone_run, merge):
    config = read(tone_run, [{}, merge], "decoder.train=lora", "encoders.whisper.train=lora")
    model, _ = entered(config, 1)
    assert any(name.startswith("decoder.") for name in list_lora_modules(model))
    assert any(name.startswith("encoder.") for name in list_lora_modules(model))  # merged ones begin anew


def test_an_expression_that_matches_nothing_is_reported_with_beginnings_of_names(tone_run):
    config = read(tone_run, [{}, {"train": {"^encoder\\.wisper": "full"}}])
    entered(config, 0)
    with pytest.raises(UserError) as message:
        entered(config, 1)
    assert str(message.value).startswith(
        "stages.s1.train: '^encoder\\.wisper' matches no parameter; their names begin with adapter."
    )
    assert "encoder.whisper.layers" in str(message.value)
    model = build(config)
    go_through_stages(model, config, 1, whole=False)  # a part of a model may lack what matches


def test_every_encoder_of_a_fused_one_has_a_separate_rank(tone_run):
    tiny_whisper(seed=1).save_pretrained(tone_run.parent / "second")
    config = read(
        tone_run,
        [{"train": {"^encoder.*fc1|^adapter": "lora"}}],
        "encoders.whisper.lora={rank: 3, alpha: 6}",
        "encoders.second={path: second, lora: {rank: 5, alpha: 5}}",
        "fusion.kind=gate",
    )
    model, _ = entered(config)
    ranks = {n: p.shape[0] for n, p in model.named_parameters() if "lora_A" in n}
    assert {r for n, r in ranks.items() if n.startswith("encoder.encoders.whisper.")} == {3}
    assert {r for n, r in ranks.items() if n.startswith("encoder.encoders.second.")} == {5}
    assert {r for n, r in ranks.items() if n.startswith("adapter.")} == {3}  # the first encoder's
    scalings = {
        name: part.scaling["default"]
        for name, part in model.named_modules()
        if name in list_lora_modules(model)
    }
    assert {s for n, s in scalings.items() if ".encoders.second." in n} == {1.0}
    assert {s for n, s in scalings.items() if ".encoders.whisper." in n} == {2.0}


# ---------------------------------------------------------------------- merging


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "second",
    [
        {"merge_lora": True, "train": {"^encoder": "frozen"}},
        {"merge_lora": True, "train": {"^encoder": "full"}},
        {"train": {"^encoder": "full"}},
    ],
    ids=["merge and freeze", "merge and open", "open"],
)
def test_merged_updates_are_the_same_function(tone_run, dtype, second):
    lora = {"train": {"^encoder": "frozen", "^encoder.*(q_proj|fc1)": "lora"}}
    config = read(tone_run, [lora, second], "encoders.whisper.lora={rank: 3, alpha: 7}")
    model = build(config).to(dtype)
    structure = go_through_stages(model, config, 0)
    start = frames(model, dtype)
    shake(model)
    before, weights = frames(model, dtype), snapshot(model)
    assert (before - start).abs().max() > 1e-3
    low = list_lora_modules(model)
    assert len(low) == 4
    enter_stage(model, structure, config, 1)
    assert not list_lora_modules(model)
    close = {"atol": 1e-5, "rtol": 0} if dtype == torch.float32 else {"atol": 1e-10, "rtol": 0}
    torch.testing.assert_close(frames(model, dtype), before, **close)
    for name, value in snapshot(model).items():
        owner, _, kind = name.rpartition(".")
        if owner not in low or kind == "bias":
            assert torch.equal(value, weights[f"{owner}.base_layer.bias" if owner in low else name])
            continue
        b, a = (weights[f"{owner}.lora_{side}.default.weight"] for side in "BA")
        wanted = weights[f"{owner}.base_layer.weight"].double() + 7 / 3 * product(b, a)
        torch.testing.assert_close(value.double(), wanted, **close)
    held = collect_tensors(model, structure)
    assert {f"{name}.weight" for name in low} <= set(held)
    assert not any(LORA in name or ".base_layer." in name for name in held)


def test_only_what_is_opened_is_merged(tone_run):
    config = read(
        tone_run,
        [{"train": {"^encoder": "lora"}}, {"train": {"^encoder": "lora", "^encoder.*layers\\.1": "full"}}],
        "encoders.whisper.train=frozen",
    )
    model, structure = entered(config)
    shake(model)
    before = frames(model)
    enter_stage(model, structure, config, 1)
    torch.testing.assert_close(frames(model), before, atol=1e-5, rtol=0)
    left = list_lora_modules(model)
    assert left
    assert all(".layers.0." in name for name in left)
    assert f"{LAYERS}.1.fc1.weight" in collect_tensors(model, structure)
    assert f"{LAYERS}.0.fc1.base_layer.weight" not in collect_tensors(model, structure)


def test_updates_go_on_over_two_stages(tone_run):
    lora = {"train": {"^encoder": "lora"}}
    config = read(tone_run, [lora, {"train": {"^encoder": "frozen"}}, lora])
    model, structure = entered(config)
    shake(model)
    before, values = frames(model), snapshot(model)
    for index in (1, 2):
        enter_stage(model, structure, config, index)
        assert torch.equal(frames(model), before)
        assert all(torch.equal(p, values[name]) for name, p in snapshot(model).items())
        assert {name for name in values if LORA in name} <= set(collect_tensors(model, structure))
        assert any(LORA in name for name in trained(model)) == (index == 2)


def test_merged_and_new_updates(tone_run):
    lora = {"train": {"^encoder": "lora"}}
    config = read(tone_run, [lora, lora | {"merge_lora": True}])
    model, structure = entered(config)
    begun = snapshot(model)
    shake(model)
    before, weights = frames(model), snapshot(model)
    enter_stage(model, structure, config, 1)
    torch.testing.assert_close(frames(model), before, atol=1e-5, rtol=0)
    after = snapshot(model)
    name = f"{LAYERS}.0.fc1"
    assert not any(value.any() for n, value in after.items() if "lora_B" in n and n.startswith("encoder"))
    a, b = (weights[f"{name}.lora_{side}.default.weight"] for side in "AB")
    wanted = weights[f"{name}.base_layer.weight"].double() + 2 * product(b, a)
    torch.testing.assert_close(after[f"{name}.base_layer.weight"].double(), wanted, atol=1e-5, rtol=0)
    assert f"{name}.base_layer.weight" in collect_tensors(model, structure)
    assert f"{name}.base_layer.weight" not in trained(model)
    new = f"{name}.lora_A.default.weight"
    # in other directions than the first began in
    assert (after[new] - begun[new]).abs().max() > 1e-2
    shake(model, seed=1)
    assert (frames(model) - before).abs().max() > 1e-3


# ---------------------------------------------------------------------- checkpoints

PLAN = [
    {"train": {"^encoder": "frozen"}},
    {"train": {"^encoder": "lora"}},
    {"train": {"^encoder": "lora", "^adapter": "frozen"}},
    {"train": {"^encoder": "frozen", "^encoder.*layers\\.1": "lora"}, "merge_lora": True},
    {"train": {"^encoder": "frozen", "conv|encoder.*layers\\.1\\.fc1": "full"}},
    {"train": {"^encoder.*": "full"}},
]


@pytest.mark.parametrize("decoder", ["frozen", "lora"])
def test_a_saved_state_gives_an_equal_model_at_every_stage(tone_run, decoder):
    config = read(tone_run, PLAN, f"decoder.train={decoder}")
    fresh = build(config)
    model = copy.deepcopy(fresh)
    structure = TrainableParameters.of(model)
    saved = None
    for index in range(len(PLAN)):
        enter_stage(model, structure, config, index)
        if saved is not None:  # from the checkpoint of the stage before, as a run does it
            resumed = copy.deepcopy(fresh)
            other = go_through_stages(resumed, config, index - 1)
            put_tensors(resumed, other, saved, "before")
            enter_stage(resumed, other, config, index)
            assert trained(resumed) == trained(model)
            for name, value in snapshot(model).items():
                torch.testing.assert_close(dict(resumed.named_parameters())[name].detach(), value)
        shake(model, index)
        saved = {name: t.detach().clone() for name, t in collect_tensors(model, structure).items()}
        again = copy.deepcopy(fresh)
        other = go_through_stages(again, config, index)
        put_tensors(again, other, saved, "here")
        assert trained(again) == trained(model)
        assert other == structure
        values = snapshot(again)
        assert values.keys() == snapshot(model).keys()
        assert all(torch.equal(values[name], value) for name, value in snapshot(model).items())
        assert torch.equal(frames(again), frames(model))
        assert not any(name.startswith("decoder.") and LORA not in name for name in saved)


def test_the_tensors_of_another_structure_are_refused(tone_run):
    config = read(tone_run, [{"train": {"^encoder": "lora"}}, {"merge_lora": True}])
    model, structure = entered(config)
    saved = snapshot(model)
    held = {name: saved[name] for name in collect_tensors(model, structure)}
    one = next(name for name in held if LORA in name)
    with pytest.raises(UserError, match=rf"mine: the tensors are not .* missing \['{one}'\], unknown none"):
        put_tensors(model, structure, {n: t for n, t in held.items() if n != one}, "mine")
    with pytest.raises(UserError, match=r"missing none, unknown \['more'\]"):
        put_tensors(model, structure, held | {"more": held[one]}, "mine")
    with pytest.raises(UserError, match=rf"mine: {one} is \(1, 1\), but the config needs \("):
        put_tensors(model, structure, held | {one: torch.zeros(1, 1)}, "mine")
    with pytest.raises(UserError, match="missing"):
        put_tensors(*entered(config, 1), held, "mine")
