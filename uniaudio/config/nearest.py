"""What to write in place of a name that is not known, for error messages."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

MOST_LISTED = 40  # names in a sentence


def suggest_or_list(name: str, known: Collection[str]) -> str:
    """Return ``" (did you mean 'x'?)"``, or, when nothing is near, ``"; known: x, y"``."""
    shown = ", ".join(list(known)[:MOST_LISTED]) or "none"
    more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    return suggest_name(name, known) or f"; known: {shown}{more}"


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"``, or an empty text when nothing is near; upper and lower case are the same."""
    spellings = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), list(spellings), n=1)
    return f" (did you mean '{spellings[near[0]]}'?)" if near else ""
