"""8-bit linear maps against loops over numbers that are made from their bits, and a decoder that has them."""

import numpy as np
import pytest
import torch
from conftest import tiny_qwen
from torch import nn

from uniaudio.checks.first_rows import AverageClip
from uniaudio.commands.plan import plan_stage
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.model import fp8
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoder_loading import load_decoder
from uniaudio.model.fp8 import (
    Float8Linear,
    convert_to_float8,
    multiply_on_units,
    multiply_scaled,
    quantize_rows,
    refuse_without_units,
)
from uniaudio.model.label_likelihoods import label_log_likelihoods
from uniaudio.ragged import Ragged

MAPS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def e4m3_numbers():
    """All finite numbers by the definition: a bit of sign, 4 of exponent with bias 7, 3 of mantissa."""
    result = []
    for bits in range(128):
        exponent, mantissa = bits >> 3, bits & 7
        if bits == 127:
            continue  # NaN
        size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        result += [size, -size]
    return np.array(result)


NUMBERS = e4m3_numbers()


def in_e4m3(rows):
    """Round a matrix by a search among the numbers; return what the rows have become, in float64."""
    result = np.zeros(rows.shape)
    for r, row in enumerate(rows):
        scale = max(np.abs(row).max(), 1e-30) / 448
        for c, value in enumerate(row):
            result[r, c] = NUMBERS[np.abs(NUMBERS - value / scale).argmin()] * scale
    return result


def random(*shape, seed=0, spread=3.0):
    """Numbers of very different sizes, such that none is near the middle of two in e4m3 by chance."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal(shape) * np.exp(spread * generator.standard_normal(shape))


def linear(inputs, outputs, bias=False, seed=0):
    made = nn.Linear(inputs, outputs, bias)
    made.weight.data = torch.tensor(random(outputs, inputs, seed=seed, spread=0.5), dtype=torch.float32)
    return made


def apart(result, expected):
    return float((result - expected).detach().norm() / expected.detach().norm())


def test_numbers_are_those_of_the_dtype():
    bits = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert sorted(bits[bits.isfinite()].tolist()) == sorted(NUMBERS)


def test_rounding_takes_the_nearest_number_and_the_largest_value_stays():
    values = random(6, 40)
    numbers, scale = quantize_rows(torch.tensor(values, dtype=torch.float32))
    result = numbers.double() * scale.double()
    np.testing.assert_allclose(result, in_e4m3(values), rtol=1e-6)
    largest = np.abs(values).max(1, keepdims=True)
    np.testing.assert_allclose(result.abs().amax(1, keepdim=True), largest, rtol=1e-6)
    assert (
        np.abs(result.numpy() - values) <= np.maximum(np.abs(values) / 16, largest * 2.2e-6) * 1.00001
    ).all()


@pytest.mark.parametrize("size", [0.0, 1e-24, 1e24])
def test_rows_of_any_size(size):
    values = torch.tensor(random(3, 32, spread=0.5), dtype=torch.float32) * size
    numbers, scale = quantize_rows(values)
    assert (numbers.float() * scale - values).abs().max() <= values.abs().max() / 16


@pytest.mark.parametrize("shape", [(5,), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_forward_and_gradient_against_loops(shape, bias):
    plain = linear(32, 48, bias)
    if bias:
        plain.bias.data = torch.randn(48)
    x = torch.tensor(random(*shape, 32, seed=1, spread=1), dtype=torch.float32, requires_grad=True)
    back = torch.tensor(random(*shape, 48, seed=2, spread=1), dtype=torch.float32)
    y = Float8Linear(plain)(x)
    y.backward(back)

    weight, rows = in_e4m3(plain.weight.detach().numpy()), in_e4m3(x.detach().reshape(-1, 32).numpy())
    expected = np.array([[sum(row * w) for w in weight] for row in rows])
    expected += plain.bias.detach().numpy() if bias else 0
    np.testing.assert_allclose(y.detach().reshape(-1, 48), expected, atol=1e-5 * np.abs(expected).max())

    # these go into the gradient before it is rounded
    scales = np.abs(plain.weight.detach().numpy()).max(1) / 448
    scaled = in_e4m3(back.reshape(-1, 48).numpy() * scales)
    expected = np.array(
        [sum(g / s * w for g, s, w in zip(row, scales, weight, strict=True)) for row in scaled]
    )
    np.testing.assert_allclose(x.grad.reshape(-1, 32), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_rows_give_no_rows(shape):
    """As for an expert that no token chose."""
    x = torch.zeros(*shape, 32, requires_grad=True)
    y = Float8Linear(linear(32, 48))(x)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == ((*shape, 48), (*shape, 32))


def test_gradient_is_that_of_the_rounded_weight():
    """But for the rounding of the gradient itself, which is as likely up as down."""
    torch.manual_seed(0)
    plain = linear(256, 128)
    eight = Float8Linear(plain)
    x = torch.randn(64, 256, requires_grad=True)
    back = torch.randn(64, 128)
    eight(x).backward(back)
    exact = back @ (eight.weight.view(fp8.E4M3).float() * eight.scale)
    assert apart(x.grad, exact) < 0.04
    assert abs(float((x.grad * exact).sum() / (exact * exact).sum()) - 1) < 2e-3


@pytest.mark.parametrize("loud", [1, 100, 1000])
def test_a_few_large_inputs_do_not_drown_the_others(loud):
    """The error stays that of the rounding of each value, as long as they are within 1/28,000 of the largest one."""
    plain = linear(128, 64)
    x = torch.randn(32, 128)
    x[:, 5] *= loud
    assert apart(Float8Linear(plain)(x), plain(x)) < 0.05


def test_what_is_not_finite_stays_so():
    """A step is left out by a loss of NaN, which has to reach the gradients."""
    eight = Float8Linear(linear(32, 16))
    x = torch.randn(3, 32, requires_grad=True)
    y = eight(x)
    y.backward(torch.full_like(y, float("nan")))
    assert x.grad.isnan().all()
    x = torch.randn(3, 32)
    x[1, 2] = float("inf")
    assert eight(x).isfinite().all(1).tolist() == [True, False, True]


def test_the_operation_of_the_units_gives_the_same_product():
    """On a CPU the same call that a GPU gets, with output in float32."""
    left, right = quantize_rows(torch.randn(7, 64)), quantize_rows(torch.randn(48, 64))
    try:
        result = multiply_on_units(*left, *right, torch.float32)
    except RuntimeError:
        pytest.skip("this torch has no product with scales by row on a CPU")
    torch.testing.assert_close(result, multiply_scaled(*left, *right, torch.float32), rtol=1e-6, atol=1e-5)


def test_traced_in_one_piece_for_any_number_of_tokens():
    eight = Float8Linear(linear(32, 16, bias=True))
    compiled = torch.compile(eight, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (3, 8, 21):
        x = torch.randn(tokens, 32)
        results = []
        for call in (eight, compiled):
            given = x.clone().requires_grad_()
            y = call(given)
            y.square().sum().backward()
            results.append((y.detach(), given.grad))
        torch.testing.assert_close(results[1], results[0])


def test_maps_of_the_layers_alone_are_replaced(qwen):
    before = {name for name, part in qwen.named_modules() if type(part) is nn.Linear}
    convert_to_float8(qwen.base_model)
    replaced = {name for name, part in qwen.named_modules() if isinstance(part, Float8Linear)}
    assert before - replaced == {"lm_head"}
    assert len(replaced) == 2 * len(MAPS)
    assert {name.rsplit(".")[-1] for name in replaced} == MAPS
    weights = [p for name, p in qwen.named_parameters() if name.removesuffix(".weight") in replaced]
    assert {(p.dtype, p.requires_grad) for p in weights} == {(torch.uint8, False)}
    assert qwen.get_input_embeddings().weight.dtype == torch.float32


def test_sizes_that_the_units_cannot_take_stay():
    body = nn.Module()
    body.layers = nn.ModuleList([nn.ModuleDict({"odd": nn.Linear(24, 16), "even": nn.Linear(32, 16)})])
    convert_to_float8(body)
    assert type(body.layers[0]["odd"]) is nn.Linear
    assert isinstance(body.layers[0]["even"], Float8Linear)
    with pytest.raises(UserError, match="multiples of 16, but the layers of Module have none"):
        convert_to_float8(body)


@pytest.fixture
def eight_bits(tmp_path):
    """The tiny Qwen3 with larger weights, so that its layers matter, in float32 and in 8 bits."""
    stock = tiny_qwen()
    for part in stock.base_model.layers.modules():
        if isinstance(part, nn.Linear):
            part.weight.data *= 4
    stock.save_pretrained(tmp_path)
    return load_decoder(str(tmp_path), dtype="float32"), load_decoder(str(tmp_path), dtype="fp8")


def loss_and_gradient(decoder: TextDecoder, rows: Ragged):
    values = rows.values.clone().requires_grad_()
    hidden = decoder.hidden(rows.with_values(values))
    loss, _, _ = decoder.losses(hidden, torch.arange(len(values)) % 400, 2048)
    loss.backward()
    return hidden.detach(), float(loss), values.grad.flatten()


def test_a_decoder_in_8_bits(eight_bits):
    plain, eight = eight_bits
    assert eight.packed
    assert not any(p.requires_grad for p in eight.parameters())
    torch.manual_seed(0)
    rows = Ragged(torch.randn(30, 64), torch.tensor([12, 11, 7]))
    hidden, loss, gradient = loss_and_gradient(eight, rows)
    exact = loss_and_gradient(plain, rows)
    assert 1e-3 < apart(hidden, exact[0]) < 0.12
    assert loss == pytest.approx(exact[1], rel=0.02)
    assert torch.cosine_similarity(gradient, exact[2], dim=0) > 0.98
    eight.recompute()
    eight.train()
    torch.testing.assert_close(loss_and_gradient(eight, rows)[2], gradient)


def test_rows_do_not_see_each_other(eight_bits):
    """Scales are by token, so a row alone has the numbers it has beside others."""
    torch.manual_seed(0)
    rows = Ragged(torch.randn(19, 64), torch.tensor([12, 7]))
    together = eight_bits[1].hidden(rows)[12:]
    alone = eight_bits[1].hidden(Ragged(rows.values[12:], torch.tensor([7])))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_generation_and_label_scores(eight_bits):
    """Both agree with the logits of the whole rows, through other ways of attention."""
    eight = eight_bits[1]
    prompt, label = torch.tensor([3, 17, 250, 9, 41]), torch.tensor([7, 300, 2])
    whole = torch.cat([prompt, label])
    with torch.no_grad():
        log_p = eight.logits(eight.hidden(Ragged(eight.embed(whole), torch.tensor([8])))).log_softmax(-1)
        expected = log_p[4:7].gather(1, label[:, None]).sum()
        rows = Ragged(eight.embed(prompt), torch.tensor([5]))
        scores = label_log_likelihoods(eight, rows, Ragged(label, torch.tensor([3])), eight.packed_hidden)
    assert float(scores) == pytest.approx(float(expected), rel=1e-3)
    new = eight.generate(
        eight.embed(prompt)[None], torch.ones(1, 5, dtype=torch.long), max_new_tokens=4, do_sample=False
    )
    assert new.shape == (1, 4)
    assert int(new[0, 0]) == int(log_p[4].argmax())


def test_plan_counts_one_byte_a_weight(tone_run):
    """And four for the scale of each output; the rest of the decoder stays as it was."""
    clip = AverageClip(1.0, 12, 3)
    plain, eight = (
        plan_stage(load_run(tone_run, [f"decoder.dtype={dtype}"]), 0, clip, torch.bfloat16)
        for dtype in ("auto", "fp8")
    )
    layer = tiny_qwen().base_model.layers[0]
    maps = [part.weight for part in layer.modules() if isinstance(part, nn.Linear)]
    saved = 2 * sum(weight.numel() - 4 * len(weight) for weight in maps)
    assert plain.frozen - eight.frozen == saved
    assert eight.trained == plain.trained
    assert eight.flops == pytest.approx(plain.flops, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["decoder.train=lora"], "fp8 is for a frozen decoder, but decoder.train is lora"),
        (["decoder.train=full"], "fp8 is for a frozen decoder, but decoder.train is full"),
        (["decoder.kind=whisper"], "fp8 is for causal decoders"),
    ],
)
def test_only_frozen_causal_decoders(tone_run, settings, message):
    with pytest.raises(UserError, match=message):
        load_run(tone_run, ["decoder.dtype=fp8", *settings])


def test_gpus_without_units_are_refused(monkeypatch):
    refuse_without_units()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    refuse_without_units()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UserError, match=r"capability 8\.9 or above .*, not A100; leave it out"):
        refuse_without_units()
    assert fp8.CAPABILITY == (8, 9)
