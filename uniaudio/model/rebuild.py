"""From a description in plain values to the encoder it describes, without its weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

STOCK = "transformers."  # nothing else is imported by a name that stands in a file


def rebuild(described: Any, find: Callable[[str], type]) -> Any:
    """Make the object that ``export.describe`` described: the inverse, weights aside.

    Args:
        described: plain values; a mapping with ``part``, ``stock``, ``extractor`` or ``mapping`` stands for an object.
        find: the class of a ``part`` by its written name, ``module:Class``.

    Raises:
        ValueError: when a stock class is not one of transformers.
    """
    if isinstance(described, list):
        return [rebuild(item, find) for item in described]
    if not isinstance(described, dict):
        return described
    if "part" in described:
        given = {name: rebuild(value, find) for name, value in described["given"].items()}
        return find(described["part"])(**given)
    if "stock" in described:
        config = stock_class(described["config"]).from_dict(described["values"])
        config._attn_implementation = described["attention"]
        return stock_class(described["stock"])(config)
    if "extractor" in described:
        return stock_class(described["extractor"]).from_dict(described["values"])
    return {name: rebuild(value, find) for name, value in described["mapping"]}


def stock_class(place: str) -> Any:
    """Return a class of transformers by ``module:Class``.

    Raises:
        ValueError: when the module is not one of transformers.
    """
    module, _, name = place.partition(":")
    if not module.startswith(STOCK):
        raise ValueError(f"{place} is no class of transformers")
    return getattr(importlib.import_module(module), name)
