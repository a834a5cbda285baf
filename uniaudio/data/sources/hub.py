"""Hub datasets, streamed: rows arrive in order and nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uniaudio.data.card import DatasetCard
from uniaudio.data.source import Row, audio_refs
from uniaudio.errors import UserError


class HubSource:
    """A stream over ``datasets.load_dataset(..., streaming=True)`` with audio left encoded.

    ``load.hub`` is a Hub name, or a local folder in the Hub's layout.
    """

    size: int | None = None

    def __init__(self, card: DatasetCard, split: str) -> None:
        import datasets  # slow to import, and only needed here

        self.card = card
        self.split = split
        load, stored = card.load, card.split(split)
        try:
            stream = datasets.load_dataset(
                load.location, load.config, split=stored.name, revision=load.revision, streaming=True
            )
        except (
            OSError,
            ValueError,
        ) as problem:  # every error of `datasets` and of the Hub client is one of these
            reason = str(problem).strip().splitlines()[0]
            raise UserError(
                f"{card.path}: load.hub: {load.location} cannot be opened ({reason})"
            ) from problem
        for name in card.audio:
            if stream.features and isinstance(stream.features.get(name), datasets.Audio):
                stream = stream.cast_column(name, datasets.Audio(decode=False))
        self.data = stream

    def row(self, index: int) -> Row:
        raise TypeError("a streamed source has no rows by index")

    def stream(self, start: int) -> Iterator[Row]:
        """Yield the kept rows, the first ``start`` of them left out."""
        taken = 0
        for position, columns in enumerate(self.data):
            light = {name: value for name, value in columns.items() if name not in self.card.audio}
            if not self.card.keeps(light, self.split):
                continue
            if taken >= start:
                refs = audio_refs(columns, self.card.audio, Path(), str(position))
                yield Row(str(position), light, refs)
            taken += 1
