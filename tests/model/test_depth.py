"""Features of encoder layers in decoder layers, and time markers, against plain loops; wherever rows go."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_qwen, tiny_whisper
from transformers import Gemma2Config, Gemma2ForCausalLM

from uniaudio.build.adapter import fill_time_markers, make_adapter
from uniaudio.build.fusion import fuse
from uniaudio.build.model import load_model
from uniaudio.commands.check import check_run
from uniaudio.commands.train import run_training
from uniaudio.config.adapters import PoolConfig, QformerConfig, StackConfig, TokensConfig
from uniaudio.config.fusion import WqConfig
from uniaudio.config.run_files import load_run
from uniaudio.data.collate import collate, collate_prompts
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged
from uniaudio.types import Example

DEPTH = {"encoder_layers": [0, 1], "decoder_layers": [1, 0]}
SECOND = 16_000


def three_layers(vocabulary):
    """A decoder with a layer behind those of ``DEPTH``."""
    return tiny_qwen(vocabulary, layers=3)


def make_model(tokenizer, config, lm=None, scale=0.3):
    """A model whose projections are no longer zero."""
    encoder = WhisperAudioEncoder(tiny_whisper())
    decoder = TextDecoder(lm or three_layers(len(tokenizer)))
    torch.manual_seed(2)
    adapter = make_adapter(config, encoder, decoder.dim)
    fill_time_markers(adapter, decoder, tokenizer)
    for name, parameter in adapter.named_parameters():
        if "projections" in name:
            torch.nn.init.normal_(parameter, std=scale)
    model = AudioLM(encoder, adapter, decoder).eval()
    model.encoder.requires_grad_(False)
    return model, ChatFormat(tokenizer, vocabulary=decoder.vocabulary)


def make_examples(*seconds, shared=False):
    generator = np.random.default_rng(5)
    clips = [(generator.standard_normal(round(s * SECOND)) * 3000).astype(np.int16) for s in seconds]
    examples = [
        Example(str(i), "t", "t", (clip,), ("", f"is it {i}?"), "yes") for i, clip in enumerate(clips)
    ]
    if shared:
        examples.append(replace(examples[-1], id="more", prompt=("", "or low?"), shares_clips=True))
    return examples


def read_by_loops(model, format, example):
    """Hidden states of the last layer of one prompt, layer by layer with stock modules and plain loops."""
    clip = Ragged(torch.from_numpy(example.clips[0]), torch.tensor([len(example.clips[0])]))
    encoded = model.encoder(clip, layers=True)
    adapter = model.adapter
    tokens = adapter.inner(encoded.frames).values
    count, frames = len(tokens), len(encoded.frames.values)
    features = {}
    for projection, source, target in zip(
        adapter.projections, adapter.encoder_layers, adapter.decoder_layers, strict=True
    ):
        state = encoded.layers[source].values
        rows = []
        for j in range(count):
            part = [f for f in range(frames) if f < (j + 1) * frames / count and f + 1 > j * frames / count]
            rows.append(projection.out(projection.norm(sum(state[f] for f in part) / len(part))))
        features[target] = rows
    before, behind = format.encode_prompt(example.prompt)
    embed = model.decoder.lm.get_input_embeddings()
    hidden = torch.cat([embed(torch.tensor(before)), tokens, embed(torch.tensor(behind))])[None]
    base = model.decoder.lm.base_model
    positions = torch.arange(hidden.shape[1])[None]
    rotary = base.rotary_emb(hidden, positions)
    length = hidden.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    for number, layer in enumerate(base.layers):
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        for j, row in enumerate(features.get(number, [])):
            hidden[0, len(before) + j] += row
    return base.norm(hidden)[0]


@pytest.mark.parametrize("config", [StackConfig(depth=DEPTH), PoolConfig(kind="pool", depth=DEPTH)])
@torch.no_grad()
def test_features_are_added_where_plain_loops_add_them(config, chat_tokenizer):
    model, format = make_model(chat_tokenizer, config)
    examples = make_examples(0.31, 1.27)
    hidden, _ = model.read(batch := collate_prompts(examples, format, model.count_slots, ("t",)))
    wanted = torch.cat([read_by_loops(model, format, example) for example in examples])
    torch.testing.assert_close(hidden, wanted, atol=2e-5, rtol=1e-4)
    padded = model.decoder.padded_hidden(model.embed_batch(batch)[0])
    torch.testing.assert_close(padded, wanted, atol=2e-5, rtol=1e-4)


CONFIGS = {
    "stack": StackConfig,
    "pool": lambda **k: PoolConfig(kind="pool", **k),
    "qformer": lambda **k: QformerConfig(kind="qformer", **k),
    "tokens": lambda **k: TokensConfig(kind="tokens", tokens=7, stack=2, **k),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_training_begins_with_the_loss_of_the_model_without_depth(kind, chat_tokenizer):
    plain, format = make_model(chat_tokenizer, CONFIGS[kind]())
    torch.manual_seed(2)
    deep = AudioLM(
        plain.encoder,
        make_adapter(CONFIGS[kind](depth=DEPTH), plain.encoder, plain.decoder.dim),
        TextDecoder(three_layers(len(chat_tokenizer))),
    ).eval()
    deep.adapter.inner.load_state_dict(plain.adapter.state_dict())
    batch = collate(make_examples(0.5, 1.1), format, deep.count_slots, ("t",))
    loss = deep(batch).total
    assert torch.equal(loss, plain(batch).total)
    loss.backward()
    assert all(projection.out.weight.grad.abs().max() > 0 for projection in deep.adapter.projections)


def compute_gradients(model, batch):
    model.zero_grad()
    loss = model(batch).total
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.adapter.parameters()]


def test_shared_prefixes_and_recomputing_change_nothing(chat_tokenizer):
    model, format = make_model(chat_tokenizer, StackConfig(depth=DEPTH, time_markers=0.5))
    examples = make_examples(0.5, 1.3, shared=True)
    wanted = compute_gradients(model, collate(examples, format, model.count_slots, ("t",)))
    shared = collate(examples, format, model.count_slots, ("t",), share=True)
    assert shared.prefixes is not None
    assert len(shared.tokens.values) < len(collate(examples, format, model.count_slots, ("t",)).tokens.values)
    recomputing = copy.deepcopy(model)
    recomputing.decoder.recompute()
    for one in (model, recomputing.train()):
        loss, gradients = compute_gradients(one, shared)
        torch.testing.assert_close(loss, wanted[0], atol=1e-4, rtol=1e-5)
        for gradient, other in zip(gradients, wanted[1], strict=True):
            torch.testing.assert_close(gradient, other, atol=1e-3, rtol=1e-3)


def make_gemma(vocabulary):
    """A decoder that cannot be packed: its layers slide and cap."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, vocab_size=vocabulary, eos_token_id=None))


@pytest.mark.parametrize("make_lm", [three_layers, make_gemma])
@torch.no_grad()
def test_answers_and_scores_from_a_cache_are_those_of_whole_rows(make_lm, chat_tokenizer):
    config = StackConfig(depth=DEPTH, time_markers=0.4)
    model, format = make_model(chat_tokenizer, config, make_lm(len(chat_tokenizer)))
    prompts = collate_prompts(make_examples(0.4, 1.5), format, model.count_slots, ("t",))
    text = model.embed_batch(prompts)[0]
    answers = model.generate_ids(prompts, 4, -1, 0)
    for row, answer in zip(text.rows(), answers, strict=True):
        ids: list[int] = []
        for _ in range(4):
            given = model.decoder.embed(torch.tensor(ids, dtype=torch.long))
            wide = torch.cat([row, torch.nn.functional.pad(given, (0, row.shape[1] - given.shape[1]))])
            hidden = model.decoder.padded_hidden(Ragged(wide, torch.tensor([len(wide)])))
            ids.append(int(model.decoder.logits(hidden[-1:]).argmax()))
        assert answer == ids
    labels = Ragged.from_rows([torch.tensor([5, 6, 7]), torch.tensor([9, 7])])
    scores = model.label_log_likelihoods(prompts, labels)
    for i, row in enumerate(text.rows()):
        for j, label in enumerate(labels.rows()):
            given = model.decoder.embed(label[:-1])
            wide = torch.cat([row, torch.nn.functional.pad(given, (0, row.shape[1] - given.shape[1]))])
            hidden = model.decoder.padded_hidden(Ragged(wide, torch.tensor([len(wide)])))[-len(label) :]
            wanted = model.decoder.logits(hidden).log_softmax(-1).gather(1, label[:, None]).sum()
            torch.testing.assert_close(scores[i, j], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "count"), [("stack", 32), ("qformer", 8), ("tokens", 7)])
@torch.no_grad()
def test_markers_stand_before_the_sound_of_their_time(kind, count, chat_tokenizer):
    config = CONFIGS[kind](time_markers=1.0)
    model, _ = make_model(chat_tokenizer, config)
    adapter = model.adapter
    frames = 128  # 2.56 s
    tokens = adapter.adapter.num_tokens(frames)
    assert tokens == count
    expected, number = [], 0
    for j in range(tokens):
        while number <= 2 and number * 1.0 <= j * 2.56 / tokens + 1e-9:
            expected += [f"{number}", "s"]
            number += 1
        expected.append(j)
    assert adapter.num_tokens(frames) == len(expected)
    torch.manual_seed(0)
    given = Ragged(torch.randn(2 * frames, 64), torch.tensor([frames, frames]))
    plain = adapter.adapter(given)
    ids = chat_tokenizer.convert_tokens_to_ids
    wanted = [
        row[one] if isinstance(one, int) else model.decoder.embed(torch.tensor(ids(one)))
        for row in plain.rows()
        for one in expected
    ]
    assert torch.equal(adapter(given).values, torch.stack(wanted))


@pytest.mark.parametrize(
    ("kind", "every", "frames", "expected"),
    [
        ("stack", 2.0, 501, [(0, "0s"), (25, "2s"), (50, "4s"), (75, "6s"), (100, "8s"), (125, "10s")]),
        ("pool", 0.8, 121, [(0, "0s"), (10, "0.8s"), (20, "1.6s"), (30, "2.4s")]),  # 3 * 0.8 > 2.4 in floats
        ("stack", 0.1, 15, [(0, "0s"), (2, "0.1s"), (3, "0.2s")]),
        ("qformer", 0.64, 130, [(0, "0s"), (2, "0.64s"), (4, "1.28s"), (6, "1.92s"), (8, "2.56s")]),
        ("tokens", 0.2, 45, [(0, "0s"), (2, "0.2s"), (4, "0.4s"), (5, "0.6s")]),
    ],
)
def test_markers_stand_at_the_first_token_that_begins_at_their_time(
    kind, every, frames, expected, chat_tokenizer
):
    """Also where the last token of a clip has fewer frames than the others."""
    model, _ = make_model(chat_tokenizer, CONFIGS[kind](time_markers=every))
    assert model.adapter.list_markers(frames) == expected


def test_layers_and_kinds_that_do_not_fit_are_refused(chat_tokenizer):
    encoder, decoder = WhisperAudioEncoder(tiny_whisper()), TextDecoder(tiny_qwen(len(chat_tokenizer)))
    both = fuse(
        WqConfig(kind="wq", output="both"), {"one": encoder, "other": WhisperAudioEncoder(tiny_whisper())}
    )
    with pytest.raises(
        UserError, match=r"time_markers: .* not in the order of time \(fusion\.output: both\)"
    ):
        make_adapter(StackConfig(time_markers=1.0), both, decoder.dim)
    deep = StackConfig(depth={"encoder_layers": [3], "decoder_layers": [0]})
    with pytest.raises(UserError, match="encoder_layers: 3, but the encoder has hidden states 0 to 2"):
        make_adapter(deep, encoder, decoder.dim)
    high = StackConfig(depth={"encoder_layers": [1], "decoder_layers": [1]})
    with pytest.raises(UserError, match="decoder_layers: 1, but Qwen3ForCausalLM has 2 layers; use 0 to 0"):
        AudioLM(encoder, make_adapter(high, encoder, decoder.dim), decoder)


def test_a_run_resumes_in_the_same_numbers_and_answers(tone_run, fresh_accelerate, capsys):
    changes = [
        "adapter.depth.encoder_layers=[1]",
        "adapter.depth.decoder_layers=[0]",
        "adapter.time_markers=0.5",
    ]
    changes += ["train.save_every=2"]
    folders = []
    for name, ends in (("whole", (4,)), ("parts", (2, 4))):
        out = tone_run.parent / name
        for number, end in enumerate(ends):
            settings = [*changes, f"train.max_steps={end}", f"output_dir={out}"]
            assert run_training(load_run(tone_run, settings), "yes" if number else None) == 0
        folders.append(load_model(str(out)))
    first, second = (loaded.model for loaded in folders)
    assert [*first.state_dict()] == [*second.state_dict()]
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert first.adapter.adapter.projections[0].out.weight.abs().max() > 0
    assert first.adapter.table.abs().min(1).values.max() > 0
    prompts = collate_prompts(make_examples(1.2), folders[0].format, first.count_slots, ("t",))
    assert first.generate_ids(prompts, 3, -1, 0) == second.generate_ids(prompts, 3, -1, 0)
    with pytest.raises(
        UserError, match=r"cache stores only the output frames, but adapter\.depth reads hidden states"
    ):
        load_run(tone_run, [*changes, "encoders.whisper.cache=true", "encoders.whisper.train=frozen"])
    with pytest.raises(UserError, match="does not support it; use another kind"):
        load_run(tone_run, ["adapter.kind=ultravox", "adapter.time_markers=1"])
    with pytest.raises(UserError, match="use 0 to 0"):
        check_run(load_run(tone_run, [*changes, "adapter.depth.decoder_layers=[1]"]))
