"""Hub datasets, streamed: rows arrive in order and nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow

from uniaudio.data.card import DatasetCard
from uniaudio.data.source import BrokenShardError, Place, Row, ShardedSource, audio_refs
from uniaudio.errors import RowError, UserError

REFUSED = (401, 403, 404, 410)  # HTTP answers that another try does not change


class HubSource(ShardedSource):
    """A stream over ``datasets.load_dataset(..., streaming=True)`` with audio left encoded; its shards are ours.

    ``load.hub`` is a Hub name, or a local folder in the Hub's layout. Shuffling and mixing are never left to
    ``datasets``: its buffers are lost when a run is continued.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        import datasets  # slow to import, and only needed here

        self.card, self.split = card, split
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
        self.shards = tuple(f"{load.location}:{stored.name}:{i}" for i in range(stream.num_shards))

    def read(self, shard: int, place: Place) -> Iterator[tuple[Row | RowError | None, Place]]:
        part = self.data.shard(num_shards=len(self.shards), index=shard).skip(place.row)
        try:
            for number, columns in enumerate(part, place.row):
                light = {name: value for name, value in columns.items() if name not in self.card.audio}
                row: Row | RowError | None = None
                if self.card.keeps(light, self.split):
                    key = f"{shard}/{number}"
                    try:
                        row = Row(key, light, audio_refs(columns, self.card.audio, Path(), key))
                    except RowError as problem:
                        row = problem
                yield row, Place(number + 1)
        except (UserError, GeneratorExit):
            raise
        except pyarrow.ArrowException as problem:
            raise BrokenShardError(f"{self.shards[shard]}: {str(problem).splitlines()[0]}") from problem
        except Exception as problem:  # `datasets` lets those of several network libraries through
            answer = getattr(getattr(problem, "response", None), "status_code", None)
            text = f"{self.shards[shard]}: {(str(problem) or type(problem).__name__).splitlines()[0]}"
            if answer in REFUSED or isinstance(problem, FileNotFoundError):
                raise BrokenShardError(text) from problem
            raise ConnectionError(text) from problem
