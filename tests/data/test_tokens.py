"""Chat markup, with a byte-level tokenizer as Qwen has it and sentencepiece ones as Llama-2 and Gemma have it."""

import io

import numpy as np
import pytest
import sentencepiece
import torch
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from uniaudio.data.batch import collate, collate_prompts
from uniaudio.data.tokens import ChatFormat
from uniaudio.errors import RowError, UserError
from uniaudio.types import Example

LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A sentencepiece model trained here."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    lines = ["What is the sound?", "a dog barks", "the cat", "Name it, please.", "user model INST"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>"],
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def sentencepiece_tokenizer(pieces, kind):
    vocabulary = str(pieces / "tokenizer.model")
    if kind == "llama":
        return LlamaTokenizer.from_pretrained(str(pieces), vocab_file=vocabulary, chat_template=LLAMA2)
    return LlamaTokenizer.from_pretrained(
        str(pieces),
        vocab_file=vocabulary,
        chat_template=GEMMA,
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )


@pytest.fixture(params=["qwen", "llama", "gemma"])
def tokenizer(request, chat_tokenizer, pieces):
    return chat_tokenizer if request.param == "qwen" else sentencepiece_tokenizer(pieces, request.param)


END = {"qwen": "<|im_end|>", "llama": "</s>", "gemma": "<end_of_turn>"}


def example(answer="a dog barks"):
    clips = (np.zeros(3200, np.int16), np.ones(1600, np.int16))
    return Example("a/b/0", "task", "a", clips, ("First ", " and second ", ": same?"), answer)


def test_ids_are_those_of_the_stock_template(tokenizer):
    format = ChatFormat(tokenizer)
    ids = [*format.prompt(["the cat"])[0], *format.answer("a dog barks")]
    stock = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a dog barks"}],
        tokenize=False,
    )
    assert format.decode(ids).replace(" ", "") == stock.strip().replace(" ", "")


def test_train_prompt_equals_inference_prompt_and_end_of_turn_is_labelled(tokenizer, request):
    format = ChatFormat(tokenizer)
    trained = collate([example()], format, lambda n: n // 800, ("task",))
    asked = collate_prompts([example()], format, lambda n: n // 800, ("task",))
    length = len(asked.tokens.values)
    assert torch.equal(trained.tokens.values[:length], asked.tokens.values)
    assert torch.equal(trained.audio_positions, asked.audio_positions)
    assert trained.audio_positions.tolist() == [
        *range(trained.audio_positions[0], trained.audio_positions[0] + 4),
        *range(trained.audio_positions[4], trained.audio_positions[4] + 2),
    ]
    assert asked.answer_tokens == 0
    assert trained.labels[-1] == format.end_of_turn
    assert format.decode([format.end_of_turn]) == END[request.node.callspec.params["tokenizer"]]
    assert torch.equal(trained.labels, trained.tokens.values[length:])
    assert torch.equal(trained.tokens.values[trained.label_positions + 1], trained.labels)
    assert 0 < trained.answer_tokens < len(trained.tokens.values)
    assert format.answer_text(trained.labels.tolist()) == "a dog barks"


def test_pad_is_never_end_of_turn(chat_tokenizer):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=chat_tokenizer.backend_tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    format = ChatFormat(tokenizer)
    assert format.end_of_turn == tokenizer.eos_token_id
    assert format.pad != format.end_of_turn


def test_without_a_chat_template_there_is_plain_markup(chat_tokenizer):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=chat_tokenizer.backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|im_end|>"
    )
    format = ChatFormat(tokenizer)
    text = format.decode([*format.prompt(["Which tone?"])[0], *format.answer("low")])
    assert text == "Which tone?\nlow<|endoftext|>"


def test_no_way_to_end_an_answer_is_refused(chat_tokenizer):
    with pytest.raises(UserError, match="neither a chat template nor an end-of-text token"):
        ChatFormat(PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer.backend_tokenizer))


def test_data_never_become_markup(tokenizer):
    format = ChatFormat(tokenizer)
    end = format.decode([format.end_of_turn])
    with pytest.raises(RowError, match="special token in text"):
        format.answer(f"a dog {end} barks")
    with pytest.raises(RowError, match="special token in text"):
        format.prompt([f"a dog {end}", ""])
