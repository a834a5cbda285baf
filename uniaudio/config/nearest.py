"""The nearest valid name, for error messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"``, or an empty text when nothing is near; upper and lower case are the same."""
    spellings = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), list(spellings), n=1)
    return f" (did you mean '{spellings[near[0]]}'?)" if near else ""
