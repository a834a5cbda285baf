"""The values of Parquet tables: classes by their names, and bytes of clips where Arrow has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq

from uniaudio.data.sources.class_names import (
    Naming,
    make_column_namings,
    name_class_columns,
    read_schema_features,
)
from uniaudio.errors import RowError, convert_to_row_error, convert_to_user_error


def convert_audio_value(column: pyarrow.Array, i: int) -> Any:
    """Return a value of an audio column; bytes stay where Arrow has them, for copies cost more than reading."""
    if pyarrow.types.is_struct(column.type):
        return {field.name: convert_audio_value(column.field(field.name), i) for field in column.type}
    value = column[i]
    if pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
        return memoryview(value.as_buffer()) if value.is_valid else None
    return value.as_py()


def convert_table(table: pyarrow.Table, namings: Mapping[str, Naming]) -> list[dict[str, Any]]:
    """Return the rows of a table, classes by their names; a value that cannot be read is its error."""
    try:
        rows = table.to_pylist()
    except (ValueError, OverflowError, pyarrow.ArrowException):  # such as text that is not UTF-8, in some row
        columns = {
            name: [read_value(name, value) for value in table.column(name)] for name in table.column_names
        }
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [name_class_columns(row, namings) for row in rows]


def read_value(name: str, value: pyarrow.Scalar) -> Any:
    """Return a stored value, or why it cannot be read."""
    try:
        with convert_to_row_error("broken metadata", f"column '{name}'"):
            return value.as_py()
    except RowError as problem:
        return problem


def read_parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Return all rows of a file without clips, classes by their names; a value that cannot be read is its error.

    Raises:
        UserError: when the file cannot be read.
    """
    with convert_to_user_error(f"{path}: cannot be read"):
        table = pq.read_table(path)
        return convert_table(table, make_column_namings(read_schema_features(table.schema.metadata)))
