"""A row of a source to a rendered question and a length in seconds: whatever goes wrong is the row's fault."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.source import Row
from uniaudio.data.template import Rendered, Template
from uniaudio.errors import RowError, convert_to_row_error


def render_question(
    row: Row,
    card: DatasetCard,
    template: Template,
    constants: Mapping[str, Any],
    rng: random.Random | None = None,
) -> Rendered:
    """Fill a row of a card into a template.

    Args:
        constants: inputs of the template that the recipe states. rng: see ``Template.render``.

    Raises:
        RowError: when the row cannot be used.
    """
    with convert_to_row_error("template error", row.key):
        rendered = template.render({**card.fields(row.columns), **constants}, rng)
    if len(row.audio) != template.num_clips:
        raise RowError("template error", f"{len(row.audio)} clip(s) for {template.num_clips} audio mark(s)")
    return rendered


def row_seconds(row: Row) -> list[float]:
    """Return the length of every clip of a row in seconds, as the row or the audio header states it.

    Raises:
        RowError: when it cannot be known.
    """
    with convert_to_row_error("broken audio", row.key):
        lengths = [ref.known_seconds() for ref in row.audio]
    if not all(map(math.isfinite, lengths)):
        raise RowError("broken audio", f"{row.key}: a length of {lengths} s")
    return lengths
