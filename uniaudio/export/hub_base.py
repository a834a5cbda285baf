"""What exported models share: made from a description, loaded strictly, with constants that keep their precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, __version__

from uniaudio.model.encoders.base import AudioEncoder

DECODER = "language_model."  # beginning of the names of its parameters
RECOMPUTES = "recomputes"  # under which a pickled model keeps whether layers recompute


@contextlib.contextmanager
def construct_plainly() -> Iterator[None]:
    """Make modules on the CPU and in float32, whatever transformers has set while it loads.

    Constants such as filter banks are computed when a module is made. On the device ``meta`` they would be lost, in
    bfloat16 rounded.
    """
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(kind)


def find_graph_tool() -> str | None:
    """Return what is making one graph of a forward pass, None where nothing is."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return "torch.jit.trace"
    is_exporting = getattr(torch.compiler, "is_exporting", None)  # which older releases do not have
    return "torch.export" if is_exporting is not None and is_exporting() else None


def find_decoder_places(places: Any) -> Any:
    """Return where the parts of a decoder go, by their names in it, from the ``device_map`` of the whole model."""
    if not isinstance(places, Mapping):
        return places
    # with a dot, so that of the decoder itself no name is left
    parts = {f"{name}.": place for name, place in places.items() if name}
    inside = {name[len(DECODER) : -1]: place for name, place in parts.items() if name.startswith(DECODER)}
    return {"": places[""]} if "" in places and not inside else inside


def copy_constants(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of the buffers, by name, that are computed and not stored."""
    stored = module.state_dict()
    return {name: buffer.clone() for name, buffer in module.named_buffers() if name not in stored}


def restore_model(
    kind: type[RebuiltModel], tensors: Mapping[str, Tensor], frozen: Sequence[str], plain: Mapping[str, Any]
) -> RebuiltModel:
    """Make a model again from what ``RebuiltModel.__reduce_ex__`` keeps of it.

    Args:
        tensors: its state. frozen: names of parameters without gradient. plain: its other attributes.
    """
    model = kind(plain["config"])
    model.make_missing_parts()
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if plain[RECOMPUTES]:
        model._set_gradient_checkpointing()
    model.__dict__.update({name: value for name, value in plain.items() if name != RECOMPUTES})
    model.restore_constants()
    return model.train(model.training)


class RebuiltModel(PreTrainedModel):
    """A model of transformers whose parts ``rebuild`` made.

    Attributes:
        encoder: ragged waveforms to ragged frames.
        parts: the classes that its description may name. new_heads: beginnings of the names of tensors that a file
            need not have, and that a model without such a head leaves in the file.
        constants: the computed buffers by name, in float32 on the CPU.
        tensor_names: those of its state, as it was made.
    """

    encoder: AudioEncoder
    parts: ClassVar[Mapping[str, type[nn.Module]]] = {}
    new_heads: ClassVar[tuple[str, ...]] = ()
    constants: dict[str, Tensor]
    tensor_names: frozenset[str]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as every model of transformers is loaded, and put the computed constants back, which that empties.

        Raises:
            ValueError: when the tensors in the file are not those of the model, where transformers itself would go on
                with whatever is in memory, and when the encoder is to be offloaded.
        """
        older: dict[str, str] = {}
        for part in cls.parts.values():
            older |= part.map_older_names() if issubclass(part, AudioEncoder) else {}
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"key_mapping": older} if older else {}
        loaded, loading = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        names = {*loading["missing_keys"], *loading["unexpected_keys"]}
        if wrong := sorted(name for name in names if not name.startswith(cls.new_heads)):
            raise ValueError(
                f"{len(wrong)} tensors are missing or unknown, for example {wrong[0]}: the file "
                f"does not belong to this model, or transformers {__version__} names its tensors "
                "differently"
            )
        # without a device_map, tensors without values belong to an outer model, which is being loaded around this one
        is_spread = kwargs.get("device_map") is not None
        empty = [name for name, value in loaded.named_parameters() if value.is_meta]
        if is_spread and any(not name.startswith(DECODER) for name in empty):
            raise ValueError(
                "device_map: the encoder cannot be offloaded, because its parts read each other's "
                "weights; keep encoder and adapter on one device, for example with a device_map by "
                "name"
            )
        loaded.restore_constants()
        return (loaded, loading) if with_info else loaded

    def restore_constants(self) -> None:
        """Set the computed buffers, in the precision that they were computed in, where the model is."""
        for name, value in self.constants.items():
            path, _, last = name.rpartition(".")
            owner = self.get_submodule(path)
            owner._buffers[last] = value.to(getattr(owner, last).device)

    def make_missing_parts(self) -> None:
        """Make the parts, without their weights, that the constructor leaves out."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the description and the tensors.

        Modules with a parametrized weight, as WavLM has, refuse it, and so do the hooks with which transformers keeps
        hidden states. A model that others put layers into, as peft does, is pickled as every module.
        """
        tensors = self.state_dict()
        if tensors.keys() != self.tensor_names:
            return super().__reduce_ex__(protocol)
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        plain = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        plain[RECOMPUTES] = any(getattr(part, "gradient_checkpointing", False) for part in self.modules())
        return restore_model, (type(self), tensors, frozen, plain)

    def recompute_encoder(self, enable: bool) -> None:
        """Let the layers of the encoder make their activations again in the backward, or no longer."""
        if enable:
            self.encoder.recompute()
            return
        for module in self.encoder.modules():
            if isinstance(module, AudioEncoder):
                module.recomputes = False
            elif isinstance(module, PreTrainedModel) and module.supports_gradient_checkpointing:
                module._set_gradient_checkpointing(enable=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast the model; ``half()`` and ``bfloat16()`` leave the constants in float32."""
        result = super()._apply(fn, recurse)
        if "constants" in self.__dict__:
            self.restore_constants()
        return result

    def _init_weights(self, module: Any) -> None:
        """Leave everything as it is: all weights are in the file."""
