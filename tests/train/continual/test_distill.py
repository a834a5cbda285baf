"""Feature distillation on a real small model: what it adds up, whom it moves, and what stays still."""

import math

import pytest
import torch
from conftest import tiny_whisper, tone

from uniaudio.build.model import build_model
from uniaudio.config.run_files import load_run
from uniaudio.config.stages import DistillConfig
from uniaudio.data.collate import collate
from uniaudio.train.continual.distill import Distiller, count_batch_frames
from uniaudio.types import Example

FUSED = [
    "encoders.weak={path: second, train: full}",
    "encoders.other={path: second, train: frozen}",
    "fusion={kind: mowe, reads_prompt: true}",
]


def opened(tone_run, *overrides):
    config = load_run(tone_run, list(overrides))
    loaded = build_model(config, config.decoder.path, torch.device("cpu"))
    examples = [
        Example(f"t/{i}", "tone", "t", (tone(seconds, 300 * (i + 1), i),), ("Which?", text), "low")
        for i, (seconds, text) in enumerate([(0.5, ""), (0.33, " Tone."), (0.71, " user")])
    ]
    batch = collate(examples, loaded.format, loaded.model.count_slots, ("tone",))
    return loaded.model, batch


def shake(model):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)


def distance(now, before, kind):
    """Sum over frames, number by number."""
    total = 0.0
    for one, other in zip(now.double().tolist(), before.double().tolist(), strict=True):
        if kind == "mse":
            for a, b in zip(one, other, strict=True):
                total += (a - b) ** 2
        else:
            inner = sum(a * b for a, b in zip(one, other, strict=True))
            lengths = [math.sqrt(sum(a * a for a in side)) for side in (one, other)]
            total += 1 - inner / (lengths[0] * lengths[1])
    return total


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_totals_equal_the_sum_over_frames(tone_run, kind):
    model, batch = opened(tone_run)
    model.eval()
    distiller = Distiller(model, DistillConfig(weight=0.7, distance=kind))
    before = model(batch).frames
    assert distiller.compute_total(distiller.frames(batch), before).item() == pytest.approx(0, abs=1e-3)
    shake(model)
    now = model(batch).frames
    assert count_batch_frames(model, batch) == len(now.values) == len(before.values)
    total = distiller.compute_total(distiller.frames(batch), now)
    wanted = 0.7 * distance(now.values.detach(), before.values.detach(), kind)
    assert wanted > 0.1
    assert total.item() == pytest.approx(wanted, rel=1e-4)


def test_the_copy_stays_still_and_takes_no_gradient(tone_run):
    model, batch = opened(tone_run)
    distiller = Distiller(model, DistillConfig(weight=1.0))
    kept = {n: p.detach().clone() for n, p in distiller.model.encoder.named_parameters()}
    before = distiller.frames(batch).values
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(3):
        loss = model(batch)
        (loss.total + distiller.compute_total(distiller.frames(batch), loss.frames)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(distiller.frames(batch).values, before)
    single = dict(model.encoder.named_parameters())
    for name, parameter in distiller.model.encoder.named_parameters():
        assert torch.equal(parameter, kept[name])
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert parameter.data_ptr() != single[name].data_ptr()
    assert any(not torch.equal(single[name], value) for name, value in kept.items())
    assert model.encoder is not distiller.model.encoder
    assert model.encoder.training  # the student's mode is its own
    assert not distiller.model.encoder.training
    # the rest is shared, not copied
    assert distiller.model.decoder is model.decoder
    assert not any("distill" in name for name, _ in model.named_parameters())


def test_the_gradient_is_in_the_student_alone_and_points_back(tone_run):
    model, batch = opened(tone_run)
    model.eval()
    distiller = Distiller(model, DistillConfig(weight=1.0))
    shake(model)
    loss = model(batch)
    distiller.compute_total(distiller.frames(batch), loss.frames).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert "encoder.whisper.layers.0.fc1.weight" in moved
    assert all(name.startswith("encoder.") for name in moved)
    # of the frames themselves: 2 (now - before)
    frames = loss.frames.with_values(loss.frames.values.detach().requires_grad_())
    distiller.compute_total(distiller.frames(batch), frames).backward()
    wanted = 2 * (frames.values.detach() - distiller.frames(batch).values)
    torch.testing.assert_close(frames.values.grad, wanted)
    first = distiller.compute_total(distiller.frames(batch), loss.frames).item()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            if parameter.grad is not None:
                parameter -= 1e-5 * parameter.grad
    assert distiller.compute_total(distiller.frames(batch), model(batch).frames).item() < first


def test_a_copy_that_reads_the_question_reads_it(tone_run):
    tiny_whisper(seed=1).save_pretrained(tone_run.parent / "second")
    model, batch = opened(tone_run, *FUSED)
    model.eval()
    distiller = Distiller(model, DistillConfig(weight=1.0))
    torch.testing.assert_close(distiller.frames(batch).values, model(batch).frames.values)
