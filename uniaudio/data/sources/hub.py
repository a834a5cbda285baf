"""Hub datasets, streamed: rows arrive in order and nothing is stored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard, Load
from uniaudio.data.sources.base import (
    BrokenShardError,
    Place,
    Row,
    ShardedSource,
    explain_missing_audio,
    hash_values,
    is_row_in_split,
    make_row,
    read_row_or_error,
)
from uniaudio.data.sources.class_names import collect_classes, make_column_namings, name_class_columns
from uniaudio.data.sources.parquet import convert_table
from uniaudio.data.sources.paths import is_remote
from uniaudio.data.sources.remote import classify_error, open_by_scheme, wait_for_hub
from uniaudio.errors import RowError, UserError, convert_to_user_error

AT_ONCE = 32  # rows in memory at the same time, beside what `datasets` itself reads ahead


class HubSource(ShardedSource):
    """A stream over ``datasets.load_dataset(..., streaming=True)``; its shards are ours.

    ``load.hub`` is a Hub name, or a local folder in the Hub's layout. Shuffling and mixing are never left to
    ``datasets``: its buffers are lost when a run is continued. Classes that are stored as numbers have their names.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        import datasets  # slow to import, and only needed here

        self.card, self.split = card, split
        load, stored = card.load, card.split(split)
        wait_for_hub(load.timeout)
        with convert_to_user_error(
            f"{card.path}: load.hub: {load.location} cannot be opened", give_advice(load)
        ):
            stream = datasets.load_dataset(
                load.location, load.config, split=stored.name, revision=load.revision, streaming=True
            )
        features = dict(stream.features.to_dict()) if stream.features else {}
        self.namings = make_column_namings(features)
        self.classes = collect_classes(features)
        for name in set(card.audio) - set(card.audio_texts) if features else ():
            if name not in features:
                raise UserError(f"{card.path}: {explain_missing_audio(load.location, name, features)}")
        if features:
            stream = stream.decode(False)  # takes away the step that decodes what comes from the Hub
        # without features nothing is encoded either: for audio, both want a library that we can do without
        stream.info.features = None
        used = card.list_columns_to_read(split, set(features))
        if used is not None and features:
            stream = stream.select_columns([name for name in features if name in used or name in card.audio])
        self.data = stream
        self.shards = tuple(f"{load.location}:{stored.name}:{i}" for i in range(stream.num_shards))

    def fingerprint(self, columns: Collection[str]) -> str:
        facts = self.data.info
        return hash_values([*self.shards, self.card.load.revision, facts.version, facts.dataset_size])

    def read(self, shard: int, place: Place) -> Iterator[tuple[Row | RowError | None, Place]]:
        wait_for_hub(self.card.load.timeout)
        try:
            for number, columns in enumerate(self.iterate_rows(shard, place.row), place.row):
                key = f"{shard}/{number}"
                yield read_row_or_error(partial(self.build_row, key, columns), key), Place(number + 1)
        except (UserError, BrokenShardError):
            raise
        except Exception as problem:  # `datasets` lets those of several network libraries through
            raise classify_error(problem, self.shards[shard]) from problem

    def iterate_rows(self, shard: int, skipped: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a shard but the first ``skipped``.

        Taken in batches, for row by row `datasets` would look at the torch worker that it runs in, and give the rows
        of a shard to one worker only. ``skip`` was measured to be as quick as going on from a state of `datasets`.
        """
        part = self.data.shard(num_shards=len(self.shards), index=shard)
        try:
            for batch in part.skip(skipped).iter(AT_ONCE):
                for values in zip(*batch.values(), strict=True):
                    skipped += 1
                    yield dict(zip(batch, values, strict=True))
        except (
            UnicodeDecodeError
        ):  # `datasets` reads all values of many rows at once, and one of them is no text
            for table in part.skip(skipped).with_format("arrow").iter(AT_ONCE):
                yield from convert_table(table, {})

    def build_row(self, key: str, columns: Mapping[str, Any]) -> Row | None:
        stored = set(self.card.audio) - set(self.card.audio_texts)
        light = name_class_columns(
            {n: value for n, value in columns.items() if n not in stored}, self.namings
        )
        if not is_row_in_split(self.card, light, self.split):
            return None
        return make_row(self.card, key, light, {**columns, **light}, Path(), self.fetch_clip)

    def fetch_clip(self, value: Any) -> Any:
        """Return an audio column with its bytes, where it names a file on the Hub or in an archive."""
        if isinstance(value, Mapping) and (value.get("bytes") is not None or value.get("array") is not None):
            return value
        path = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(path, str) or not is_remote(path):
            return value
        try:
            with open_by_scheme(path, self.card.load.timeout) as file:
                return {"bytes": file.readall(), "path": path}
        except BrokenShardError as problem:
            raise RowError("missing file", str(problem)) from problem


def give_advice(load: Load) -> str:
    """Return what to do where `datasets` does not open a dataset."""
    if load.revision is None:
        return (
            "if its rows come from a loading script, which is not run, set `revision: refs/convert/parquet` to read "
            "the Hub's own conversion"
        )
    return "look at its name, `config` and `revision`"
