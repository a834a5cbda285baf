"""Checkpoints, read: plain tensors and JSON, and the weights that they were trained on top of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from uniaudio.console import warn_once
from uniaudio.errors import UserError, convert_to_user_error, mask_values
from uniaudio.model.base_identity import CODE, CONTENT, FILES, HASHES
from uniaudio.train.checkpoint.integrity import BASES, CONFIG, EMA, MODEL, OPTIMIZER, STATE, find_damage
from uniaudio.train.engines.base import MOMENTS


@dataclass(frozen=True)
class Checkpoint:
    """What was saved. ``model`` holds the trained tensors only; ``bases`` names what they were trained on top of."""

    path: Path
    model: dict[str, Tensor]
    state: dict[str, Any]
    bases: dict[str, dict[str, str]]


def load_checkpoint(path: Path, ema: bool = False, verify: bool = True) -> Checkpoint:
    """Read a checkpoint folder: plain tensors and JSON, nothing that could run code.

    Args:
        ema: take the moving averages in place of the trained tensors.
        verify: compare what is read with its checksums; without, for a checkpoint that was compared just now.

    Raises:
        UserError: when it is not a whole checkpoint, is damaged, or holds no averages.
    """
    read = (MODEL, STATE, BASES, CONFIG, *((EMA,) if ema else ()))
    if damage := find_damage(path, read, checksums=verify):
        raise UserError(f"{path} is not a complete checkpoint ({damage}); use another one, or copy it again")
    if ema and not (path / EMA).is_file():
        raise UserError(f"{path} contains no moving averages; set stages[].continual.ema to train with them")
    with convert_to_user_error(f"checkpoint {path} cannot be read"):
        model = load_file(path / MODEL)
        if ema:
            model |= load_file(path / EMA)
        state, bases = (json.loads((path / name).read_text()) for name in (STATE, BASES))
        return Checkpoint(path=path, model=model, state=dict(state), bases=dict(bases))


class MomentFiles:
    """The moments of AdamW in a checkpoint, read tensor by tensor.

    Raises:
        UserError: when a file of them cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = {}
        with convert_to_user_error(f"checkpoint {path} cannot be read"):
            for file in sorted(path.glob(f"{OPTIMIZER}-*.safetensors")):
                with safe_open(file, "pt") as stored:
                    self.place.update(dict.fromkeys(stored.keys(), file))

    def has(self, name: str) -> bool:
        """Return whether there are moments of a parameter; there are none where it never had a gradient."""
        return any(f"{name}|{moment}" in self.place for moment in MOMENTS)

    def get(self, name: str, moment: str) -> Tensor:
        """Return one moment of one parameter, on the CPU.

        Raises:
            UserError: when the checkpoint does not hold it.
        """
        key = f"{name}|{moment}"
        if key not in self.place:
            raise UserError(f"{self.path} contains no {moment} of {name}; start a new run from its weights")
        with safe_open(self.place[key], "pt") as stored:
            return stored.get_tensor(key)


def check_bases(checkpoint: Checkpoint, bases: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse trained tensors on top of another encoder or decoder than they were trained with; report changed code.

    Code is not refused: nobody can tell a comment or the repair of a crash from another computation, and a run whose
    model's code had to be adapted to a library could be used no more.

    Raises:
        UserError: naming both.
    """
    for part, saved in checkpoint.bases.items():
        now = bases.get(part, {})
        difference = find_difference(saved, now)
        if difference == FILES:
            raise UserError(
                f"{checkpoint.path} was trained with other files of the {part} {now['path']}: its feature extractor, "
                "its tokenizer or a part of its weights has changed since; restore the folder, or start a new run"
            )
        if difference:
            raise UserError(
                f"{checkpoint.path} was trained with the {part} {describe_weights(saved)}, "
                f"but the config names {describe_weights(now)}"
            )
        if CODE in saved and CODE in now and saved[CODE] != now[CODE]:
            what = f"the code of the {part} {now['path']} has changed since {checkpoint.path} was trained"
            warn_once(mask_values(f"{what}; the present code is used"))


def find_difference(saved: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return the key by which two identities of ``identify_base`` differ, an empty text where they are of one model.

    The hashes that both have are compared; where there are none, path and revision. So a checkpoint that was written
    before ``files_sha256`` is compared by ``sha256`` alone, and what goes on from it holds both.
    """
    keys = [key for key in HASHES if key in saved and key in now] or ["path", "revision"]
    return next((key for key in keys if saved.get(key) != now.get(key)), "")


def describe_weights(base: Mapping[str, str], key: str = CONTENT) -> str:
    """Return the path of a base and the beginning of one of its hashes, or of its commit."""
    return f"{base.get('path', 'nothing')} ({(base.get(key) or base.get('revision') or 'unknown')[:12]})"
