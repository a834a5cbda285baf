"""Limits that several parts share; nothing is imported here, so that any of them can read it."""

MAX_TEXT_TOKENS = 4096  # of a question and its answer, where `data.max_text_tokens` does not say
