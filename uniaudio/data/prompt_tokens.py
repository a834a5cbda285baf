"""The one place where prompts and answers become token ids."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from uniaudio.config.limits import MAX_TEXT_TOKENS
from uniaudio.config.nearest import suggest_name
from uniaudio.data.chat_markup import TRANSCRIPT, ChatMarkup, read_chat_markup, read_history_markup
from uniaudio.data.jinja import TURN_TOKENS, Wording
from uniaudio.errors import RowError, UserError, convert_to_row_error

REMEMBERED = 500_000  # ids that are kept, with their texts; some tens of megabytes
MOST_CHARACTERS = 16  # of a token; a text with more of them for each token allowed is not even tokenized
LONE = re.compile(r"[\ud800-\udfff]")  # half a character, as for bytes that are not UTF-8
SHOWN = 60  # characters of a text in messages


class TextIds(Protocol):
    """Makes the ids of prompts and answers: a ``ChatFormat`` wherever there is a tokenizer."""

    def encode_prompt(self, pieces: Sequence[str]) -> list[list[int]]: ...
    def answer(self, text: str) -> list[int]: ...


class ChatFormat:
    """Chat markup of the decoder's own tokenizer around a question with clips and its answer.

    Training, generation and preview all take their prompt ids from ``prompt``, so they cannot differ. Ids are made
    piece by piece; nothing is searched for in a rendered text. A tokenizer without a chat template gets
    ``{bos}{question}\\n{answer}{eos}``.

    Args:
        start: special token that stands in the place of ``bos`` where there is no chat template.
        max_text_tokens: most tokens of a question and its answer, markup included, clips not.
        max_positions: most tokens of an example with its clips, where the decoder has a limit.
        markup: of the run that is gone on with or asked; None: that of the tokenizer, of today.
        vocabulary: V, the number of tokens that the decoder has embeddings for, where it is known.

    Attributes:
        end_of_turn: the id that ends every answer. pad: an id that is not ``end_of_turn``.
        special_texts: texts that the tokenizer turns into markup; no text of data may hold one.

    Raises:
        UserError: when the chat template raises or does not keep the turns, nothing can end an answer, or texts get
            ids that the decoder has no embeddings for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        start: str | None = None,
        max_text_tokens: int = MAX_TEXT_TOKENS,
        max_positions: int | None = None,
        markup: ChatMarkup | None = None,
        vocabulary: int | None = None,
    ) -> None:
        self.tokenizer, self.max_text_tokens, self.max_positions = tokenizer, max_text_tokens, max_positions
        self.markup = markup or read_chat_markup(tokenizer, start)
        self.prefix, self.suffix = self.markup.prefix, self.markup.suffix
        self.end_of_turn = self.markup.end_of_turn
        stated = tokenizer.pad_token_id
        if stated is None or stated == self.end_of_turn or (vocabulary is not None and stated >= vocabulary):
            stated = int(self.end_of_turn == 0)
        self.pad = stated  # an id only for the empty places of generated rows; masks never come from it
        self.known: dict[str, list[int]] = {}
        self.num_known = 0  # ids in ``known``
        self.special_texts = list_markup_texts(tokenizer, self.prefix + self.suffix)
        self.first_signs = frozenset(text[0] for text in self.special_texts)
        # a tokenizer may write ``unk`` for any rare sign, so this id says nothing about markup
        ids = tokenizer.convert_tokens_to_ids(self.special_texts)
        self.markup_ids = frozenset(ids) - {tokenizer.unk_token_id}
        self.num_markup = sum(
            id in self.markup_ids for text in (self.prefix, self.suffix) for id in self.encode(text)
        )
        if vocabulary is not None:
            self.check_vocabulary(vocabulary)

    def encode_prompt(self, pieces: Sequence[str]) -> list[list[int]]:
        """Return the ids around the clips: clip ``i`` stands between list ``i`` and list ``i + 1``.

        Raises:
            RowError: when a piece cannot be used, see ``check_data_text``, or becomes markup.
        """
        tokens = [self.find_task_tokens(piece) for piece in pieces]
        turns = [() if task else self.find_turns(piece) for task, piece in zip(tokens, pieces, strict=True)]
        texts = [
            self.join_turns(piece, marks) if marks else self.check_prompt_text(piece, task)
            for piece, task, marks in zip(pieces, tokens, turns, strict=True)
        ]
        texts[0] = self.prefix + texts[0]
        if not texts[-1].endswith(tokens[-1] or ("\0",)):  # an answer follows such a token at once
            texts[-1] = texts[-1] + self.suffix
        ids = [self.encode_once(text) for text in texts]
        allowed = self.num_markup + sum(map(len, tokens)) + sum(map(self.count_turn_markup, turns))
        self.refuse_markup((id for piece in ids for id in piece), allowed, " ".join(pieces))
        return ids

    def find_task_tokens(self, piece: str) -> tuple[str, ...]:
        """Return the task tokens that a template wrote into a piece of a prompt, if the decoder is Whisper's own."""
        is_whisper = self.prefix == TRANSCRIPT
        return piece.tokens if is_whisper and isinstance(piece, Wording) else ()

    def find_turns(self, piece: str) -> tuple[str, ...]:
        """Return the marks of turns that a template wrote into a piece of a prompt, in order."""
        return tuple(t for t in piece.tokens if t in TURN_TOKENS) if isinstance(piece, Wording) else ()

    @cached_property
    def turn_markup(self) -> dict[str, str]:
        """What the chat has in the place of the marks of turns."""
        return dict(zip(TURN_TOKENS, read_history_markup(self.tokenizer), strict=True))

    def count_turn_markup(self, turns: Sequence[str]) -> int:
        """Return the ids of markup in what stands for the marks of turns."""
        return sum(id in self.markup_ids for turn in turns for id in self.encode_once(self.turn_markup[turn]))

    def join_turns(self, piece: str, turns: Sequence[str]) -> str:
        """Return a piece of a prompt with the chat's markup in place of the marks of turns.

        Raises:
            RowError: as ``check_data_text``, and when the data of the row hold such a mark.
        """
        texts = re.split("|".join(map(re.escape, TURN_TOKENS)), str(piece))
        if len(texts) != len(turns) + 1:
            raise RowError("special token in text", f"the marker of a turn in {str(piece)[:SHOWN]!r}")
        joined = self.check_data_text(texts[0])
        for turn, text in zip(turns, texts[1:], strict=True):
            joined += self.turn_markup[turn] + self.check_data_text(text)
        return joined

    def check_prompt_text(self, piece: str, tokens: Sequence[str]) -> str:
        """Return a piece of a prompt when it holds the task tokens that its template wrote, and no other markup.

        Raises:
            RowError: as ``check_data_text``, and for a token that the decoder does not have.
        """
        rest = str(piece)
        for token in tokens:
            if token not in self.special_texts:
                raise RowError(
                    "special token in text",
                    f"the decoder has no token {token}{suggest_name(token, self.special_texts)}",
                )
            rest = rest.replace(token, " ", 1)
        self.check_data_text(rest)
        return str(piece)

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer with the end-of-turn id: exactly what is supervised.

        Raises:
            RowError: when the answer is empty, cannot be used, see ``check_data_text``, or becomes markup.
        """
        ids = self.encode_once(self.check_data_text(text))
        if not ids:
            raise RowError("empty answer", repr(text[:SHOWN]))
        self.refuse_markup(ids, 0, text)
        return [*ids, self.end_of_turn]

    def check_question(self, prompt: Sequence[str], answer: str, audio_tokens: int = 0) -> None:
        """Refuse a question that has more tokens than allowed, or a text that cannot be used.

        Args:
            prompt: its text around the clips. audio_tokens: of all its clips.

        Raises:
            RowError: "text too long", "special token in text", "broken text", "empty answer".
        """
        text_tokens = len(self.answer(answer)) + sum(map(len, self.encode_prompt(prompt)))
        longest = max((*prompt, answer), key=len)[:SHOWN]
        if text_tokens > self.max_text_tokens:
            raise RowError(
                "text too long",
                f"{text_tokens} tokens, data.max_text_tokens is {self.max_text_tokens}: {longest!r}",
            )
        if self.max_positions is not None and text_tokens + audio_tokens > self.max_positions:
            raise RowError(
                "text too long",
                f"{text_tokens} tokens of text and {audio_tokens} of audio, but the decoder has "
                f"{self.max_positions} positions: {longest!r}",
            )

    def check_texts(self, prompt: Sequence[str], answer: str) -> None:
        """Refuse what ``check_question`` refuses for its texts alone; ids are only made of texts that may be too long.

        A token stands for at least one byte.

        Raises:
            RowError: as ``check_question``.
        """
        limit = min(self.max_text_tokens, self.max_positions or self.max_text_tokens)
        texts = (self.prefix, *prompt, self.suffix, answer)
        if sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) >= limit:
            self.check_question(prompt, answer)
            return
        for piece in prompt:
            if turns := self.find_turns(piece):
                self.join_turns(piece, turns)
            else:
                self.check_prompt_text(piece, self.find_task_tokens(piece))
        self.check_data_text(answer)

    def check_vocabulary(self, vocabulary: int) -> None:
        """Refuse a tokenizer that gives some text an id without an embedding.

        Tables are often longer than the vocabulary, and a vocabulary may have entries that no text leads to, or special
        tokens that no text of data may hold; neither does harm.

        Args:
            vocabulary: V, rows of the decoder's table.

        Raises:
            UserError: naming the token.
        """
        beyond = sorted((id, token) for token, id in self.tokenizer.get_vocab().items() if id >= vocabulary)
        used = {self.end_of_turn, *self.encode(self.prefix), *self.encode(self.suffix)}
        for id, token in beyond:
            text = self.tokenizer.convert_tokens_to_string([token])
            reached = text not in self.special_texts and id in self.encode(text)
            if reached or id in used:
                raise UserError(
                    f"decoder.path: the tokenizer gives {text!r} the id {id}, but the decoder has "
                    f"embeddings for {vocabulary} tokens; use the decoder's own tokenizer, or "
                    "enlarge its embedding table (resize_token_embeddings) and save both"
                )

    def refuse_markup(self, ids: Iterable[int], allowed: int, text: str) -> None:
        """Refuse a text of which more ids than ``allowed`` are markup, however it is written."""
        if sum(id in self.markup_ids for id in ids) > allowed:
            raise RowError("special token in text", f"part of {text[:SHOWN]!r} becomes chat markup")

    def encode_once(self, text: str) -> list[int]:
        """Return the ids of a text; wordings and labels come again and again, so they are kept."""
        ids = self.known.get(text)
        if ids is None:
            with convert_to_row_error("broken text", repr(text[:SHOWN])):
                ids = self.encode(text)
            if self.num_known > REMEMBERED:
                self.known.clear()
                self.num_known = 0
            self.known[text] = ids
            self.num_known += len(ids) + 1
        return ids

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, markup included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def encode_in_text(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of the text of an answer as it is written within a sentence, behind a blank.

        At the beginning of a text a word is often cut into pieces that mean little by themselves: `tr`, `omb`, `one`.
        """
        return self.encode(f" {self.decode(ids).strip()}") or list(ids)

    def answer_text(self, ids: Sequence[int]) -> str:
        """Return the text of a generated answer up to its end of turn."""
        ids = list(ids)
        if self.end_of_turn in ids:
            ids = ids[: ids.index(self.end_of_turn)]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def check_data_text(self, text: str) -> str:
        """Return a text of data as it is, when it can be tokenized in good time and holds no markup of the chat.

        Raises:
            RowError: "text too long", "special token in text", "broken text" (lone surrogates).
        """
        check_text(text, self.max_text_tokens)
        # tokenizers hold thousands of special tokens; most texts stop here
        if self.first_signs.isdisjoint(text):
            return text
        for special in self.special_texts:
            if special in text:
                raise RowError("special token in text", f"{special!r} in {text[:SHOWN]!r}")
        return text


def check_text(text: str, max_text_tokens: int = MAX_TEXT_TOKENS) -> None:
    """Refuse a text that no tokenizer takes, or not in good time.

    Raises:
        RowError: "text too long", "broken text" (lone surrogates).
    """
    if len(text) > max_text_tokens * MOST_CHARACTERS:
        raise RowError(
            "text too long",
            f"{len(text):,} characters, data.max_text_tokens is {max_text_tokens}: {text[:SHOWN]!r}",
        )
    if not text.isascii() and LONE.search(text):
        raise RowError("broken text", f"{text[:SHOWN]!r} is not valid Unicode; save its file as UTF-8")


def list_markup_texts(tokenizer: PreTrainedTokenizerBase, chat: str) -> list[str]:
    """Return the texts that a tokenizer takes as markup, sorted.

    Not all of them are marked as special in tokenizers: also taken are added tokens that the markup of the chat
    consists of, and those between signs such as ``<think>``. Others, such as runs of blanks and words that somebody
    added, are plain text.

    Args:
        chat: the markup around a question.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special}
    written = {
        token.content
        for token in added
        if is_bracketed(token.content) or (token.content in chat and any(map(is_sign, token.content)))
    }
    return sorted({*special, *written, *tokenizer.all_special_tokens} - {""})


def is_bracketed(text: str) -> bool:
    """Return whether a text begins and ends with a sign and holds letters or digits, such as ``[INST]``."""
    return is_sign(text[:1]) and is_sign(text[-1:]) and any(map(str.isalnum, text))


def is_sign(character: str) -> bool:
    """Return whether a character is a punctuation mark, a symbol, or of private use."""
    return bool(character) and unicodedata.category(character)[0] in "PSC" and not character.isspace()


def prefix_of(pieces: Sequence[list[int]]) -> tuple[tuple[int, ...], ...]:
    """Return the ids of a prompt up to its last clip: questions about the same clips can share what is equal there."""
    return tuple(tuple(piece) for piece in pieces[:-1])
