"""Chat markup, with a byte-level tokenizer as Qwen has it and sentencepiece ones as Llama-2 and Gemma have it."""

import copy
import io

import numpy as np
import pytest
import sentencepiece
import torch
from tokenizers import AddedToken, normalizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from uniaudio.data.collate import collate, collate_prompts
from uniaudio.data.jinja import Wording
from uniaudio.data.prompt_tokens import ChatFormat
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
    ids = [*format.encode_prompt(["the cat"])[0], *format.answer("a dog barks")]
    stock = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a dog barks"}],
        tokenize=False,
    )
    assert format.decode(ids).replace(" ", "") == stock.strip().replace(" ", "")


def test_train_prompt_equals_inference_prompt_and_end_of_turn_is_labelled(tokenizer, request):
    format = ChatFormat(tokenizer)
    trained = collate([example()], format, lambda n: n // 800, ("task",))
    requests = collate_prompts([example()], format, lambda n: n // 800, ("task",))
    length = len(requests.tokens.values)
    assert torch.equal(trained.tokens.values[:length], requests.tokens.values)
    assert torch.equal(trained.audio_positions, requests.audio_positions)
    assert trained.audio_positions.tolist() == [
        *range(trained.audio_positions[0], trained.audio_positions[0] + 4),
        *range(trained.audio_positions[4], trained.audio_positions[4] + 2),
    ]
    assert requests.answer_tokens == 0
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
    text = format.decode([*format.encode_prompt(["Which tone?"])[0], *format.answer("low")])
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
        format.encode_prompt([f"a dog {end}", ""])


def with_added(tokenizer, *tokens, **options):
    """A copy of a tokenizer with more added tokens, none of them marked as special."""
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens([AddedToken(token, special=False, **options) for token in tokens])
    return changed


def reason_of(action):
    with pytest.raises(RowError) as caught:
        action()
    return caught.value.reason


@pytest.mark.parametrize("text", ["so <think>", "[TOOL]", "@@END@@", "a \ue00aTURN\ue00a b"])
def test_added_tokens_between_signs_are_markup_though_not_marked_as_special(chat_tokenizer, text):
    tokenizer = with_added(
        chat_tokenizer,
        "<think>",
        "[TOOL]",
        "@@END@@",
        "\ue00aTURN\ue00a",
        "covid",
        "  ",
        "\n\n",
        "don't",
        "C++",
    )
    format = ChatFormat(tokenizer)
    assert reason_of(lambda: format.answer(text)) == "special token in text"
    assert reason_of(lambda: format.encode_prompt(["ok", text])) == "special token in text"
    assert format.answer("covid  in\n\nC++, don't")


def test_added_tokens_of_the_chat_markup_itself_are_markup(chat_tokenizer):
    tokenizer = with_added(chat_tokenizer, "USER:")
    tokenizer.chat_template = (
        "USER: {{ messages[0]['content'] }}"
        "{% for m in messages[1:] %} -> {{ m['content'] }}<|im_end|>{% endfor %}"
    )
    assert reason_of(lambda: ChatFormat(tokenizer).answer("USER: no")) == "special token in text"
    assert ChatFormat(with_added(chat_tokenizer, "USER:")).answer("USER: no")


def test_text_that_becomes_markup_only_when_normalized_is_refused_too(chat_tokenizer):
    tokenizer = with_added(chat_tokenizer, "<think>", normalized=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    format = ChatFormat(tokenizer)
    assert "<THINK>" not in format.special_texts
    assert reason_of(lambda: format.answer("a <THINK> b")) == "special token in text"
    assert reason_of(lambda: format.encode_prompt(["a ", " <THINK> b"])) == "special token in text"
    assert format.encode_prompt(["a ", " b"])  # its own markup may stand there


def test_lone_surrogates_are_a_broken_text(tokenizer):
    assert reason_of(lambda: ChatFormat(tokenizer).answer("a \ud800 b")) == "broken text"


def test_a_question_has_a_limit_of_tokens(tokenizer):
    whole = ChatFormat(tokenizer)
    tokens = sum(map(len, whole.encode_prompt(["the cat", "?"]))) + len(whole.answer("a dog barks"))
    ChatFormat(tokenizer, None, tokens, tokens + 7).check_question(["the cat", "?"], "a dog barks", 7)
    short = ChatFormat(tokenizer, None, tokens - 1)
    assert reason_of(lambda: short.check_question(["the cat", "?"], "a dog barks")) == "text too long"
    few = ChatFormat(tokenizer, None, tokens, tokens + 6)
    assert reason_of(lambda: few.check_question(["the cat", "?"], "a dog barks", 7)) == "text too long"


def test_a_text_far_above_the_limit_is_not_tokenized(chat_tokenizer, monkeypatch):
    format = ChatFormat(chat_tokenizer, None, 1000)
    monkeypatch.setattr(format, "encode", lambda text: pytest.fail("tokenized"))
    assert reason_of(lambda: format.check_question(["x"], "no end " * 1_500_000)) == "text too long"


def test_only_so_many_ids_are_remembered(chat_tokenizer, monkeypatch):
    monkeypatch.setattr("uniaudio.data.prompt_tokens.REMEMBERED", 50)
    format = ChatFormat(chat_tokenizer)
    answers = [format.answer(f"tone {i}") for i in range(100)]
    assert len(format.known) < 50
    assert answers == [format.answer(f"tone {i}") for i in range(100)]


TASK = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")


@pytest.fixture
def whisper_format(chat_tokenizer):
    changed = copy.deepcopy(chat_tokenizer)
    changed.chat_template = None
    changed.add_special_tokens({"additional_special_tokens": list(TASK)})
    return ChatFormat(changed, TASK[0])


def test_templates_may_write_whispers_task_tokens(whisper_format, chat_tokenizer):
    token = whisper_format.tokenizer.convert_tokens_to_ids
    before, after = whisper_format.encode_prompt(["", Wording("".join(TASK[1:]), TASK[1:])])
    assert [*before, *after] == token(list(TASK))  # as Whisper was trained: the answer follows at once
    (requested,) = whisper_format.encode_prompt([Wording("<|en|>Which word?", ("<|en|>",))])
    assert requested == [*token(list(TASK[:2])), *whisper_format.encode("Which word?\n")]
    plain = ChatFormat(chat_tokenizer)
    special = plain.special_texts[0]
    with pytest.raises(RowError, match="special token in text"):  # no other decoder's
        plain.encode_prompt([Wording(special, (special,))])


def test_rows_never_write_task_tokens(whisper_format):
    for piece in (
        "<|en|>",
        Wording("<|en|> a <|en|>", ("<|en|>",)),
        Wording("<|en|> a <|transcribe|>", ("<|en|>",)),
        Wording("<|e<|en|>n|>", ("<|transcribe|>",)),
    ):
        with pytest.raises(RowError, match="special token in text"):
            whisper_format.encode_prompt([piece])
    with pytest.raises(RowError, match=r"has no token <.transcrib.> .did you mean '<.transcribe.>'"):
        whisper_format.encode_prompt([Wording("<|transcrib|>", ("<|transcrib|>",))])
    with pytest.raises(RowError, match="special token in text"):
        whisper_format.answer("<|en|>")
