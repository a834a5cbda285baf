"""Pieces of prompts that hold special tokens of Whisper, which a template may write and the data of a row may not."""

from __future__ import annotations

import re

TOKEN = re.compile(r"<\|([\w.-]+)\|>")  # a special token of Whisper as a template file writes it
# what a template writes between the turns of a conversation: the answer, or the next question, begins
TURN_TOKENS = ("<|assistant|>", "<|user|>")
# stand around its name while rendering, so that data can never make one
OPENING, CLOSING = "\ue003", "\ue004"
WRITTEN_TOKEN = re.compile(f"{OPENING}([^{OPENING}{CLOSING}]*){CLOSING}")


class Wording(str):
    """A piece of a prompt that knows which special tokens the template wrote into it.

    Args:
        text: the piece with those tokens. tokens: their texts, which the data of a row cannot add to.
    """

    tokens: tuple[str, ...]

    def __new__(cls, text: str, tokens: tuple[str, ...] = ()) -> Wording:
        piece = super().__new__(cls, text)
        piece.tokens = tokens
        return piece

    def __getnewargs__(self) -> tuple[str, tuple[str, ...]]:  # type: ignore[override]  # what pickle calls
        return str(self), self.tokens

    @classmethod
    def from_rendered(cls, text: str) -> str:
        """Return a rendered piece with its tokens as the template file writes them; most pieces have none."""
        if OPENING not in text:
            return text
        tokens = tuple(f"<|{name}|>" for name in WRITTEN_TOKEN.findall(text))
        return cls(WRITTEN_TOKEN.sub(r"<|\1|>", text), tokens)
