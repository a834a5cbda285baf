"""The chat templates of exported whole models: the prompts of the run, and the turns that follow."""

import copy

import pytest

from uniaudio.data.jinja import TURN_TOKENS, Wording
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.export.chat_template import make_chat_template


def test_the_template_keeps_the_turns_of_the_decoder_and_writes_what_was_trained(chat_tokenizer):
    format = ChatFormat(chat_tokenizer)
    template = make_chat_template(chat_tokenizer, format.markup, "<sound>")
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "audio"}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Sure?"},
    ]
    text = chat_tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat <sound><|im_end|>\n"
        "<|im_start|>assistant\nA dog.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_writes_another_prompt_today_gives_way_to_the_trained_one(chat_tokenizer):
    format = ChatFormat(chat_tokenizer)
    trained = type(format.markup)("It's 1 May\\.\n<|im_start|>", "<|im_end|>\n", format.end_of_turn)
    template = make_chat_template(chat_tokenizer, trained, "<sound>")
    turns = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "low?"}]}]
    text = chat_tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert text == "It's 1 May\\.\n<|im_start|><sound>low?<|im_end|>\n"


@pytest.mark.parametrize("stock", [None, "{{ strftime_now('%s') }}"], ids=["none", "date"])
def test_later_turns_of_a_fixed_text_are_those_of_trained_conversations(chat_tokenizer, stock):
    """Neither the beginning of a text nor a date comes again before the second question."""
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = stock and f"{stock}{chat_tokenizer.chat_template}"
    format = ChatFormat(tokenizer)
    prefix = "<|im_start|>"
    if stock is not None:
        trained = type(format.markup)(
            f"1 May {format.prefix.lstrip('0123456789')}", format.suffix, format.end_of_turn
        )
        format, prefix = ChatFormat(tokenizer, markup=trained), trained.prefix
    contents = ("low or high?", "low", "Sure?")
    turns = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), contents, strict=True)
    ]
    text = tokenizer.apply_chat_template(
        turns,
        chat_template=make_chat_template(tokenizer, format.markup, "<sound>"),
        tokenize=False,
        add_generation_prompt=True,
    )
    question, answer = TURN_TOKENS
    conversation = Wording(f"{contents[0]}{question}{contents[1]}{answer}{contents[2]}", TURN_TOKENS)
    (ids,) = format.encode_prompt([conversation])
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    assert text.startswith(prefix)
    assert text.count(prefix) == 1 or stock is None


def test_an_answer_at_the_end_has_the_end_of_its_turn(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = None
    format = ChatFormat(tokenizer)
    turns = [{"role": "user", "content": "low\r\nor high?"}, {"role": "assistant", "content": "low"}]
    trained = type(format.markup)("It's\r\n", "\r", format.end_of_turn)
    text = tokenizer.apply_chat_template(
        turns, chat_template=make_chat_template(tokenizer, trained, "<sound>"), tokenize=False
    )
    assert text == "It's\r\nlow\r\nor high?\rlow<|im_end|>"
