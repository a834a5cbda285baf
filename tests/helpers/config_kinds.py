"""The kinds that a config can name, read from its records, so that a new one is tried without a list of tests."""

from typing import get_args


def list_kinds(union: object) -> list[str]:
    """Return the values of ``kind`` of all records of a union, in order."""
    records = get_args(get_args(union)[0])
    return [kind for record in records for kind in get_args(record.model_fields["kind"].annotation)]
