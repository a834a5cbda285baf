"""Stock audio towers of larger models, fed with the features of their own extractors."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from uniaudio.errors import UserError
from uniaudio.model.encoders.chunking import CHUNK_SECONDS
from uniaudio.model.encoders.feature_extractor import ChunkedAudioEncoder
from uniaudio.model.encoders.weights import build_with_random_weights, fill, read_tensors
from uniaudio.model.model_files import (
    RANDOM,
    disable_random_skips,
    find_model_folder,
    read_extractor_settings,
    read_model_config,
    use_stock_attention,
)
from uniaudio.types import SAMPLE_RATE


class TowerAudioEncoder(ChunkedAudioEncoder):
    """A stock audio tower: features by the checkpoint's own extractor, frames by the stock module.

    A clip's frames are those of the stock module on the clip alone. A subclass says how features reach the module, how
    many frames they give, and with ``calls_by_clip = False`` that padding under a mask changes nothing, so that clips
    go side by side and not one after the other.

    Attributes:
        shortest: samples below which silence is added.
        features: the output of the extractor that the module reads. reads_mask: and its mask beside it.
        extractor_settings: arguments of the extractor besides the waveforms and their rate.

    Args:
        model: the stock module; its parameters are trained in place.
        extractor: the stock feature extractor.
        chunk_seconds: longest stretch of sound that is encoded at once; longer clips are cut.

    Raises:
        UserError: when ``chunk_seconds`` is not above 0.
    """

    shortest = 1
    features = "input_features"
    reads_mask = False
    extractor_settings: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, model: PreTrainedModel, extractor: Any, chunk_seconds: float = CHUNK_SECONDS) -> None:
        if not chunk_seconds > 0:
            raise UserError(f"chunk_seconds: {chunk_seconds:g} is not above 0")
        super().__init__(model, round(chunk_seconds * SAMPLE_RATE), self.shortest)
        self.extractor = extractor
        self.dim = self.find_width()
        self.frame_rate = SAMPLE_RATE / self.count_stride()
        self.layer_dims = (*self.list_layer_widths(), self.dim)

    def can_recompute(self) -> bool:
        """Return whether the stock module has layers that drop their activations."""
        return any(isinstance(part, GradientCheckpointingLayer) for part in self.model.modules())

    def find_width(self) -> int:
        """Return the width of the frames."""
        return int(self.model.config.hidden_size)

    def list_layer_widths(self) -> list[int]:
        """Return the width of what every layer reads."""
        return [int(self.model.config.hidden_size)] * len(self.list_layers())

    def list_layers(self) -> list[nn.Module]:
        """Return the layers whose inputs are the hidden states, none where these have another rate than the frames."""
        return list(self.model.layers)

    def count_stride(self) -> int:
        """Return the samples from frame to frame."""
        raise NotImplementedError

    def run_model(self, waves: list[NDArray[np.float32]]) -> Tensor:
        """Return the frames ``[C, T, E]`` of chunks, at least ``count_frames`` of every one."""
        given = self.extractor(
            waves, sampling_rate=SAMPLE_RATE, return_tensors="pt", **self.extractor_settings
        )
        mask = {"attention_mask": self.move_to_device(given["attention_mask"])} if self.reads_mask else {}
        return self.model(self.move_to_device(given[self.features]), **mask).last_hidden_state

    def encode_chunks(self, waves: list[NDArray[np.float32]], layers: bool) -> list[list[Tensor]]:
        batches = [[wave] for wave in waves] if self.calls_by_clip else [waves]
        by_state: list[list[Tensor]] = [[] for _ in (self.layer_dims if layers else (self.dim,))]
        for batch in batches:
            with record_inputs(self.list_layers() if layers else ()) as inputs:
                frames = self.run_model(batch)
            for rows, state in zip(by_state, (*inputs, frames), strict=True):
                rows += list(state)
        return by_state


@contextmanager
def record_inputs(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the hidden states that layers read while the context is open."""
    inputs: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs.append(given[0] if given else named["hidden_states"])

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def count_convolved(length: int, kernel: int, stride: int, padding: int) -> int:
    """Return the positions that a convolution leaves of ``length``; ``padding`` is that of both sides together."""
    return (length + padding - kernel) // stride + 1


Encoder = TypeVar("Encoder", bound=TowerAudioEncoder)


def load_tower(
    kind: type[Encoder],
    stock: str,
    extractor: str | None,
    path: str,
    revision: str | None = None,
    seed: int = 0,
    chunk_seconds: float = CHUNK_SECONDS,
    *,
    prefixes: Sequence[str],
    sections: Sequence[str] = (),
) -> Encoder:
    """Load the tower of a full or a tower-only checkpoint in float32; of a full one nothing else is read.

    Args:
        stock, extractor: the tower and its feature extractor, see ``import_stock``; None where the encoder computes
            its features itself.
        prefixes: where checkpoints keep its tensors, the longest first.
        sections: keys under which the config of a full model has that of the tower, the outermost first.

    Raises:
        UserError: when there is no such folder, or a tensor of the tower is missing or unknown.
    """
    tower, folder = fill_tower(stock, path, revision, seed, prefixes, sections)
    features = None if extractor is None else read_extractor(extractor, folder, tower.config)
    return kind(tower, features, chunk_seconds)


def import_stock(place: str, kind: str = "modeling") -> Any:
    """Return a class by ``model:Class``, which is in ``transformers.models.MODEL.KIND_MODEL``."""
    model, _, name = place.partition(":")
    return getattr(importlib.import_module(f"transformers.models.{model}.{kind}_{model}"), name)


def fill_tower(
    stock: str,
    path: str,
    revision: str | None,
    seed: int,
    prefixes: Sequence[str],
    sections: Sequence[str],
) -> tuple[PreTrainedModel, Path]:
    """Return a stock tower in float32 with the weights of a checkpoint, and the folder of it; see ``load_tower``."""
    folder = find_model_folder(path, revision)
    kind = import_stock(stock)
    config = read_tower_config(kind, read_model_config(folder), sections)
    tower: PreTrainedModel = build_with_random_weights(lambda: kind(config), seed)
    if not path.startswith(RANDOM):
        tensors = read_tensors(folder, (*prefixes, ""))
        fill(tower, {rename_weight_norm(name): tensor for name, tensor in tensors.items()}, folder)
    return tower.float(), folder


def rename_weight_norm(name: str) -> str:
    """Return the name that torch gives the parts of a normalised weight since its release 2."""
    for older, part in (("weight_g", "original0"), ("weight_v", "original1")):
        if name.endswith(f".{older}"):
            return f"{name.removesuffix(older)}parametrizations.weight.{part}"
    return name


def read_tower_config(stock: Any, values: dict[str, Any], sections: Sequence[str]) -> Any:
    """Return the configuration of a tower out of that of a full model or its own."""
    for section in sections:
        values = values.get(section) or values
    config = stock.config_class.from_dict({k: v for k, v in values.items() if k != "model_type"})
    return disable_random_skips(use_stock_attention(config))


def read_extractor(extractor: str, folder: Path, config: Any) -> Any:
    """Return the feature extractor of a folder without its dither, or where it has none, the usual one of its kind."""
    values = read_extractor_settings(folder)
    if "sampling_rate" not in values:  # of images alone, or there are none
        values = {"feature_size": config.num_mel_bins} if hasattr(config, "num_mel_bins") else {}
        values |= {"do_normalize": False} if extractor.endswith("Wav2Vec2FeatureExtractor") else {}
    kind = import_stock(extractor, "feature_extraction")
    return kind.from_dict({**values, "dither": 0.0} if "dither" in values else values)
