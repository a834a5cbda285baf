"""An exported encoder as a model of transformers: padded waveforms and a mask in, padded frames and a mask out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, __version__
from transformers.utils import ModelOutput

from uniaudio.export.hub_config import UniaudioConfig
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.rebuild import rebuild
from uniaudio.ragged import Ragged

# The classes that a description may name, by ``module:Class``; an exported folder has those of its encoder here.
PARTS: Mapping[str, type[nn.Module]] = {}


@dataclass
class UniaudioOutput(ModelOutput):
    """What the model returns.

    Args:
        last_hidden_state: frames ``[B, A, E]``, 0 beyond a clip's own. frame_mask: ``[B, A]``, True on real frames.
        pooler_output: ``[B, E]`` float32, the mean over each clip's real frames.
        hidden_states: all hidden states, each ``[B, A, E_l]``, when asked for; the last is ``last_hidden_state``.
    """

    last_hidden_state: Tensor | None = None
    frame_mask: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


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


class UniaudioModel(PreTrainedModel):
    """One audio encoder, single, fused or routed, as it was trained; a clip's frames do not depend on its batch.

    Attributes:
        encoder: works on ragged waveforms without padding; ``num_frames(samples)`` tells how many frames a clip has.
    """

    config_class = UniaudioConfig
    main_input_name = "input_values"
    base_model_prefix = "uniaudio"

    def __init__(self, config: UniaudioConfig) -> None:
        super().__init__(config)
        with construct_plainly():
            self.encoder: AudioEncoder = rebuild(config.encoder, PARTS.__getitem__)
        self.constants = copy_constants(self)
        self.encoder.to(torch.get_default_dtype())
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as every model of transformers is loaded, and put the computed constants back, which that empties.

        Raises:
            ValueError: when the tensors in the file are not those of the model. transformers itself would go on with
                whatever is in memory.
        """
        older: dict[str, str] = {}
        for part in PARTS.values():
            older |= part.map_older_names() if issubclass(part, AudioEncoder) else {}
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"key_mapping": older} if older else {}
        loaded, loading = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if wrong := sorted({*loading["missing_keys"], *loading["unexpected_keys"]}):
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

    def _init_weights(self, module: Any) -> None:
        """Leave everything as it is: all weights are in the file."""

    def num_frames(self, samples: int) -> int:
        """Return the frames of a clip of so many samples at 16 kHz."""
        return self.encoder.num_frames(samples)

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        lengths: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **_: Any,
    ) -> UniaudioOutput | tuple[Any, ...]:
        """Encode padded waveforms.

        Args:
            input_values: ``[B, S]`` at 16 kHz, int16, or float in [-1, 1]; padding comes after the clip.
            attention_mask: ``[B, S]``, 1 on real samples. lengths: ``[B]`` real samples, instead of a mask. With
                neither, all samples are real.

        Raises:
            ValueError: when real samples come after padding, or a clip has none.
        """
        audio = Ragged.from_padded(input_values, count_samples(input_values, attention_mask, lengths))
        encoded = self.encoder(audio, layers=output_hidden_states)
        frames, mask = encoded.frames.pad()
        pooled = encoded.frames.with_values(encoded.frames.values.float()).mean()
        states = None
        if output_hidden_states:
            assert encoded.layers is not None
            states = tuple(layer.pad()[0] for layer in encoded.layers)
        output = UniaudioOutput(frames, mask, pooled, states)
        return output if return_dict else output.to_tuple()


def count_samples(input_values: Tensor, attention_mask: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return the number of real samples of every clip, ``[B]`` int64 on the CPU.

    Raises:
        ValueError: when real samples come after padding, or a clip has none.
    """
    if lengths is not None:
        counts = lengths.to("cpu", torch.int64)
    elif attention_mask is None:
        counts = torch.full((len(input_values),), input_values.shape[1], dtype=torch.int64)
    else:
        real = attention_mask.bool()
        if (real[:, 1:] & ~real[:, :-1]).any():
            raise ValueError("attention_mask: padding must come after the clip, not before it")
        counts = real.sum(1).cpu()
    if len(counts) and (int(counts.min()) < 1 or int(counts.max()) > input_values.shape[1]):
        raise ValueError(f"a clip has 1 to {input_values.shape[1]} samples here, found {counts.tolist()}")
    return counts
