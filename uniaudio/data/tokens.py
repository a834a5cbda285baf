"""The one place where prompts and answers become token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from uniaudio.errors import RowError, UserError

REMEMBERED = 20_000  # texts whose ids are kept; a few megabytes
USER, ANSWER = "\ue001", "\ue002"  # private-use characters that stand for the two turns in the chat template


class TextIds(Protocol):
    """Makes the ids of prompts and answers: a ``ChatFormat`` wherever there is a tokenizer."""

    def prompt(self, pieces: Sequence[str]) -> list[list[int]]: ...
    def answer(self, text: str) -> list[int]: ...


class ChatFormat:
    """Chat markup of the decoder's own tokenizer around a question with clips and its answer.

    Training, generation and preview all take their prompt ids from ``prompt``, so they cannot differ. Ids are made
    piece by piece; nothing is searched for in a rendered text. A tokenizer without a chat template gets
    ``{bos}{question}\\n{answer}{eos}``.

    Args:
        start: special token that stands in the place of ``bos`` where there is no chat template.

    Attributes:
        end_of_turn: the id that ends every answer. pad: an id that is not ``end_of_turn``.

    Raises:
        UserError: when the chat template does not keep the turns, or nothing can end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: str | None = None) -> None:
        self.tokenizer = tokenizer
        if tokenizer.chat_template:
            self.prefix, self.suffix, self.end_of_turn = read_chat_template(tokenizer)
        elif tokenizer.eos_token_id is not None:
            self.prefix, self.suffix, self.end_of_turn = (
                start or tokenizer.bos_token or "",
                "\n",
                tokenizer.eos_token_id,
            )
        else:
            raise UserError("the decoder's tokenizer has neither a chat template nor an end-of-text token")
        stated = tokenizer.pad_token_id
        # an id only for the empty places of generated rows; masks never come from it
        self.pad = stated if stated not in (None, self.end_of_turn) else int(self.end_of_turn == 0)
        self.known: dict[str, list[int]] = {}
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.special_texts = sorted({*added, *tokenizer.all_special_tokens})

    def prompt(self, pieces: Sequence[str]) -> list[list[int]]:
        """Return the ids around the clips: clip ``i`` stands between list ``i`` and list ``i + 1``.

        Raises:
            RowError: when a piece holds the text of a special token.
        """
        texts = [self.checked(piece) for piece in pieces]
        texts[0] = self.prefix + texts[0]
        texts[-1] = texts[-1] + self.suffix
        return [self.remembered(text) for text in texts]

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer with the end-of-turn id: exactly what is supervised.

        Raises:
            RowError: when the answer is empty or holds the text of a special token.
        """
        ids = self.remembered(self.checked(text))
        if not ids:
            raise RowError("empty answer", repr(text))
        return [*ids, self.end_of_turn]

    def remembered(self, text: str) -> list[int]:
        """Return the ids of a text; wordings and labels come again and again, so the first ones are kept."""
        ids = self.known.get(text)
        if ids is None:
            ids = self.encode(text)
            if len(self.known) < REMEMBERED:
                self.known[text] = ids
        return ids

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, markup included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def answer_text(self, ids: Sequence[int]) -> str:
        """Return the text of a generated answer up to its end of turn."""
        ids = list(ids)
        if self.end_of_turn in ids:
            ids = ids[: ids.index(self.end_of_turn)]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def checked(self, text: str) -> str:
        """Refuse text that would become markup of the chat."""
        for special in self.special_texts:
            if special in text:
                raise RowError("special token in text", f"{special!r} in {text[:60]!r}")
        return text


def prefix_of(pieces: Sequence[list[int]]) -> tuple[tuple[int, ...], ...]:
    """Return the ids of a prompt up to its last clip: questions about the same clips can share what is equal there."""
    return tuple(tuple(piece) for piece in pieces[:-1])


def read_chat_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, int]:
    """Return what stands before the question, what stands between question and answer, and what ends the answer."""
    question = {"role": "user", "content": USER}
    options = {"tokenize": False, "enable_thinking": False}  # templates that do not think ignore the second
    opened = tokenizer.apply_chat_template([question], add_generation_prompt=True, **options)
    whole = tokenizer.apply_chat_template([question, {"role": "assistant", "content": ANSWER}], **options)
    if opened.count(USER) != 1 or whole.count(ANSWER) != 1:
        raise UserError(
            "the decoder's chat template does not keep the text of the turns; use another decoder"
        )
    prefix, suffix = opened.split(USER)
    closing = tokenizer(whole.split(ANSWER)[1], add_special_tokens=False)["input_ids"]
    special = {
        *tokenizer.all_special_ids,
        *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special),
    }
    ends = [i for i in closing if i in special]
    if ends:
        return prefix, suffix, ends[0]
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the decoder's chat template ends an answer with no special token, and there is no eos"
        )
    return prefix, suffix, tokenizer.eos_token_id
