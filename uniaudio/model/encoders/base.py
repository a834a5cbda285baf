"""The contract of every audio encoder: one, fused or routed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from uniaudio.errors import UserError
from uniaudio.model.init_args import InitArgsModule, Stock
from uniaudio.ragged import Ragged
from uniaudio.types import Encoded

Encoder = TypeVar("Encoder", bound=nn.Module)  # typing.Self is not read by the run-time checks of the tests


class NoFramesError(UserError):
    """A model that cannot be an encoder: it makes no frames of a clip."""


class AudioEncoder(InitArgsModule):
    """Ragged waveforms in, ragged frames out; a clip's frames do not depend on the clips beside it.

    Attributes:
        dim: width E of a frame. frame_rate: frames per second.
        reach: seconds of sound that one frame can see; longer clips are cut into chunks of it. None: all of the clip.
        takes_masks: whether it has a spectrogram to mask. takes_prompts: whether it reads the question about a clip.
        auxiliary: names of the losses it adds in training.
        recomputes: its layers drop their activations after the forward and make them again in the backward.
        layer: where it calls its layers one by one, the function that applies one; what ``compile_layers`` replaces.
        layer_dims: widths of the hidden states that ``layers`` returns, the last one is ``dim``.
        calls_by_clip: whether it calls a module once for each clip or chunk, so that ranks call it unequally often,
            which ZeRO-3 does not allow; False where every module is called once for a batch.
        follows_time: whether the frames of a clip lie in the order of time; not where several streams of them stand one
            after the other.
        fixed_parameters: names of the parameters that its family never trains, such as Whisper's sinusoids.
        initial_sha256: of a class that a config names as ``module:Class``, the hash of its tensors as it was made.
    """

    dim: int
    frame_rate: float
    reach: float | None
    takes_masks: bool = False
    takes_prompts: bool = False
    auxiliary: tuple[str, ...] = ()
    recomputes: bool = False
    calls_by_clip: bool = True
    follows_time: bool = True
    layer_dims: tuple[int, ...]
    fixed_parameters: Sequence[str] = ()
    initial_sha256: str = ""

    @property
    def model_type(self) -> str:
        """The model type of the stock model that it is made of, several of a fused encoder; else the class."""
        given = [each.made_with for each in self.modules() if isinstance(each, InitArgsModule)]
        stock = [value for values in given for value in values.values() if isinstance(value, Stock)]
        return ", ".join(dict.fromkeys(one.config.model_type for one in stock)) or type(self).__name__

    def keep_fixed_parameters(self) -> None:
        """Take the parameters that have no gradient now, as the family made them, for those that are never trained."""
        self.fixed_parameters = [name for name, each in self.named_parameters() if not each.requires_grad]

    def make_trainable(self) -> None:
        """Let all parameters have gradients, but for those that the families of the encoders inside never train."""
        self.requires_grad_(True)
        for part in self.modules():
            if isinstance(part, AudioEncoder):
                for name in part.fixed_parameters:
                    part.get_parameter(name).requires_grad_(False)

    def train(self: Encoder, mode: bool = True) -> Encoder:
        """Set the training mode, but not of batch norms: batch statistics would make a clip depend on the others."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def num_frames(self, samples: int) -> int:
        """Return the number of frames that a clip of ``samples`` at 16 kHz gives; at least one."""
        raise NotImplementedError

    @classmethod
    def map_older_names(cls) -> dict[str, str]:
        """Return patterns for names of its tensors and what the installed transformers, if older, writes instead."""
        return {}

    def can_recompute(self) -> bool:
        """Return whether ``recompute`` would change anything, as where it calls its layers one by one."""
        return callable(vars(self).get("layer"))

    def recompute(self) -> None:
        """Let the layers recompute, for the rest of this encoder's life."""
        self.recomputes = True

    def forward(self, audio: Ragged, layers: bool = False, masks: Tensor | None = None) -> Encoded:
        """Encode int16 or float samples of C clips to frames ``[A, E]``, ``num_frames`` of every clip.

        Args:
            layers: also return every hidden state, each with the lengths of the frames; the last are the frames.
            masks: bands of the spectrogram to hide, see ``mel_masks.mask_mel``; for encoders that take them.
        """
        if not len(audio):
            return self.encode_no_clips(layers)
        counts = audio.map_lengths(self.num_frames)
        states = tuple(Ragged(state, counts) for state in self.encode_clips(audio, layers, masks))
        return Encoded(states[-1], states if layers else None)

    def encode_clips(self, audio: Ragged, layers: bool, masks: Tensor | None) -> Sequence[Tensor]:
        """Return the frames ``[A, E]`` of one clip or more, see ``forward``.

        With ``layers`` those of each hidden state, else of the last one alone.
        """
        raise NotImplementedError

    def encode_no_clips(self, layers: bool) -> Encoded:
        """Return what ``forward`` gives without clips: no frames, in every hidden state that is asked for."""
        like = next(self.parameters(), torch.empty(0, device=find_device(self)))
        none = torch.zeros(0, dtype=torch.int64)
        states = tuple(
            Ragged(torch.zeros(0, width, dtype=like.dtype, device=like.device), none)
            for width in self.layer_dims
        )
        return Encoded(states[-1], states if layers else None)

    def forward_padded(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode padded clips by one graph for all lengths, to frames ``[C, A, E]`` and their numbers ``[C]``.

        Args:
            samples: ``[C, S]`` float32, 0 beyond a clip's own. lengths: ``[C]`` int64 on their device, at least 1 each.

        Raises:
            ValueError: for encoders that have no such graph.
        """
        raise ValueError(
            f"padded: {type(self).__name__} has no forward of padded clips; Whisper and wav2vec 2.0 do"
        )


def is_trained(module: nn.Module) -> bool:
    """Return whether any parameter takes a gradient."""
    return any(p.requires_grad for p in module.parameters())


def freeze_mask_embedding(model: nn.Module) -> None:
    """Freeze what stands for masked frames in pre-training, which is not done here."""
    for name, parameter in model.named_parameters():
        if name.endswith("masked_spec_embed"):
            parameter.requires_grad_(False)


def find_device(encoder: AudioEncoder) -> torch.device:
    """Return where an encoder is; one without parameters and buffers is on the CPU."""
    return next(chain(encoder.parameters(), encoder.buffers()), torch.empty(0)).device
