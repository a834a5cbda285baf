"""A chat template that takes clips among the contents of a turn and writes the prompts that a run was trained with.

And the tokenizer that carries it, in a form that transformers 4 and 5 read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import GenerationConfig, PreTrainedTokenizerBase

from uniaudio.data.chat_markup import ChatMarkup, read_history_markup
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError

OF_LOADING = ("is_local", "local_files_only")  # where a tokenizer was loaded from is kept among its settings
QUESTION = "\ue001"  # a private-use character that stands for a question
# Contents of a turn become one text, with the placeholder of a clip in its place; the template after it reads texts.
JOIN_CONTENTS = """\
{%- set turns = namespace(all=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string or message['content'] is none -%}
{%- set turns.all = turns.all + [message] -%}
{%- else -%}
{%- set turn = namespace(text='') -%}
{%- for content in message['content'] -%}
{%- if content['type'] == 'audio' or content['type'] == 'audio_url' or content['type'] == 'input_audio' -%}
{%- set turn.text = turn.text + PLACEHOLDER -%}
{%- elif content['type'] == 'text' -%}
{%- set turn.text = turn.text + content['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- set turns.all = turns.all + [{'role': message['role'], 'content': turn.text}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = turns.all -%}
"""
NO_THOUGHTS = """\
{%- set enable_thinking = enable_thinking | default(false) -%}
{%- set thinking = thinking | default(false) -%}
"""
# the first question has the whole beginning before it, later ones only what stands between two turns
PLAIN_TURNS = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' and loop.last -%}
{{ SUFFIX }}{{ message['content'] }}{{ END }}
{%- elif message['role'] == 'assistant' -%}
{{ OPENING }}{{ message['content'] }}{{ NEXT }}
{%- else -%}
{%- if loop.first -%}{{ PREFIX }}{%- endif -%}{{ message['content'] }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ SUFFIX }}{%- endif -%}
"""


def make_chat_template(tokenizer: PreTrainedTokenizerBase, markup: ChatMarkup, placeholder: str) -> str:
    """Return a template that writes a question of one turn exactly as the run was trained on it.

    The decoder's own template is kept, with its system prompts, tools and later turns, where it still writes that; one
    that writes today's date, for example, does not, and gives way to the fixed text of the run.

    Args:
        tokenizer: of the decoder. placeholder: the text of a clip in a prompt.
    """
    head = JOIN_CONTENTS.replace("PLACEHOLDER", quote(placeholder)) + NO_THOUGHTS
    stock = tokenizer.chat_template
    if isinstance(stock, str) and stock.startswith(JOIN_CONTENTS.partition("PLACEHOLDER")[0]):
        # written here before: of an exported model that is exported again
        stock = stock.partition(NO_THOUGHTS)[2]
    if isinstance(stock, str) and render(tokenizer, head + stock) == markup.prefix + QUESTION + markup.suffix:
        return head + stock
    return head + write_plain_turns(tokenizer, markup)


def write_plain_turns(tokenizer: PreTrainedTokenizerBase, markup: ChatMarkup) -> str:
    """Return a template with the fixed text of a run around questions and answers, as conversations are trained."""
    end = tokenizer.decode([markup.end_of_turn], skip_special_tokens=False)
    try:
        opening, following = read_history_markup(tokenizer)
    except UserError:  # the decoder's own template has no place for a second question
        opening, following = markup.suffix, end + markup.prefix
    texts = {
        "PREFIX": markup.prefix,
        "SUFFIX": markup.suffix,
        "END": end,
        "OPENING": opening,
        "NEXT": following,
    }
    turns = PLAIN_TURNS
    for name, text in texts.items():
        turns = turns.replace(f"{{{{ {name} }}}}", f"{{{{ {quote(text)} }}}}")
    return turns


def quote(text: str) -> str:
    """Return a text as a literal of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def render(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return what a template makes of one question."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    text = tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text


def prepare_tokenizer(
    format: ChatFormat, placeholder: str, tokens: Sequence[str]
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Return a run's tokenizer with the tokens of clips and the template of its prompts, and the ids of those tokens.

    Args:
        placeholder: the text of a clip in a prompt. tokens: of which it is made.
    """
    tokenizer = copy.deepcopy(format.tokenizer)
    template = make_chat_template(tokenizer, format.markup, placeholder)
    tokenizer.add_tokens(
        [AddedToken(text, special=True, normalized=False) for text in tokens], special_tokens=True
    )
    tokenizer.chat_template = template
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(format.pad)
    return tokenizer, [int(id) for id in tokenizer.convert_tokens_to_ids(list(tokens))]


def write_prompt_files(format: ChatFormat, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer of ``prepare_tokenizer``, and that a generated answer ends with the end of its turn."""
    write_tokenizer(tokenizer, folder)
    GenerationConfig(
        eos_token_id=format.end_of_turn, pad_token_id=tokenizer.pad_token_id, do_sample=False
    ).save_pretrained(folder)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer, its class and special tokens under the names that transformers 4 knows as well."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["padding_side"] = "left"  # prompts of a batch end together, where their answers begin
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    # transformers 4 would add token_type_ids
    values.setdefault("model_input_names", ["input_ids", "attention_mask"])
    for name in OF_LOADING:
        values.pop(name, None)
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
