"""The files of a model by folder or Hub name: which are fetched, its config.json, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoConfig, PretrainedConfig

from uniaudio.config.file_signatures import LFS_POINTER
from uniaudio.config.missing_folders import refuse_missing_folder
from uniaudio.errors import UserError, prefix_user_errors, read_first_line
from uniaudio.hub_client import call_hub, convert_hub_errors

RANDOM = "random:"  # prefix of a path: the same architecture with random weights
RANDOM_WEIGHTS = {"initialization": "random"}  # in the config.json of weights that nobody has trained
WEIGHTS = "model.safetensors"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
EXTRACTOR_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
CONFIGS = ("config.json", EXTRACTOR_FILE, PROCESSOR_FILE)  # of a model whose weights are drawn
CODE = "*.py"
ADAPTER = "adapter_config.json"
MOST_OF_A_POINTER = 1024  # bytes of a file that may be a pointer of Git LFS
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
ConfigClass = TypeVar("ConfigClass", bound=PretrainedConfig)
CONFIG_FOLDERS: dict[tuple[str, str, str | None], Path] = {}  # of repositories asked for in this process


def find_model_folder(path: str, revision: str | None, code: bool = False) -> Path:
    """Return a local folder: the path itself, or the files of a Hub repository in the local cache.

    All files are of the commit whose config.json was read first in this process.

    Args:
        path: ``random:`` before the name of a repository fetches no weights. code: whether its Python files are
            fetched, too.

    Raises:
        UserError: when it is neither.
    """
    name = path.removeprefix(RANDOM)
    if Path(name).is_dir():
        return Path(name)
    commit = fetch_model_config(name, revision).name
    patterns = (
        list(CONFIGS) if path.startswith(RANDOM) else choose_model_files(list_model_files(name, commit))
    )
    with convert_hub_errors(f"{name} cannot be downloaded", name, revision):
        call = partial(
            snapshot_download, name, revision=commit, allow_patterns=[*patterns, *([CODE] if code else ())]
        )
        folder = Path(call_hub(call))
        if (
            not path.startswith(RANDOM)
            and constants.is_offline_mode()
            and not any(folder.glob("*.safetensors"))
        ):
            raise OfflineModeIsEnabled(f"{folder} holds no weights")
    return folder


def choose_model_files(names: Sequence[str]) -> list[str]:
    """Return the files of a repository that are read: its JSON files and one set of weights, none in folders below.

    Some repositories hold their weights a second time, in another precision or for another library.
    """
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    if WEIGHTS in weights:
        weights = [WEIGHTS]
    elif f"{WEIGHTS}.index.json" in top:
        weights = [
            name for name in weights if SHARD.fullmatch(name)
        ] or weights  # shards may have other names
    return [name for name in top if name.endswith(".json")] + weights


def fetch_model_config(path: str, revision: str | None) -> Path:
    """Return a local folder with the config.json of a model: of a Hub repository nothing else is fetched.

    Raises:
        UserError: when there is no such folder or repository, or it has no config.json.
    """
    name = path.removeprefix(RANDOM)
    if Path(name).is_dir():
        return Path(name)
    refuse_missing_folder(name)
    key = (constants.ENDPOINT, name, revision)
    if key not in CONFIG_FOLDERS or not CONFIG_FOLDERS[key].is_dir():
        with convert_hub_errors(f"{name} is not a folder here and cannot be downloaded", name, revision):
            file = hf_hub_download(name, "config.json", revision=revision)  # which tries again itself
        CONFIG_FOLDERS[key] = Path(file).parent
    return CONFIG_FOLDERS[key]


def pin_revision(path: str, revision: str | None) -> str | None:
    """Return the commit of a Hub repository whose config.json was read first, so that all its files are of one.

    Raises:
        UserError: as ``fetch_model_config``.
    """
    return None if Path(path.removeprefix(RANDOM)).exists() else fetch_model_config(path, revision).name


def list_model_files(path: str, revision: str | None) -> list[str]:
    """Return the names of the files of a folder or Hub repository; of a repository in the cache alone those there."""
    folder = Path(path)
    if folder.is_dir():
        return sorted(file.name for file in folder.iterdir())
    if constants.is_offline_mode():
        return sorted(file.name for file in fetch_model_config(path, revision).iterdir())
    with convert_hub_errors(f"{path} is not a folder here and cannot be downloaded", path, revision):
        return call_hub(
            lambda: [s.rfilename for s in HfApi().model_info(path, revision=revision).siblings or ()]
        )


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` as plain values.

    Raises:
        UserError: when there is none, or it names no model type.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as problem:
        raise UserError(f"{folder} contains no model: it has no config.json") from problem
    except (OSError, ValueError) as problem:
        raise UserError(f"{folder}: config.json cannot be read ({read_first_line(problem)})") from problem
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder}: config.json names no model_type")
    return config


def read_extractor_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a model's feature extractor as plain values, empty where the folder has none.

    A processor that transformers 5 has saved holds them in its own file, which counts first, as it does there.

    Raises:
        UserError: when a file cannot be read.
    """
    files = [read_json_object(folder / name) for name in (PROCESSOR_FILE, EXTRACTOR_FILE)]
    inside = (files[0].get(key) for key in ("feature_extractor", "audio_processor"))
    return next((settings for settings in inside if isinstance(settings, dict)), files[1])


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON file as a mapping, an empty one where there is no such file.

    Raises:
        UserError: when it cannot be read, or holds something else.
    """
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"{file} cannot be read ({read_first_line(problem)})") from problem
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a JSON object")
    return values


def read_stock_config(
    path: Path | str, revision: str | None = None, trusted: bool = False
) -> PretrainedConfig:
    """Return the configuration of a model of transformers, without what its file says of attention.

    An implementation of attention that a file names may be a package or a kernel on the Hub, which would be fetched and
    run; transformers chooses among its own instead.

    Args:
        trusted: whether code that comes with the model may run.

    Raises:
        OSError, ValueError: as transformers does, also where code would be needed that is not trusted.
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trusted)
    return use_stock_attention(config)


def use_stock_attention(config: ConfigClass) -> ConfigClass:
    """Let transformers choose the code of attention and experts, in the configuration and those inside it."""
    config._attn_implementation = None
    config._experts_implementation = None
    return config


def disable_random_skips(config: ConfigClass) -> ConfigClass:
    """Switch off what stock models leave out at random in training: whole layers, and masked stretches of sound.

    A skipped layer has no hidden state, and each process would skip others; the masks come from numpy's generator,
    which no checkpoint holds.
    """
    for name in ("layerdrop", "encoder_layerdrop", "speech_encoder_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False
    return config


def refuse_unusable_files(path: str, where: str, revision: str | None = None) -> None:
    """Refuse an adapter, and a folder, file or Hub repository whose weights are in no format that is read here.

    An adapter leads to a base model and to packages that somebody else chose; reading a pickle can run code.

    Raises:
        UserError: naming the file and the way out.
    """
    is_file = Path(path).is_file() or Path(path).suffix.lower() in (*PICKLES, ".gguf")
    with prefix_user_errors(where):
        files = [Path(path).name] if is_file else list_model_files(path, revision)
    if ADAPTER in files:
        raise UserError(
            f"{where}: {path} contains an adapter ({ADAPTER}); merge it into its base model, save "
            "the result, and name its folder"
        )
    if Path(path).is_dir():
        refuse_pointers([Path(path) / name for name in files], where)
    if any(name.endswith(".safetensors") for name in files):
        return
    if matches := [name for name in files if name.lower().endswith(".gguf")]:
        raise UserError(
            f"{where}: {path} holds its weights as GGUF ({matches[0]}), which is not supported; "
            "name the safetensors folder that it was made from"
        )
    if matches := [name for name in files if name.endswith(PICKLES)]:
        on_hub = (
            ""
            if is_file or Path(path).is_dir()
            else "look for a conversion among its pull requests on the Hub "
        )
        on_hub += "(`revision: refs/pr/NUMBER`), or " if on_hub else ""
        raise UserError(
            f"{where}: {path} holds its weights as {matches[0]}, a pickle, which can run code when it is read; "
            f"{on_hub}convert it to safetensors first (see SECURITY.md)"
        )


def refuse_pointers(files: Sequence[Path], where: str) -> None:
    """Refuse a folder that was cloned without Git LFS: it holds pointers in place of weights or vocabularies.

    Raises:
        UserError: naming the first of them.
    """
    for file in files:
        with suppress(OSError):
            if file.stat().st_size > MOST_OF_A_POINTER:
                continue
            with file.open("rb") as stream:
                if stream.read(len(LFS_POINTER)) != LFS_POINTER:
                    continue
            raise UserError(
                f"{where}: {file} is a pointer of Git LFS; fetch the files themselves with `git lfs pull`"
            )
