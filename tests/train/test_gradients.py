"""Loss and gradients do not depend on how a global batch is cut; frozen parts stay out of everything."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uniaudio.config.run_files import load_run
from uniaudio.data.collate import collate
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.train.optim import build_optimizer, compute_lr_share
from uniaudio.train.trainable import TrainableParameters, collect_tensors, put_tensors
from uniaudio.types import Example


@pytest.fixture
def model(whisper, qwen):
    encoder = WhisperAudioEncoder(whisper)
    return AudioLM(encoder, StackAdapter(encoder.dim, 50.0, 64), TextDecoder(qwen))


def examples(count):
    rng = np.random.default_rng(0)
    answers = ["low", "high and higher", "a much longer answer, of several words"]
    return [
        Example(
            f"a/b/{i}",
            "speak" if i % 3 else "tag",
            "a",
            (rng.integers(-3000, 3000, 1000 + 700 * i, dtype=np.int16),),
            ("", "Which tone is it?"),
            answers[i % 3],
        )
        for i in range(count)
    ]


def batch(model, format, some):
    return collate(some, format, model.count_slots, ("speak", "tag"))


def optimizer_of(model, config):
    return build_optimizer(model, config, config.stages[0], torch.device("cpu"))


def held(model):
    """What a checkpoint of the first stage holds, copied."""
    return {
        name: p.detach().clone() for name, p in collect_tensors(model, TrainableParameters.of(model)).items()
    }


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cut", [[6], [3, 3], [1, 2, 3], [1] * 6])
def test_any_cut_gives_the_loss_and_gradient_of_the_mean_over_answer_tokens(model, chat_tokenizer, cut):
    format, some = ChatFormat(chat_tokenizer), examples(6)
    total, tokens, start = 0.0, 0, 0
    whole_tokens = batch(model, format, some).answer_tokens
    model.train()
    for size in cut:
        loss = model(batch(model, format, some[start : start + size]))
        (loss.total / whole_tokens).backward()
        total, tokens, start = total + float(loss.total), tokens + loss.answer_tokens, start + size
    cut_gradients = gradients(model)
    model.zero_grad()
    # the plain way: every example alone through the stock model, mean over all answer tokens
    plain = torch.zeros(())
    for example in some:
        one = batch(model, format, [example])
        embeds, _ = model.embed_batch(one)
        ids = one.tokens.values[None]
        labels = torch.full_like(ids, -100)
        labels[0, one.label_positions + 1] = one.labels
        mean = model.decoder.lm(inputs_embeds=embeds.values[None], labels=labels, use_cache=False).loss
        plain = plain + mean * one.answer_tokens
    (plain / whole_tokens).backward()
    assert tokens == whole_tokens
    assert total == pytest.approx(float(plain), rel=1e-5)
    expected = gradients(model)
    assert expected.keys() == cut_gradients.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(cut_gradients[name], gradient, atol=2e-6, rtol=1e-3)


def test_gradient_reaches_adapter_and_encoder_and_nothing_else(model, chat_tokenizer):
    model.train()
    model(batch(model, ChatFormat(chat_tokenizer), examples(3))).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapter.parameters())
    trained = [p for p in model.encoder.parameters() if p.requires_grad]
    # key biases have no effect
    assert sum(float(p.grad.abs().sum()) > 0 for p in trained) >= len(trained) - 2
    assert all(p.grad is None for p in model.decoder.parameters())


def test_per_task_sums(model, chat_tokenizer):
    format, some = ChatFormat(chat_tokenizer), examples(6)
    loss = model(batch(model, format, some))
    assert float(loss.per_task[:, 0].sum()) == pytest.approx(float(loss.total), rel=1e-5)
    for index, task in enumerate(("speak", "tag")):
        alone = model(batch(model, format, [e for e in some if e.task == task]))
        assert float(loss.per_task[index, 0]) == pytest.approx(float(alone.total), rel=1e-4)
        assert float(loss.per_task[index, 1]) == alone.answer_tokens


def test_an_empty_batch_gives_zero_to_every_trained_parameter(model, chat_tokenizer):
    loss = model(batch(model, ChatFormat(chat_tokenizer), []))
    loss.total.backward()
    assert loss.answer_tokens == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


def test_frozen_parts_are_outside_everything(model, tone_run):
    model.train()
    assert not model.decoder.lm.training
    assert not any(p.requires_grad for p in model.decoder.parameters())
    optimizer = optimizer_of(model, load_run(tone_run))
    members = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not members & {id(p) for p in model.decoder.parameters()}
    assert members == {id(p) for p in model.parameters() if p.requires_grad}
    assert held(model).keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("decoder") for name in held(model))


def test_a_frozen_encoder_takes_no_gradient_and_stays_in_eval_mode(model, tone_run):
    model.encoder.requires_grad_(False)
    model.train()
    assert not model.encoder.training
    assert model.adapter.training
    assert all(name.startswith("adapter") for name in held(model))
    assert len(held(model)) == len(list(model.adapter.parameters())) > 0
    config = load_run(tone_run, ["encoders.whisper.train=frozen"])
    groups = optimizer_of(model, config).param_groups
    assert {group["component"] for group in groups} == {"adapter"}


def test_learning_rates_by_component_and_schedule(model, tone_run):
    config = load_run(tone_run, ["encoders.whisper.lr=2e-5", "stages.0.final_lr_share=0.1"])
    groups = optimizer_of(model, config).param_groups
    assert {(group["component"], group["peak_lr"]) for group in groups} == {
        ("whisper", 2e-5),
        ("adapter", 1e-3),
    }
    assert all(group["weight_decay"] == 0 for group in groups if all(p.dim() == 1 for p in group["params"]))
    shares = [compute_lr_share(config.stages[0], step, 8, 0.0) for step in range(8)]
    assert shares[:2] == [0.5, 1.0]
    assert shares[2] == 1.0
    assert shares == sorted(shares[:2]) + sorted(shares[2:], reverse=True)
    assert compute_lr_share(config.stages[0], 8, 8, 0.0) == pytest.approx(0.1)
    hours = [compute_lr_share(config.stages[0], step, None, step / 8) for step in range(9)]
    assert hours[0] == pytest.approx(0.5)  # the warm-up counts steps, the cosine the hours that were heard
    assert hours[2] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + 0.5**0.5))
    assert hours[8] == pytest.approx(0.1)


def test_slots_that_do_not_match_are_reported_with_both_numbers(model, chat_tokenizer):
    wrong = collate(examples(1), ChatFormat(chat_tokenizer), lambda n: 3, ("speak", "tag"))
    with pytest.raises(ValueError, match="3 audio positions but 1 audio tokens"):
        model(wrong)


def test_a_checkpoint_of_another_model_is_refused(model):
    structure, state = TrainableParameters.of(model), held(model)
    with pytest.raises(UserError, match=r"step-3: .*missing \['adapter.down.bias'\], unknown none"):
        put_tensors(model, structure, {k: v for k, v in state.items() if k != "adapter.down.bias"}, "step-3")
    with pytest.raises(UserError, match=r"missing none, unknown \['decoder.more'\]"):
        put_tensors(model, structure, {**state, "decoder.more": torch.zeros(3)}, "step-3")
    with pytest.raises(UserError, match=r"adapter.down.bias is \(3,\), but the config needs \(64,\)"):
        put_tensors(model, structure, {**state, "adapter.down.bias": torch.zeros(3)}, "step-3")


def test_tensors_of_a_checkpoint_come_back_bit_for_bit(model):
    state = held(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    put_tensors(model, TrainableParameters.of(model), state, "step-3")
    for name, parameter in held(model).items():
        assert torch.equal(parameter, state[name]), name


def test_questions_that_share_a_clip_have_the_losses_and_gradients_of_each_alone(model, chat_tokenizer):
    format, some = ChatFormat(chat_tokenizer), examples(3)
    requests = [
        replace(example, task=task, prompt=("", prompt), shares_clips=task == "tag")
        for example in some
        for task, prompt in (("speak", "Which tone is it?"), ("tag", "What is that?"))
    ]
    model.train()
    together = batch(model, format, requests)
    assert len(together.audio.lengths) == 3
    loss = model(together)
    loss.total.backward()
    shared = gradients(model)
    model.zero_grad()
    alone = model(batch(model, format, [replace(example, shares_clips=False) for example in requests]))
    alone.total.backward()
    assert torch.allclose(loss.total, alone.total, rtol=1e-5)
    assert torch.allclose(loss.per_task, alone.per_task, rtol=1e-4)
    for name, gradient in gradients(model).items():
        assert torch.allclose(shared[name], gradient, rtol=2e-3, atol=1e-5), name
