"""Limits that several parts share; nothing is imported here, so that any of them can read it."""

LONGEST_SOURCE = 100_000  # characters of a template, of ours or of a chat
MAX_TEXT_TOKENS = 4096  # of a question and its answer, where `data.max_text_tokens` does not say
