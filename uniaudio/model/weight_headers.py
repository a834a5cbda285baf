"""What the headers of safetensors files say: whether the files of a model are there and whole, names and shapes of the
tensors. No weights are read.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.model.model_files import WEIGHTS, choose_model_files, list_model_files, read_json_object

INDEX = f"{WEIGHTS}.index.json"  # names the shards of weights that are in several files


def list_weight_files(folder: Path, where: str) -> list[Path]:
    """Return the safetensors files with the weights of a model.

    Raises:
        UserError: naming the key ``where``, when there are none, or one that the index of shards names is missing.
    """
    names = list_model_files(str(folder), None)
    weights = [name for name in choose_model_files(names) if name.endswith(".safetensors")]
    if WEIGHTS not in weights and INDEX in names:
        shards = read_json_object(folder / INDEX).get("weight_map", {})
        weights = sorted({*shards.values()}) if isinstance(shards, dict) else []
        if missing := [name for name in weights if not (folder / str(name)).is_file()]:
            raise UserError(
                f"{where}: {folder} lacks {missing[0]}, which its {INDEX} names; download or copy the model again"
            )
    if not weights:
        raise UserError(
            f"{where}: {folder} holds no weights (no .safetensors file); download or copy the model again, or write "
            f"random:{folder} for random weights"
        )
    return [folder / name for name in weights]


def read_tensor_headers(folder: Path, where: str) -> dict[str, Tensor]:
    """Return the tensors of a model by name, on the device ``meta``: with their shapes and without values.

    Raises:
        UserError: as ``list_weight_files``, and for a file that is damaged or shorter or longer than its header says.
    """
    tensors: dict[str, Tensor] = {}
    for file in list_weight_files(folder, where):
        with (
            convert_to_user_error(f"{where}: {file} is damaged", "download or copy it again"),
            safe_open(file, "pt") as stored,
        ):
            for name in stored.keys():  # noqa: SIM118  (safe_open is not a dict)
                shape = stored.get_slice(name).get_shape()
                tensors[name] = torch.empty(shape, device="meta")
    return tensors
