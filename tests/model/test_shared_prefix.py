"""Questions that share the beginning of their prompts, against each question alone through the stock decoder."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_qwen, tiny_whisper
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from uniaudio.config.encoders import LoraConfig
from uniaudio.data.collate import collate
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.attention import Segments, packed_attention
from uniaudio.model.audio_lm import AudioLM, average_questions
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoder_loading import make_trainable
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.shared_prefix import compute_row_positions, find_key_places
from uniaudio.model.whisper_decoder import CrossAttentionLM, LinearBridge, WhisperTextDecoder
from uniaudio.types import Example, SharedPrefixes

TASKS = ("a", "b")
EXACT = {"rtol": 1e-10, "atol": 1e-10}


class WrittenIds:
    """Stands for a chat format: texts are token ids, written as numbers."""

    def encode_prompt(self, pieces):
        return [[int(word) for word in piece.split()] for piece in pieces]

    def answer(self, text):
        return [int(word) for word in text.split()]


@pytest.fixture(autouse=True)
def norms_in_float32(monkeypatch):
    """Qwen's norms round to float32 whatever the weights are, which would hide what is compared here."""

    def forward(norm, x):
        return norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)

    monkeypatch.setattr(Qwen3RMSNorm, "forward", forward)


def build(attention="packed"):
    encoder = WhisperAudioEncoder(tiny_whisper())
    decoder = TextDecoder(tiny_qwen(), attention)
    return AudioLM(encoder, StackAdapter(encoder.dim, 50.0, 64), decoder, label_chunk=7).double().train()


def examples(groups):
    """Make the examples of ``[(samples of each clip, [(text before the last clip, behind it, answer)])]``."""
    made = []
    for number, (lengths, questions) in enumerate(groups):
        rng = np.random.default_rng(number)
        clips = tuple(rng.integers(-9000, 9000, n, dtype=np.int16) for n in lengths)
        for place, (before, after, answer) in enumerate(questions):
            prompt = (*["1 2"] * (len(clips) - 1), before, after)
            name, task = f"{number}/{place}", TASKS[place % 2]
            made.append(Example(name, task, "d", clips, prompt, answer, shares_clips=place > 0))
    return made


def shared_and_not(model, some):
    return (collate(some, WrittenIds(), model.count_slots, TASKS, share) for share in (True, False))


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(batch)
    loss.total.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def each_alone(model, whole):
    """Add up the losses of all questions, each whole row with a forward of the stock model of its own."""
    model.zero_grad()
    embeds, _ = model.embed_batch(whole)
    model.decoder.set_attention(model.decoder.stock_attention)
    rows = [model.decoder.lm(inputs_embeds=row[None], use_cache=False).logits[0] for row in embeds.rows()]
    logits = torch.cat(rows)
    total = 0.0
    for place, label in zip(whole.label_positions.tolist(), whole.labels.tolist(), strict=True):
        total = total - logits[place].log_softmax(-1)[label]
    total.backward()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_equal_gradients(some, others):
    assert some.keys() == others.keys()
    assert any(name.startswith("encoder") for name in some)
    for name, gradient in some.items():
        torch.testing.assert_close(
            gradient, others[name], **EXACT, msg=lambda message, name=name: f"{name}: {message}"
        )


MIXED = [
    ((4000,), [("1 2", "3 4", "5 6 7"), ("1 2", "8", "9 9"), ("1 2", "3 4", "5 10")]),
    ((700,), [("1 2", "3 4", "5 6")]),  # alone
    ((9000,), [("1 2", "3", "5 6"), ("1 4", "3", "5 6"), ("1 2", "11 12 13 14", "6 6"), ("1 4", "8", "7 7")]),
    ((2000, 5000), [("7", "3", "5 6"), ("7", "12 3", "8 6")]),  # two clips
    ((3000,), [("1 2 3", "4", "5 6"), ("", "3", "5 6")]),  # nothing in common but the clip
]


def test_losses_and_gradients_equal_those_of_every_question_alone():
    model = build()
    some = examples(MIXED)
    batch, whole = shared_and_not(model, some)
    leaders = [0, 0, 0, 3, 4, 5, 4, 5, 8, 8, 10, 11]
    assert batch.prefixes.leaders.tolist() == leaders
    assert len(batch.tokens.values) < len(whole.tokens.values)
    loss, gradients = loss_and_gradients(model, batch)
    plain, plain_gradients = each_alone(model, whole)
    torch.testing.assert_close(loss.total, plain, **EXACT)
    assert_equal_gradients(gradients, plain_gradients)
    without, gradients_without = loss_and_gradients(model, whole)
    assert whole.prefixes is None
    torch.testing.assert_close(loss.total, without.total, **EXACT)
    torch.testing.assert_close(loss.per_task, without.per_task)
    assert_equal_gradients(gradients, gradients_without)


SYSTEM = " ".join(map(str, range(21, 38)))  # 17 ids
WITH_SYSTEM = [
    ((4000,), [(SYSTEM, "3 4", "5 6 7"), (SYSTEM, "8", "9 9")]),
    ((700,), [(SYSTEM + " 1", "3 4", "5 6"), (SYSTEM + " 1", "7", "5 6"), (SYSTEM, "3", "5 6")]),
    ((2000, 5000), [(SYSTEM, "3", "5 6")]),  # begins with another text: its own clip comes first
    ((3000,), [(SYSTEM[:44], "4", "5 6")]),  # too little in common
    ((900,), [(SYSTEM, "4", "5 6"), (SYSTEM, "4 4", "8 6")]),
]


def test_a_system_prompt_is_read_once_for_a_batch():
    model = build()
    batch, whole = shared_and_not(model, examples(WITH_SYSTEM))
    assert batch.prefixes.leaders.tolist() == [0, 0, 0, 2, 0, 5, 6, 0, 7]
    clip = model.count_slots(700)
    assert batch.prefixes.lengths[:5].tolist() == [0, 17 + model.count_slots(4000), 17, 18 + clip, 17]
    loss, gradients = loss_and_gradients(model, batch)
    plain, plain_gradients = each_alone(model, whole)
    torch.testing.assert_close(loss.total, plain, **EXACT)
    assert_equal_gradients(gradients, plain_gradients)
    means = [average_questions(b, model.decoder.embed(b.tokens.values)) for b in (batch, whole)]
    torch.testing.assert_close(*means, **EXACT)


def test_the_mean_of_a_long_question_is_exact_in_bfloat16():
    """Ones that are added up in bfloat16 stay at 256."""
    model = build()
    batch, _ = shared_and_not(model, examples([((4000,), [("1 2 " * 300, "3", "5 6")])]))
    text = torch.full((len(batch.tokens.values), 4), 3.0, dtype=torch.bfloat16)
    assert average_questions(batch, text).tolist() == [[3.0] * 4]


TEXTS = st.lists(st.integers(1, 300), min_size=1, max_size=5).map(lambda ids: " ".join(map(str, ids)))
QUESTIONS = st.lists(
    st.tuples(
        st.sampled_from(["", "1", "1 2", SYSTEM, SYSTEM + " 1"]), TEXTS, TEXTS.map(lambda text: text + " 2")
    ),
    min_size=1,
    max_size=5,
)
GROUPS = st.lists(
    st.tuples(st.lists(st.integers(200, 9000), min_size=1, max_size=2), QUESTIONS), min_size=1, max_size=3
)


@settings(max_examples=12, phases=[Phase.generate])
@given(groups=GROUPS)
def test_any_number_of_questions_of_any_length(groups):
    model = build()
    batch, whole = shared_and_not(model, examples(groups))
    loss, gradients = loss_and_gradients(model, batch)
    plain, plain_gradients = each_alone(model, whole)
    torch.testing.assert_close(loss.total, plain, **EXACT)
    assert_equal_gradients(gradients, plain_gradients)


@pytest.mark.parametrize("how", ["frozen", "lora", "full"])
@pytest.mark.parametrize("recompute", [False, True])
def test_trained_decoders_and_those_that_recompute(how, recompute):
    model = build()
    lora = LoraConfig(rank=2, alpha=4, dropout=0.0)
    make_trainable(model.decoder, model.decoder.lm.base_model, how, lora, 0)
    if how == "lora":
        for name, parameter in model.decoder.named_parameters():
            if "lora_B" in name:  # they begin as zeros, which would leave the others without gradient
                torch.nn.init.normal_(parameter, std=0.1)
    if recompute:
        model.decoder.recompute()
    model.double().train()
    batch, whole = shared_and_not(model, examples(MIXED))
    loss, gradients = loss_and_gradients(model, batch)
    without, gradients_without = loss_and_gradients(model, whole)
    assert any(name.startswith("decoder") for name in gradients) == (how != "frozen")
    torch.testing.assert_close(loss.total, without.total, **EXACT)
    assert_equal_gradients(gradients, gradients_without)


@pytest.mark.parametrize("grouped", [1, 2])
def test_keys_before_the_queries_of_a_segment(grouped):
    """The last query stands at the last key, as FlashAttention has it."""
    torch.manual_seed(0)
    asking, seen = [3, 1, 4], [3, 6, 9]
    query = torch.randn(sum(asking), 4, 8, dtype=torch.float64)
    key, value = torch.randn(2, sum(seen), 4 // grouped, 8, dtype=torch.float64)
    device = torch.device("cpu")
    segments = [Segments.of(lengths, device) for lengths in (asking, seen)]
    out = packed_attention(query, key, value, segments[0], True, 0.3, key_segments=segments[1])
    first, begin = 0, 0
    for queries, keys in zip(asking, seen, strict=True):
        for i in range(queries):
            known = range(begin, begin + keys - queries + i + 1)
            for head in range(4):
                scores = torch.stack([query[first + i, head] @ key[j, head // grouped] * 0.3 for j in known])
                mixed = sum(
                    w * value[j, head // grouped] for w, j in zip(scores.softmax(0), known, strict=True)
                )
                torch.testing.assert_close(out[first + i, head], mixed)
        first, begin = first + queries, begin + keys


def test_places_and_positions():
    lengths = torch.tensor([5, 1, 2, 3])
    prefixes = SharedPrefixes(torch.tensor([0, 0, 2, 2]), torch.tensor([0, 3, 0, 1]))
    assert compute_row_positions(lengths, prefixes).tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 1, 2, 3]
    assert compute_row_positions(lengths, None).tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 0, 1, 2]
    places = [row.tolist() for row in find_key_places(lengths, prefixes).rows()]
    assert places == [[0, 1, 2, 3, 4], [0, 1, 2, 5], [6, 7], [6, 8, 9, 10]]
    chained = SharedPrefixes(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 3, 4, 2]))
    places = [row.tolist() for row in find_key_places(lengths, chained).rows()]
    assert places == [[0, 1, 2, 3, 4], [0, 1, 2, 5], [0, 1, 2, 5, 6, 7], [0, 1, 8, 9, 10]]


def test_no_row_pays_where_none_shares(monkeypatch):
    """Without a shared beginning keys and values are taken as they are."""
    model = build()
    seen = []
    of = Segments.of.__func__
    monkeypatch.setattr(Segments, "of", classmethod(lambda *given: seen.append(of(*given)) or seen[-1]))
    batch, _ = shared_and_not(model, examples([MIXED[1], MIXED[4]]))
    assert batch.prefixes is None
    model(batch)
    assert all(segments.keys is None for segments in seen)


def test_a_router_that_reads_the_question_reads_the_same():
    model = build()
    batch, whole = shared_and_not(model, examples(MIXED))
    assert torch.equal(batch.clip_example, whole.clip_example)
    means = [average_questions(b, model.decoder.embed(b.tokens.values)) for b in (batch, whole)]
    torch.testing.assert_close(*means, **EXACT)


def test_decoders_that_cannot():
    model = build("padded")
    assert not model.shares_prefixes
    batch, whole = shared_and_not(model, examples(MIXED))
    with pytest.raises(ValueError, match="reads only whole rows"):
        model(batch)
    expected = build()(whole).total
    torch.testing.assert_close(model(whole).total, expected, **EXACT)
    small = WhisperConfig(d_model=64, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64)
    reader = WhisperTextDecoder(WhisperDecoder(small))
    assert not CrossAttentionLM(model.encoder, LinearBridge(64, 64), reader).shares_prefixes


def test_nothing_waits_for_the_device(monkeypatch):
    """On the meta device, where nothing has a value, whoever reads one fails."""
    real = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **given: nullcontext() if kind == "meta" else real(kind, **given)
    )
    model = build()
    batch, _ = shared_and_not(model, examples(MIXED))
    model.to("meta")
    model(batch.to("meta")).total.backward()
    assert all(p.grad.is_meta for p in model.parameters() if p.requires_grad)


def test_sharers_see_their_leader_only():
    """A change of one group's clip leaves the losses of all other groups alone."""
    model = build().eval()
    some = examples(MIXED)
    changed = [
        replace(example, clips=tuple(clip[::-1].copy() for clip in example.clips))
        if example.id[0] == "2"
        else example
        for example in some
    ]
    before, after = (
        model.read(collate(questions, WrittenIds(), model.count_slots, TASKS, True))[0]
        for questions in (some, changed)
    )
    batch = collate(some, WrittenIds(), model.count_slots, TASKS, True)
    owner = batch.tokens.row_index()
    moved = (before - after).abs().amax(-1) > 1e-9
    for row, example in enumerate(some):
        assert bool(moved[owner == row].any()) == (example.id[0] == "2"), example.id
