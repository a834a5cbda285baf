"""The text that a decoder's chat template puts around a question: read once, when a run begins, and kept with it.

Templates may write today's date, so the same template read tomorrow is another prompt than the one that was trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Self

from jinja2 import Template
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from uniaudio.config.limits import LONGEST_SOURCE
from uniaudio.data.jinja_budget import BUDGET
from uniaudio.data.jinja_sandbox import LimitedEnvironment
from uniaudio.errors import UserError, convert_to_user_error

TRANSCRIPT = "<|startoftranscript|>"  # before every prompt of Whisper's own decoder, as in its training
# private-use characters that stand for the turns in the chat template
USER, ANSWER, NEXT = "\ue001", "\ue002", "\ue005"
NO_THOUGHT = {"enable_thinking": False, "thinking": False}  # switches of templates; others ignore them
PREFIX_KEY, SUFFIX_KEY, END_KEY = "prompt_prefix", "prompt_suffix", "end_of_turn"  # in ``bases.json``
LONGEST_TURNS = 20_000  # characters of a conversation that holds nothing yet; tags are looked for in them
MOST_FOR_A_SIGN = 256  # characters that Python lets strftime write for one of a format
# a tag that opens something: <think>, [THINK], <|begin_of_thought|>, <seed:think>
OPENING = re.compile(r"(?P<left>[<\[◁]\|?)(?P<name>[A-Za-z][\w:]*)(?P<right>\|?[>\]▷])")
THOUGHT = re.compile(r"think|thought|reason|reflect|scratchpad", re.IGNORECASE)
OTHER_THAN_OPENING = re.compile(r"(^|_)(end|no)|effort", re.IGNORECASE)  # <|end_of_thought|>, <|no_think|>
ANSWER_TAG = re.compile(r"assistant|model|bot|answer|response|output|final", re.IGNORECASE)
SWAPS = (("begin", "end"), ("BEGIN", "END"), ("start", "end"), ("START", "END"))


@dataclass(frozen=True)
class ChatMarkup:
    """What stands around every question.

    Args:
        prefix: text before the question. suffix: text from its end to the first token of the answer.
        end_of_turn: id that ends every answer.
    """

    prefix: str
    suffix: str
    end_of_turn: int

    def to_base(self) -> dict[str, str]:
        """Return what is kept in a checkpoint beside the identity of the decoder's weights."""
        return {PREFIX_KEY: self.prefix, SUFFIX_KEY: self.suffix, END_KEY: str(self.end_of_turn)}

    @classmethod
    def from_base(cls, base: Mapping[str, str]) -> Self | None:
        """Read what ``to_base`` wrote; None where a checkpoint holds no prompts."""
        if PREFIX_KEY not in base:
            return None
        return cls(base[PREFIX_KEY], base[SUFFIX_KEY], int(base[END_KEY]))


def read_chat_markup(tokenizer: PreTrainedTokenizerBase, start: str | None = None) -> ChatMarkup:
    """Return the markup of a tokenizer's chat template, of today where the template writes the date.

    A tokenizer without a template gets ``{bos}{question}\\n{answer}{eos}``.

    Args:
        start: special token that stands in the place of ``bos`` where there is no chat template.

    Raises:
        UserError: when the template raises or does not keep the turns, or nothing can end an answer.
    """
    if tokenizer.chat_template:
        return read_chat_template(tokenizer)
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the decoder's tokenizer has neither a chat template nor an end-of-text token; name one as "
            "eos_token in its tokenizer_config.json"
        )
    return ChatMarkup(start or tokenizer.bos_token or "", "\n", tokenizer.eos_token_id)


def read_chat_template(tokenizer: PreTrainedTokenizerBase) -> ChatMarkup:
    """Return what a template puts before the question, between question and answer, and at the end of the answer.

    Raises:
        UserError: as ``read_chat_markup``.
    """
    question = {"role": "user", "content": USER}
    opened = render_turns(tokenizer, [question], add_generation_prompt=True)
    whole = render_turns(tokenizer, [question, {"role": "assistant", "content": ANSWER}])
    if opened.count(USER) != 1 or whole.count(ANSWER) != 1 or whole.count(USER) != 1:
        raise UserError(
            "the decoder's chat template does not keep the text of the turns; use another decoder"
        )
    prefix, suffix = opened.split(USER)
    history, ending = whole.split(ANSWER)
    answered = history.split(USER)[1]  # what the template puts before an answer that is there
    if answered.startswith(suffix) and answered[len(suffix) :].strip():
        suffix = answered  # such as the channel of an answer without a thought
    suffix = close_thought(suffix, ending, read_template_text(tokenizer))
    return ChatMarkup(prefix, suffix, end_of_turn(tokenizer, ending))


def read_history_markup(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what stands before an answer that is not the last one, and what between it and the next question.

    Raises:
        UserError: when the chat template raises or does not keep the turns.
    """
    if not tokenizer.chat_template:
        return "\n", str(tokenizer.eos_token or "\n")
    turns = [("user", USER), ("assistant", ANSWER), ("user", NEXT)]
    text = render_turns(tokenizer, [{"role": role, "content": content} for role, content in turns])
    if any(text.count(content) != 1 for _, content in turns):
        raise UserError(
            "the decoder's chat template does not keep the text of several turns; use another "
            "decoder, or train on conversations with one question"
        )
    opening, rest = text.split(USER)[1].split(ANSWER)
    return opening, rest.split(NEXT)[0]


def render_turns(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], add_generation_prompt: bool = False
) -> str:
    """Return the text of a conversation, with every known switch of thinking off.

    What ``apply_chat_template`` would return, within the limits of our own templates.

    Raises:
        UserError: with what the template raised, or the limit it went over.
    """
    with convert_to_user_error(
        "the decoder's chat template cannot render a user's question and its answer",
        "correct chat_template.jinja in a copy of the decoder's folder, or use another decoder",
    ):
        template = compile_chat_template(tokenizer.get_chat_template())
        BUDGET.begin()
        text = template.render(
            messages=turns,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{**tokenizer.special_tokens_map, **NO_THOUGHT},
        )
        if len(text) > LONGEST_TURNS:
            raise ValueError(f"it renders {len(text):,} characters, but only {LONGEST_TURNS:,} are allowed")
        return text


@lru_cache(maxsize=8)
def compile_chat_template(source: str) -> Template:
    """Compile a chat template with the tags, filters and functions of transformers, its renderings limited.

    Raises:
        ValueError: when it is too long. TemplateError and others: when it cannot be compiled.
    """
    if len(source) > LONGEST_SOURCE:
        raise ValueError(f"it has {len(source):,} characters, but only {LONGEST_SOURCE:,} are allowed")
    stock = _compile_jinja_template("").environment
    limited = LimitedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[type(extension) for extension in stock.extensions.values()],
    )
    limited.globals |= {
        name: value
        for name, value in stock.globals.items()
        if name not in limited.globals and name != "lipsum"
    }
    for name in ("dict", "namespace"):  # those of transformers are stricter than Jinja's
        limited.globals[name] = stock.globals[name]
    limited.globals["strftime_now"] = partial(write_time, stock.globals["strftime_now"])
    limited.filters["tojson"] = stock.filters["tojson"]
    limited.limit_filters()
    BUDGET.begin()  # constant expressions are worked out when they are compiled
    return limited.from_string(source)


def write_time(write: Callable[[str], str], format: str) -> str:
    """Write the time in a format of bounded length: one field of it can be as wide as the C library allows."""
    BUDGET.allow(MOST_FOR_A_SIGN * len(format))
    return write(format)


def read_template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the source of the template and all added tokens: the texts in which the end of a tag is looked for."""
    return f"{tokenizer.chat_template} " + " ".join(
        token.content for token in tokenizer.added_tokens_decoder.values()
    )


def close_thought(suffix: str, ending: str, known: str) -> str:
    """Return a suffix in which a thought that the template opened is closed, empty: answers are learned behind it.

    Args:
        suffix: from the question to the answer. ending: behind an answer; a tag that is closed there encloses the
            answer and is none of a thought. known: the text of the template and of added tokens.
    """
    for tag in OPENING.finditer(suffix):
        closing = find_closing_tag(tag, known)
        if closing is None or closing in ending or closing in suffix[tag.end() :]:
            continue
        if suffix[tag.end() :].startswith("\n"):
            return f"{suffix.rstrip()}\n\n{closing}\n\n"
        return suffix + closing
    return suffix


def find_closing_tag(tag: re.Match[str], known: str) -> str | None:
    """Return the text that closes a tag: one that is known, or ``</think>`` for the name of a thought.

    None where the tag opens nothing.
    """
    left, name, right = tag["left"], tag["name"], tag["right"]
    forms = [f"{left}/{name}{right}", f"{left[0]}/{name}{right[-1]}"]
    if THOUGHT.search(name):
        forms[:0] = [f"{left}{name.replace(old, new)}{right}" for old, new in SWAPS if old in name]
        if OTHER_THAN_OPENING.search(name):
            return None
    elif ANSWER_TAG.search(name):
        return None
    return next((form for form in forms if form in known), forms[0] if THOUGHT.search(name) else None)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, ending: str) -> int:
    """Return the id of the first special token behind an answer, or that of the end of a text.

    Raises:
        UserError: when there is neither.
    """
    special = {
        *tokenizer.all_special_ids,
        *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special),
    }
    for id in tokenizer(ending, add_special_tokens=False)["input_ids"]:
        if id in special:
            return int(id)
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the decoder's chat template does not end an answer with a special token, and the "
            "tokenizer has no eos token; name one as eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)
