"""A dataset repository on the Hub: its commit, its files, and which of them are a split, from one request (of very
many files, from a listing in pages).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import fsspec
import orjson
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.hf_api import RepoFile

from uniaudio.config.nearest import suggest_name
from uniaudio.data.card_file import Load
from uniaudio.data.sources.class_names import INFOS
from uniaudio.errors import UserError
from uniaudio.hub_client import call_hub, convert_hub_errors

SHOWN = 5  # files that a message names
READ_BY_DATASETS = (".huggingface.yaml",)  # settings beside README.md, which only `datasets` understands
LISTED_WHOLE = 50_000  # files; where there are more, the description of a repository may leave some out


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. ``hash``: of its content; ``size``: in bytes, where the Hub says."""

    path: str
    size: int | None
    hash: str

    @property
    def suffix(self) -> str:
        """Of its name, in lower case."""
        return PurePosixPath(self.path).suffix.lower()


@dataclass(frozen=True)
class HubRepository:
    """A dataset repository at one commit.

    Args:
        name: as the Hub calls it now. commit: its hash. metadata: at the top of README.md.
    """

    name: str
    commit: str
    files: Mapping[str, HubFile]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def make_url(self, path: str) -> str:
        """Return the address of a file at this commit."""
        return hf_hub_url(self.name, path, repo_type="dataset", revision=self.commit)

    def find_split_files(self, config: str | None, split: str, where: str) -> list[HubFile] | None:
        """Return the files of a split in their order, by the rules of `datasets`: what README.md lists under `configs`,
        else the names of files and folders.

        Returns:
            None where only `datasets` can tell.

        Raises:
            UserError: naming the configurations or splits that there are.
        """
        splits = self.list_splits(config, where)
        if splits is None:
            return None
        if split not in splits:
            raise UserError(
                f"{where}: {self.name} has no split '{split}'{suggest_name(split, splits)}; it has "
                f"{', '.join(splits)}"
            )
        if not splits[split]:
            raise UserError(f"{where}: {self.name} has no file for the split '{split}'")
        return splits[split]

    def list_splits(self, config: str | None, where: str) -> dict[str, list[HubFile]] | None:
        """Return the files of all splits, see ``find_split_files``.

        Raises:
            UserError: naming the configurations that there are, or when there are no files with rows.
        """
        from datasets.data_files import (
            EmptyDatasetError,
            get_data_patterns,
            resolve_pattern,
            sanitize_patterns,
        )

        if any(name in self.files for name in READ_BY_DATASETS):
            return None
        settings = self.choose_config(config, where)
        if settings is None:
            return None
        root = f"memory://hub-{self.commit}"  # the names alone, for rules that look into a file system
        prefix = f"/hub-{self.commit}/"
        names = fsspec.filesystem("memory")
        names.pipe({f"{root}/{path}": b"" for path in self.files})
        splits: dict[str, list[HubFile]] = {}
        try:
            folder = f"{root}/{settings['data_dir']}" if settings.get("data_dir") else root
            stated = settings.get("data_files")
            patterns = sanitize_patterns(stated) if stated is not None else get_data_patterns(folder)
            for split, listed in patterns.items():
                paths: list[str] = []
                for pattern in listed:
                    # several patterns may stand for a split, and some match nothing
                    with suppress(FileNotFoundError):
                        paths += resolve_pattern(pattern, folder)
                splits[str(split)] = [self.files[path.partition(prefix)[2]] for path in dict.fromkeys(paths)]
        except EmptyDatasetError as problem:
            there = ", ".join(list(self.files)[:SHOWN]) or "no files"
            raise UserError(f"{where}: {self.name} contains no files with rows, only {there}") from problem
        finally:
            names.rm(root, recursive=True)
        return splits

    def choose_config(self, config: str | None, where: str) -> Mapping[str, Any] | None:
        """Return what README.md says of a configuration; nothing where it lists none, None where it is not clear.

        Raises:
            UserError: naming the configurations.
        """
        listed = self.metadata.get("configs") or []
        configs = {str(one.get("config_name")): one for one in listed if isinstance(one, Mapping)}
        if not configs:
            return {} if config in (None, "default") else None
        if config is None:
            stated = [name for name, one in configs.items() if one.get("default")] or ["default"]
            config = stated[0] if stated[0] in configs else next(iter(configs)) if len(configs) == 1 else None
        if config is None:
            raise UserError(
                f"{where}: {self.name} has several configurations; set `config` to one of {', '.join(configs)}"
            )
        if config not in configs:
            raise UserError(
                f"{where}: {self.name} has no configuration '{config}'{suggest_name(config, configs)}; it has "
                f"{', '.join(configs)}"
            )
        return configs[config]

    def read_features(self, config: str | None) -> dict[str, Any]:
        """Return the features of the columns as `datasets` writes them as JSON; nothing where the repository has none.

        Raises:
            UserError: when they cannot be read.
        """
        from datasets.info import DatasetInfosDict
        from huggingface_hub import DatasetCardData

        if self.metadata.get("dataset_info"):
            infos = DatasetInfosDict.from_dataset_card_data(DatasetCardData(**self.metadata))
            features = {name: info.features.to_dict() for name, info in infos.items() if info.features}
        elif INFOS in self.files:
            with convert_hub_errors(
                f"{self.name}: {INFOS} cannot be read", self.name, self.commit, "dataset"
            ):
                file = call_hub(
                    lambda: hf_hub_download(self.name, INFOS, repo_type="dataset", revision=self.commit)
                )
                with open(file, "rb") as stream:
                    stored = orjson.loads(stream.read())
                features = {name: info.get("features") or {} for name, info in stored.items()}
        else:
            return {}
        name = config or ("default" if "default" in features else next(iter(features), ""))
        return dict(features.get(name) or (next(iter(features.values())) if len(features) == 1 else {}))


def list_tree(name: str, commit: str | None) -> dict[str, HubFile]:
    """Return all files of a repository, listed page by page."""
    tree = HfApi().list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
    return {
        entry.path: HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in tree
        if isinstance(entry, RepoFile)
    }


def describe_repository(load: Load, what: str) -> HubRepository:
    """Ask the Hub for a dataset.

    Args:
        what: begins the sentence of an error.

    Raises:
        UserError: when there is none, it is not to be read, or the Hub cannot be asked.
    """
    with convert_hub_errors(what, load.location, load.revision, "dataset"):
        info = call_hub(
            lambda: HfApi().dataset_info(
                load.location, revision=load.revision, files_metadata=True, timeout=load.timeout
            )
        )
        files = {
            file.rfilename: HubFile(
                file.rfilename, file.size, (file.lfs.sha256 if file.lfs else file.blob_id) or ""
            )
            for file in info.siblings or ()
        }
        if len(files) > LISTED_WHOLE:
            files = call_hub(lambda: list_tree(info.id, info.sha))
        metadata = info.card_data.to_dict() if info.card_data else {}
        repository = HubRepository(info.id, info.sha or "", files, metadata)
        if info.gated and files and not constants.is_offline_mode():
            # a repository may be listed and its files refused all the same
            call_hub(lambda: get_hf_file_metadata(repository.make_url(next(iter(files))), token=None))
    return repository
