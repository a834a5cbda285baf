"""A chat template that takes clips among the contents of a turn and writes the prompts that a run was trained with.

And the tokenizer that carries it, in a form that transformers 4 and 5 read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from uniaudio.data.chat_markup import ChatMarkup

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
{%- if message['role'] == 'assistant' -%}
{{ SUFFIX }}{{ message['content'] }}{{ END }}
{%- else -%}
{{ PREFIX }}{{ message['content'] }}
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
    fixed = PLAIN_TURNS
    end = tokenizer.decode([markup.end_of_turn], skip_special_tokens=False)
    for name, text in (("PREFIX", markup.prefix), ("SUFFIX", markup.suffix), ("END", end)):
        fixed = fixed.replace(f"{{{{ {name} }}}}", f"{{{{ {quote(text)} }}}}")
    stock = tokenizer.chat_template
    if isinstance(stock, str) and stock.startswith(JOIN_CONTENTS.partition("PLACEHOLDER")[0]):
        # written here before: of an exported model that is exported again
        stock = stock.partition(NO_THOUGHTS)[2]
    if isinstance(stock, str) and render(tokenizer, head + stock) == markup.prefix + QUESTION + markup.suffix:
        return head + stock
    return head + fixed


def quote(text: str) -> str:
    """Return a text as a literal of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def render(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return what a template makes of one question."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    text = tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text


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
