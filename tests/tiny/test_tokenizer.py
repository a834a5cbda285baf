"""The miniature tokenizer: any text goes through, chat markup is single tokens."""

import pytest

from uniaudio.errors import UserError
from uniaudio.tiny.text_lm import SMALLEST_VOCABULARY, train_tokenizer

TEXTS = ["which digits are spoken?", "four two three", "dog", "clock tick", "seven one"] * 3


def test_any_text_survives_a_round_trip():
    tokenizer = train_tokenizer(TEXTS, 320)
    for text in ("four two three", " leading", "naïve Grüße 你好 🙂", "a\n\nb  c", "x" * 50):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text


def test_merges_make_words_single_pieces():
    tokenizer = train_tokenizer(TEXTS, 400)
    assert len(tokenizer.encode("four two three")) == 3
    assert SMALLEST_VOCABULARY < len(tokenizer) <= 400


def test_chat_markup_is_single_tokens():
    tokenizer = train_tokenizer(TEXTS, 320)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "dog"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\ndog<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_too_small_a_vocabulary_is_a_users_mistake():
    with pytest.raises(UserError, match="vocabulary is 100"):
        train_tokenizer(TEXTS, 100)
