"""Prompts of chat templates: those of today, those that think, those that raise."""

import copy

import pytest
from tokenizers import AddedToken
from transformers.utils import chat_template_utils

from uniaudio.data.chat_markup import ChatMarkup, read_chat_markup
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError

TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
DATED = (
    "{{ '<|im_start|>system\\nToday Date: ' + strftime_now('%d %b %Y') + '<|im_end|>\\n' }}" + TURNS + OPEN
)
BEFORE_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def chat_tokenizer(chat_tokenizer):
    """One that a test may change."""
    return copy.deepcopy(chat_tokenizer)


def opening(text):
    """A template whose generation prompt ends in a text."""
    return TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n" + text + "' }}{% endif %}"


def set_day(monkeypatch, day):
    class Clock(chat_template_utils.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.parametrize(
    ("opened", "suffix"),
    [
        ("", ""),
        ("<think>\\n", "<think>\n\n</think>\n\n"),
        ("<think>", "<think></think>"),
        ("[THINK]", "[THINK][/THINK]"),
        ("<|begin_of_thought|>\\n", "<|begin_of_thought|>\n\n<|end_of_thought|>\n\n"),
        ("<seed:think>", "<seed:think></seed:think>"),
        ("◁think▷", "◁think▷◁/think▷"),
        ("<think>\\n\\n</think>\\n\\n", "<think>\n\n</think>\n\n"),
        ("<think>\\nFirst of all\\n", "<think>\nFirst of all\n\n</think>\n\n"),
        ("</think>", "</think>"),
        ("<|no_think|>", "<|no_think|>"),
        ("<|assistant|>\\n", "<|assistant|>\n"),
        ("<answer>", "<answer>"),
    ],
)
def test_a_thought_that_a_template_opens_is_closed(chat_tokenizer, opened, suffix):
    chat_tokenizer.chat_template = opening(opened)
    if "begin" in opened:
        chat_tokenizer.add_tokens(["<|begin_of_thought|>", "<|end_of_thought|>"])
    assert read_chat_markup(chat_tokenizer).suffix == BEFORE_ANSWER + suffix


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_the_switch_of_a_template_is_taken(chat_tokenizer, switch):
    chosen = "{{ '<|im_start|>assistant\\n' + ('<think>' if " + switch + " else '<nothing/>') }}"
    chat_tokenizer.chat_template = TURNS + "{% if add_generation_prompt %}" + chosen + "{% endif %}"
    assert read_chat_markup(chat_tokenizer).suffix == BEFORE_ANSWER + "<nothing/>"


def test_what_a_template_puts_before_an_answer_without_a_thought_comes_first(chat_tokenizer):
    channel = "{{ '<|channel|>final<|message|>' if m['role'] == 'assistant' else '' }}"
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}"
        + channel
        + "{{ m['content'] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    assert (
        read_chat_markup(chat_tokenizer).suffix
        == "<|im_end|><|im_start|>assistant<|channel|>final<|message|>"
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}",
            "system first",
        ),
        ("{{ tools | length }}" + TURNS + OPEN, "has no len"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for %}", "xpected"),
        (TURNS.replace("m['content']", "m['content'] | length | string"), "does not keep the text"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_sentence(chat_tokenizer, template, reason):
    chat_tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"chat template.*{reason}") as problem:
        ChatFormat(chat_tokenizer)
    assert "\n" not in str(problem.value)


def test_a_run_still_uses_the_prompts_that_it_learned_today(chat_tokenizer, monkeypatch):
    chat_tokenizer.chat_template = DATED
    set_day(monkeypatch, 1)
    today = ChatFormat(chat_tokenizer)
    assert "01 Jan 2026" in today.prefix
    set_day(monkeypatch, 2)
    assert ChatFormat(chat_tokenizer).prefix != today.prefix
    kept = ChatMarkup.from_base(today.markup.to_base())
    assert kept == today.markup
    assert ChatFormat(chat_tokenizer, markup=kept).encode_prompt(["a", "b"]) == today.encode_prompt(
        ["a", "b"]
    )


def test_ids_without_embeddings_are_refused_where_a_text_can_get_them(chat_tokenizer):
    size = len(chat_tokenizer)
    ChatFormat(chat_tokenizer, vocabulary=size)
    ChatFormat(chat_tokenizer, vocabulary=size + 64)  # tables are padded
    with pytest.raises(
        UserError, match=f"the id {size - 1}, but the decoder has embeddings for {size - 1} tokens"
    ):
        ChatFormat(chat_tokenizer, vocabulary=size - 1)
    chat_tokenizer.add_tokens([AddedToken("<reserved_1>", special=True), AddedToken("[PAD]", special=True)])
    chat_tokenizer.pad_token = "[PAD]"
    format = ChatFormat(chat_tokenizer, vocabulary=size)  # no text of data may hold them
    assert format.pad < size
    assert format.pad != format.end_of_turn
    chat_tokenizer.add_tokens(["melody"])
    with pytest.raises(UserError, match="'melody' the id"):
        ChatFormat(chat_tokenizer, vocabulary=size)


def test_markup_without_embeddings_is_refused(chat_tokenizer):
    size = len(chat_tokenizer)
    chat_tokenizer.add_tokens([AddedToken("<|sep|>", special=True)])
    chat_tokenizer.chat_template = opening("<|sep|>")
    with pytest.raises(UserError, match=r"'<\|sep\|>' the id"):
        ChatFormat(chat_tokenizer, vocabulary=size)
