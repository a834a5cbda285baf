"""An encoder as plain values: the classes it is made of and what they were given."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import PretrainedConfig
from transformers.feature_extraction_utils import FeatureExtractionMixin

from uniaudio.errors import UserError
from uniaudio.model.init_args import InitArgsModule, Stock
from uniaudio.model.rebuild import STOCK, STOCK_EXTRACTORS, STOCK_MODELS

OWN = "uniaudio."


def describe_encoder(value: Any) -> Any:
    """Return JSON values from which ``rebuild`` makes the same encoder again, weights aside.

    Parts of this package are described by class and constructor arguments, stock modules by class and configuration.
    Mappings become lists of pairs, for their order matters (the first encoder is the base) and JSON writers sort keys.

    Raises:
        UserError: for code that is neither of this package nor of transformers, naming the class.
    """
    if isinstance(value, InitArgsModule):
        given = {name: describe_encoder(argument) for name, argument in value.made_with.items()}
        return {"part": locate_class(type(value), OWN), "given": given}
    if isinstance(value, Stock):
        return {
            "stock": check_listed(locate_class(value.kind, STOCK), STOCK_MODELS),
            # without a path of this machine
            "values": {**add_older_names(value.config.to_dict(), type(value.config)), "_name_or_path": ""},
            "attention": value.config._attn_implementation,
        }
    if isinstance(value, FeatureExtractionMixin):
        return {
            "extractor": check_listed(locate_class(type(value), STOCK), STOCK_EXTRACTORS),
            "values": {  # those of Gemma keep numbers as arrays
                name: setting.tolist() if isinstance(setting, np.ndarray) else setting
                for name, setting in value.to_dict().items()
            },
        }
    if isinstance(value, Mapping):
        return {"mapping": [[name, describe_encoder(item)] for name, item in value.items()]}
    if isinstance(value, list | tuple):
        return [describe_encoder(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"export: {type(value).__name__} cannot be described in plain values")


def add_older_names(values: Mapping[str, Any], kind: type[PretrainedConfig]) -> dict[str, Any]:
    """Return the values of a configuration with those of rotary positions under the names of transformers 4 as well.

    It does not know ``rope_parameters`` and would go on with the defaults of the class, in silence.

    Args:
        kind: the class, which must read the same from the result.
    """
    rope = values.get("rope_parameters")
    if not rope:
        return {**values}
    full = rope.get("full_attention", rope)
    older = {
        "rope_theta": full.get("rope_theta"),
        "rope_local_base_freq": rope.get("sliding_attention", {}).get("rope_theta"),
        "partial_rotary_factor": full.get("partial_rotary_factor"),
        "rope_scaling": {key: value for key, value in full.items() if key != "rope_theta"}
        if full.get("rope_type", "default") != "default"
        else None,
    }
    result = {**values}
    for name, value in older.items():
        added = {**result, name: value}
        if value is not None and kind.from_dict(copy.deepcopy(added)).rope_parameters == rope:
            result = added
    return result


def locate_class(kind: type, root: str) -> str:
    """Return ``module:Class``.

    Raises:
        UserError: when the class is somebody's own.
    """
    if not kind.__module__.startswith(root):
        raise UserError(
            f"export: the encoder uses the class {kind.__name__} of {kind.__module__}, which "
            "belongs neither to uniaudio nor to transformers; export a run without it"
        )
    return f"{kind.__module__}:{kind.__qualname__}"


def check_listed(named: str, known: tuple[str, ...]) -> str:
    """Return the written name of a class, when it can be read back.

    Raises:
        UserError: when no exported encoder may name it.
    """
    if named not in known:
        raise UserError(
            f"export: the encoder uses {named}, which an exported encoder cannot contain; known: "
            f"{', '.join(one.partition(':')[2] for one in known)}"
        )
    return named


def find_parts(described: Any) -> set[str]:
    """Return the ``module:Class`` of all parts in a description."""
    if isinstance(described, list):
        return set().union(*map(find_parts, described))
    if not isinstance(described, dict):
        return set()
    parts = {described["part"]} if isinstance(described.get("part"), str) else set()
    return parts.union(*map(find_parts, described.values()))
