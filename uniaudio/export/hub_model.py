"""An exported encoder as a model of transformers: padded waveforms and a mask in, padded frames and a mask out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from uniaudio.export.hub_base import RebuiltModel, construct_plainly, copy_constants, find_graph_tool
from uniaudio.export.hub_config import UniaudioConfig
from uniaudio.export.hub_inputs import pack_waveforms
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.rebuild import rebuild

# The classes that a description may name, by ``module:Class``; an exported folder has those of its encoder here.
PARTS: Mapping[str, type[nn.Module]] = {}
HEAD = "classifier."  # tensors of the head for classification


@dataclass
class UniaudioOutput(ModelOutput):
    """What the model returns.

    Args:
        last_hidden_state: frames ``[B, A, E]``, 0 beyond a clip's own. frame_mask: ``[B, A]``, True on real frames.
        pooler_output: ``[B, E]`` float32, the mean over each clip's real frames.
        hidden_states: all hidden states, each ``[B, A, E_l]``, when asked for; ``config.hidden_sizes`` has their
            widths, which differ in fused encoders. The last one is ``last_hidden_state``.
    """

    last_hidden_state: Tensor | None = None
    frame_mask: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class PaddedModel(nn.Module):
    """An encoder whose graph does not depend on the lengths of the clips; it shares the weights of its model."""

    def __init__(self, encoder: AudioEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return frames ``[B, A, E]``, 0 beyond a clip's own, their mask and the mean frames ``[B, E]`` in float32.

        Args:
            input_values: ``[B, S]`` float in [-1, 1] at 16 kHz. attention_mask: ``[B, S]``, 1 on real samples, of which
                every clip has one at least, and padding comes after them.

        Raises:
            ValueError: for encoders that have no such graph, and under ``torch.jit.trace``.
        """
        if find_graph_tool() == "torch.jit.trace":
            raise ValueError("torch.jit.trace: it cannot follow this module; use torch.export.export")
        real = attention_mask.bool()
        frames, counts = self.encoder.forward_padded(input_values.float() * real, real.sum(1))
        mask = torch.arange(frames.shape[1], device=frames.device) < counts[:, None]
        frames = torch.where(mask[..., None], frames, 0)
        return frames, mask, frames.float().sum(1) / counts[:, None]


class UniaudioModel(RebuiltModel):
    """One audio encoder, single, fused or routed, as it was trained; a clip's frames do not depend on its batch.

    ``encoder.num_frames(samples)`` tells how many frames a clip has.
    """

    config_class = UniaudioConfig
    main_input_name = "input_values"
    base_model_prefix = "uniaudio"
    supports_gradient_checkpointing = True
    parts = PARTS
    new_heads = (HEAD,)
    _supports_sdpa = True

    def __init__(self, config: UniaudioConfig) -> None:
        if config._attn_implementation not in (None, "sdpa"):
            raise ValueError(
                f"attn_implementation: {config._attn_implementation} is not available: packed clips "
                "use scaled_dot_product_attention (sdpa), which returns no attention weights; use "
                "sdpa, without output_attentions"
            )
        super().__init__(config)
        with construct_plainly():
            self.encoder = rebuild(config.encoder, PARTS.__getitem__)
        self.constants = copy_constants(self)
        self.encoder.to(torch.get_default_dtype())
        self._no_split_modules = [type(self.encoder).__name__]  # its parts read each other's weights
        self.gradient_checkpointing = False
        self.tensor_names = frozenset(self.state_dict())
        self.post_init()

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] | None = None, **_: Any
    ) -> None:
        """Let the layers make their activations again in the backward, as gradient checkpointing asks for.

        Raises:
            ValueError: when the layers of this encoder are not called one by one.
        """
        if enable and not self.encoder.can_recompute():
            raise ValueError(
                f"gradient checkpointing: an encoder of the model type {self.encoder.model_type} cannot recompute its "
                "layers"
            )
        self.recompute_encoder(enable)
        self.gradient_checkpointing = enable

    def enable_input_require_grads(self) -> None:
        """Do nothing: gradient checkpointing works here without inputs that have gradients."""

    def disable_input_require_grads(self) -> None:
        """Do nothing, as ``enable_input_require_grads``."""

    def num_frames(self, samples: int) -> int:
        """Return the frames of a clip of so many samples at 16 kHz."""
        return self.encoder.num_frames(samples)

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor | int, **_: Any) -> Tensor | int:
        """Return the frames of clips of so many samples, a tensor for a tensor."""
        if isinstance(input_lengths, int):
            return self.num_frames(input_lengths)
        counts = [self.num_frames(n) for n in input_lengths.flatten().tolist()]
        return torch.tensor(counts, device=input_lengths.device).view(input_lengths.shape)

    def _get_feature_vector_attention_mask(
        self, feature_vector_length: int, attention_mask: Tensor, **_: Any
    ) -> Tensor:
        """Return the mask ``[B, feature_vector_length]`` of the frames for a mask ``[B, S]`` of the samples."""
        counts = self._get_feat_extract_output_lengths(attention_mask.sum(-1).long())
        assert isinstance(counts, Tensor)
        return torch.arange(feature_vector_length, device=attention_mask.device) < counts[:, None]

    def make_padded(self) -> PaddedModel:
        """Return the encoder as a module of static shapes, for ``torch.export`` and ``torch.compile``."""
        return PaddedModel(self.encoder)

    def forward(
        self,
        input_values: Any = None,
        attention_mask: Any = None,
        lengths: Any = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> UniaudioOutput | tuple[Any, ...]:
        """Encode waveforms.

        Args:
            input_values: ``[B, S]`` at 16 kHz, or one clip ``[S]``, or a list of clips, int16, or float in [-1, 1];
                padding comes after a clip. See ``pack_waveforms``.
            attention_mask: ``[B, S]``, 1 on real samples. lengths: ``[B]`` real samples, instead of a mask. With
                neither, all samples are real.
            output_hidden_states, return_dict: None for what the configuration says.
            others: arguments of other models, which libraries pass as None.

        Raises:
            ValueError: for waveforms that ``pack_waveforms`` refuses, arguments that mean nothing here, and where a
                graph is made of it.
        """
        if (tool := find_graph_tool()) is not None:
            raise ValueError(
                f"{tool}: the encoder reads the lengths of clips on the host, and a graph would keep those of its "
                "example; use torch.export.export(model.make_padded(), ...)"
            )
        if unknown := [name for name, value in others.items() if value is not None and value is not False]:
            raise ValueError(
                f"{unknown[0]}: the encoder has no such argument; it takes input_values with attention_mask or "
                "lengths, output_hidden_states and return_dict"
            )
        audio = pack_waveforms(input_values, attention_mask, lengths, self.device)
        with_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        encoded = self.encoder(audio, layers=with_states)
        frames, mask = encoded.frames.pad()
        pooled = encoded.frames.with_values(encoded.frames.values.float()).mean()
        states = None
        if with_states:
            assert encoded.layers is not None
            states = tuple(layer.pad()[0] for layer in encoded.layers)
        output = UniaudioOutput(frames, mask, pooled, states)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


class UniaudioForAudioClassification(UniaudioModel):
    """The encoder with a linear map of each clip's mean frame to ``config.num_labels`` logits.

    The map of an encoder that was never trained with one is drawn anew.
    """

    # the loss is a mean over clips: the Trainer divides it by the accumulated batches
    accepts_loss_kwargs = False

    def __init__(self, config: UniaudioConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.tensor_names = frozenset(self.state_dict())
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Draw the map where the file has none."""
        if module is self.__dict__["_modules"].get("classifier"):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def freeze_base_model(self) -> None:
        """Train the map alone."""
        self.encoder.requires_grad_(False)

    def forward(
        self,
        input_values: Any = None,
        attention_mask: Any = None,
        lengths: Any = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        **others: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify clips; arguments as those of ``UniaudioModel``.

        Args:
            labels: ``[B]`` classes, or ``[B, num_labels]`` floats of 0 and 1 where a clip has several, or values where
                ``config.problem_type`` is regression.
        """
        output = super().forward(input_values, attention_mask, lengths, output_hidden_states, True, **others)
        assert isinstance(output, UniaudioOutput)
        assert output.pooler_output is not None
        logits = self.classifier(output.pooler_output.to(self.classifier.weight.dtype)).float()
        loss = None if labels is None else self.compute_loss(logits, labels)
        result = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits ``[B, num_labels]`` over clips, see ``forward``."""
        if self.config.problem_type == "regression":
            return F.mse_loss(logits, labels.to(logits.dtype).view_as(logits))
        if labels.is_floating_point():
            return F.binary_cross_entropy_with_logits(logits, labels)
        return F.cross_entropy(logits, labels)
