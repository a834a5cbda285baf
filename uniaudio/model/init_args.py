"""Modules that know what they were made with, so that they can be described and made again elsewhere."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Stock:
    """A module of transformers: its class and configuration; the module itself is kept by whoever was given it."""

    kind: type[PreTrainedModel]
    config: Any


class InitArgsModule(nn.Module):
    """Keeps the arguments of its constructor by name, stock modules as ``Stock``.

    Attributes:
        made_with: what the constructor was given; defaults that were left out are not in it.
    """

    made_with: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__new__(cls)
        # partly: a deep copy makes an empty module first and brings the record of the old one
        given = inspect.signature(cls.__init__).bind_partial(made, *args, **kwargs).arguments
        named = {name: value for name, value in list(given.items())[1:] if name != "kwargs"}
        # past nn.Module, which takes no attributes before its own constructor ran
        object.__setattr__(made, "made_with", {name: record_argument(value) for name, value in named.items()})
        return made


def record_argument(value: Any) -> Any:
    """Return what is kept of an argument."""
    return Stock(type(value), value.config) if isinstance(value, PreTrainedModel) else value
