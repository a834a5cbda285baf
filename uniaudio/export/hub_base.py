"""What exported models share: made from a description, loaded strictly, with constants that keep their precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, __version__

from uniaudio.model.encoders.base import AudioEncoder


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


def copy_constants(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of the buffers, by name, that are computed and not stored."""
    stored = module.state_dict()
    return {name: buffer.clone() for name, buffer in module.named_buffers() if name not in stored}


class RebuiltModel(PreTrainedModel):
    """A model of transformers whose parts ``rebuild`` made.

    Attributes:
        parts: the classes that its description may name. new_heads: beginnings of the names of tensors that a file
            need not have, and that a model without such a head leaves in the file.
        constants: the computed buffers by name, in float32 on the CPU.
    """

    parts: ClassVar[Mapping[str, type[nn.Module]]] = {}
    new_heads: ClassVar[tuple[str, ...]] = ()
    constants: dict[str, Tensor]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as every model of transformers is loaded, and put the computed constants back, which that empties.

        Raises:
            ValueError: when the tensors in the file are not those of the model. transformers itself would go on with
                whatever is in memory.
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
                f"{len(wrong)} tensors are missing or unknown, for example {wrong[0]}: the file is not that of the "
                f"model, or transformers {__version__} names them differently"
            )
        loaded.restore_constants()
        return (loaded, loading) if with_info else loaded

    def restore_constants(self) -> None:
        """Set the computed buffers, in the precision that they were computed in, where the model is."""
        for name, value in self.constants.items():
            path, _, last = name.rpartition(".")
            owner = self.get_submodule(path)
            owner._buffers[last] = value.to(getattr(owner, last).device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast the model; ``half()`` and ``bfloat16()`` leave the constants in float32."""
        result = super()._apply(fn, recurse)
        if "constants" in self.__dict__:
            self.restore_constants()
        return result

    def _init_weights(self, module: Any) -> None:
        """Leave everything as it is: all weights are in the file."""
