"""Hub datasets, streamed: rows arrive in order and nothing is stored.

Parquet files, tars and folders of clips are read as those of any other server; the rest is left to `datasets`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow
from huggingface_hub import constants, snapshot_download

from uniaudio.data.card import DatasetCard
from uniaudio.data.card_file import Load
from uniaudio.data.field_values import Classes
from uniaudio.data.sources.audio_columns import explain_missing_audio, make_row
from uniaudio.data.sources.base import (
    UNREAD,
    Place,
    Row,
    ShardedSource,
    Source,
    hash_values,
    is_row_in_split,
    read_row_or_error,
)
from uniaudio.data.sources.class_names import collect_classes, make_column_namings, name_class_columns
from uniaudio.data.sources.file_fingerprints import describe_files
from uniaudio.data.sources.folder_walk import is_clip
from uniaudio.data.sources.http import VERSIONS, FileVersion
from uniaudio.data.sources.hub_folder import HubFolderSource, is_metadata
from uniaudio.data.sources.hub_repository import HubFile, HubRepository, describe_repository
from uniaudio.data.sources.parquet import ParquetSource, Shard
from uniaudio.data.sources.parquet_values import convert_table
from uniaudio.data.sources.paths import TARS, is_remote
from uniaudio.data.sources.retries import call_patiently
from uniaudio.data.sources.saved_datasets import (
    fingerprint_saved_split,
    is_saved_dataset,
    stream_saved_dataset,
)
from uniaudio.data.sources.url_files import convert_source_errors, open_by_scheme, wait_for_hub
from uniaudio.data.sources.webdataset import WebDatasetSource
from uniaudio.errors import RowError, UserError, convert_to_user_error
from uniaudio.hub_client import call_hub, convert_hub_errors

CONFIGS = re.compile(
    r"Config name is missing.*available configs: \[(.*?)\]", re.DOTALL
)  # as `datasets` says it
CHAINED = "::"  # in URLs of fsspec, between a file and the archive that it is in
AT_ONCE = 32  # rows in memory at the same time, beside what `datasets` itself reads ahead
# suffixes of what lies beside data
NO_DATA = frozenset(["", ".md", ".txt", ".py", ".yaml", ".yml", ".png", ".jpg", ".pdf"])


def open_hub_source(card: DatasetCard, split: str) -> Source:
    """Open a split of a dataset on the Hub by its name, or of a local folder in its layout or of ``save_to_disk``.

    The commit is looked up once, so all that is read belongs to it.

    Raises:
        UserError: when there is no such dataset or split, or it cannot be had, with the fix.
    """
    load = card.load
    where = f"{card.path}: load.hub"
    what = f"{where}: {load.location} cannot be opened"
    wait_for_hub(load.timeout)
    if Path(load.location).is_dir():
        return StreamedSource(card, split, load.location, None, what)
    if constants.is_offline_mode():
        return StreamedSource(card, split, find_fetched_dataset(load, what), None, what)
    repository = describe_repository(load, what)
    files = repository.find_split_files(load.config, card.split(split).name, where) or []
    data = [file for file in files if file.suffix not in NO_DATA]
    if data and all(file.suffix == ".parquet" for file in data):
        return HubParquetSource(card, split, repository, data)
    tars = [file for file in files if file.path.lower().endswith(TARS)]
    if tars and {file.suffix for file in data} == {file.suffix for file in tars}:
        return HubTarSource(card, split, repository, tars)
    others = [file for file in data if not is_clip(file.path) and not is_metadata(file.path)]
    if any(is_clip(file.path) for file in files) and not others:
        return HubFolderSource(card, split, repository, files, what)
    return StreamedSource(card, split, repository.name, repository, what)


def find_fetched_dataset(load: Load, what: str) -> str:
    """Return the folder of a dataset in the cache, as ``hf download`` leaves it.

    Raises:
        UserError: when it is not there.
    """
    with convert_hub_errors(what, load.location, load.revision, "dataset"):
        return str(snapshot_download(load.location, repo_type="dataset", revision=load.revision))


def register_sizes(repository: HubRepository, files: Sequence[HubFile]) -> list[str]:
    """Return the addresses of files, whose sizes the Hub has told and no request needs to find out."""
    places = [repository.make_url(file.path) for file in files]
    for place, file in zip(places, files, strict=True):
        if file.size is not None:
            VERSIONS.setdefault(place, FileVersion(file.size))
    return places


class HubParquetSource(ParquetSource):
    """The Parquet files of a split; each is a shard. Classes have the names that README.md states, if it does."""

    def __init__(
        self, card: DatasetCard, split: str, repository: HubRepository, files: Sequence[HubFile]
    ) -> None:
        self.card, self.split, self.files = card, split, files
        places = register_sizes(repository, files)
        self.table = [Shard(place, str(number)) for number, place in enumerate(places)]
        self.shards = tuple(places)
        with convert_to_user_error(
            f"{card.path}: load.hub: the features of {repository.name} cannot be read"
        ):
            self.features = repository.read_features(card.load.config)

    def fingerprint(self, columns: Collection[str]) -> str:
        return hash_values([(file.path, file.hash) for file in self.files])

    def list_files(self) -> Sequence[str]:
        return ()

    @cached_property
    def classes(self) -> Mapping[str, Classes]:
        return collect_classes(self.features) if self.features else super().classes

    def read_features(self, place: str, schema: pyarrow.Schema) -> dict[str, Any]:
        return {**super().read_features(place, schema), **self.features}


class HubTarSource(WebDatasetSource):
    """The tars of a split; each is a shard. Columns have the names of `datasets`, too: ``json`` is the whole object."""

    def __init__(
        self, card: DatasetCard, split: str, repository: HubRepository, files: Sequence[HubFile]
    ) -> None:
        self.card, self.split, self.files = card, split, files
        self.shards = tuple(register_sizes(repository, files))
        self.names = [str(number) for number in range(len(files))]

    def fingerprint(self, columns: Collection[str]) -> str:
        return hash_values([(file.path, file.hash) for file in self.files])

    def list_files(self) -> Sequence[str]:
        return ()

    def name_columns(self, parsed: Mapping[str, Any]) -> dict[str, Any]:
        return {**parsed, **super().name_columns(parsed)}


class StreamedSource(ShardedSource):
    """A stream of `datasets`, whose shards are ours.

    Shuffling and mixing are never left to ``datasets``: its buffers are lost when a run is continued. Classes that are
    stored as numbers have their names.

    Args:
        place: a folder, or the name of the repository.

    Attributes:
        columns: the columns that are read, clips included; empty where they are not known.
        reads_clips: whether the columns of clips are read, see ``shard_text_rows``.
    """

    reads_clips = True

    def __init__(
        self, card: DatasetCard, split: str, place: str, repository: HubRepository | None, what: str
    ) -> None:
        import datasets  # slow to import, and only needed here

        self.card, self.split, self.place, self.repository = card, split, place, repository
        self.folder = Path(place) if Path(place).is_dir() else Path()  # that paths of clips are relative to
        load, stored = card.load, card.split(split)
        commit = repository.commit if repository is not None else None
        refusals = convert_hub_errors(what, load.location, load.revision, "dataset", refusals_only=True)
        with convert_to_user_error(what, give_advice(load)), refusals:
            if is_saved_dataset(Path(place)):
                stream = stream_saved_dataset(Path(place), stored.name)
            else:
                with explain_missing_config(what):
                    builder = call_hub(
                        lambda: datasets.load_dataset_builder(place, load.config, revision=commit)
                    )
                self.files = list_builder_files(builder, stored.name)
                if hasattr(builder.config, "decode_num_threads"):  # a step that could not be taken away again
                    builder.config.decode_num_threads = 0
                stream = call_hub(lambda: builder.as_streaming_dataset(split=stored.name))
        features = dict(stream.features.to_dict()) if stream.features else {}
        self.namings = make_column_namings(features)
        self.classes = collect_classes(features)
        for name in card.stored_audio if features else ():
            if name not in features:
                raise UserError(f"{card.path}: {explain_missing_audio(load.location, name, features)}")
        if features:
            stream = stream.decode(False)
        # without features nothing is encoded either: for audio, both want a library that we can do without
        stream.info.features = None
        used = card.list_columns_to_read(split, set(features))
        columns = list(features)
        if used is not None and features:
            columns = [name for name in features if name in used or name in card.audio]
            stream = stream.select_columns(columns)
        self.data, self.columns = stream, columns
        self.shards = tuple(f"{load.location}:{stored.name}:{i}" for i in range(stream.num_shards))

    def fingerprint(self, columns: Collection[str]) -> str:
        if self.repository is not None:
            files = self.repository.files.values()
            return hash_values([(file.path, file.hash) for file in files if not file.path.endswith(".md")])
        folder, split = Path(self.place), self.card.split(self.split).name
        is_saved = is_saved_dataset(folder)
        facts = fingerprint_saved_split(folder, split) if is_saved else describe_files(self.files)
        return hash_values([len(self.shards), *facts])

    def shard_text_rows(self, shard: int) -> Iterator[Row | RowError]:
        """Yield the rows of a shard without the columns of clips, where the columns are known."""
        light = copy.copy(self)
        if texts := [name for name in self.columns if name not in self.card.stored_audio]:
            light.reads_clips = False
            light.data = self.data.select_columns(texts)
        return (row for row in light.shard_rows(shard) if row is not None)

    def read(self, shard: int, place: Place) -> Iterator[tuple[Row | RowError | None, Place]]:
        wait_for_hub(self.card.load.timeout)
        with convert_source_errors(self.shards[shard]):  # of the several network libraries of `datasets`
            for number, columns in enumerate(self.iterate_rows(shard, place.row), place.row):
                key = f"{shard}/{number}"
                yield read_row_or_error(partial(self.build_row, key, columns), key), Place(number + 1)

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
        # `datasets` reads all values of many rows at once, and one of them is no text
        except UnicodeDecodeError:
            for table in part.skip(skipped).with_format("arrow").iter(AT_ONCE):
                yield from convert_table(table, {})

    def build_row(self, key: str, columns: Mapping[str, Any]) -> Row | None:
        clips = self.card.stored_audio
        light = name_class_columns({n: value for n, value in columns.items() if n not in clips}, self.namings)
        if not is_row_in_split(self.card, light, self.split, key):
            return None
        if not self.reads_clips:
            unread = dict.fromkeys(self.card.audio, UNREAD)
            return make_row(self.card, key, light, {**unread, **light}, self.folder)
        return make_row(self.card, key, light, {**columns, **light}, self.folder, self.fetch_clip)

    def fetch_clip(self, value: Any) -> Any:
        """Return an audio column with its bytes, where it names a file on the Hub or in an archive."""
        if isinstance(value, Mapping) and (value.get("bytes") is not None or value.get("array") is not None):
            return value
        path = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(path, str) or not is_remote(path):
            return value
        read = partial(read_by_scheme, path, self.card.load.timeout)
        return {"bytes": call_patiently(read, path.rpartition(CHAINED)[2]), "path": path}


def read_by_scheme(url: str, timeout: float) -> bytes:
    """Return a whole file.

    Raises:
        BrokenShardError: when it is not there. OSError: when another try may help.
    """
    with open_by_scheme(url, timeout) as file:
        return file.readall()


def list_builder_files(builder: Any, split: str) -> list[str]:
    """Return the files and URLs of a split that a builder of `datasets` reads; those of all splits where it has none
    of this name.
    """
    by_split = {
        str(name): [str(file) for file in files] for name, files in (builder.config.data_files or {}).items()
    }
    return by_split.get(split) or [file for files in by_split.values() for file in files]


@contextmanager
def explain_missing_config(what: str) -> Iterator[None]:
    """Say which configurations a dataset has where one has to be named.

    Raises:
        UserError: listing them.
    """
    try:
        yield
    except ValueError as problem:
        if named := CONFIGS.search(str(problem)):
            raise UserError(
                f"{what}: it has several configurations; set `config` to one of {named[1]}"
            ) from problem
        raise


def give_advice(load: Load) -> str:
    """Return what to do where `datasets` does not open a dataset."""
    if load.revision is None:
        return (
            "if its rows come from a loading script, which is not run, set `revision: refs/convert/parquet` to read "
            "the Hub's own conversion"
        )
    return "check its name, `config` and `revision`"
