"""An encoder for Python users: clips in, vectors or frames out; also a module for a training loop of one's own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uniaudio.build.encoders import load_encoder as load_audio_encoder
from uniaudio.build.encoders import open_device
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.data.clips_from_python import AudioInput, Waveform, is_single_clip, iterate_clips, read_samples
from uniaudio.errors import UserError, convert_to_user_error, require_number
from uniaudio.evaluate.embedding import encode_clips
from uniaudio.model.encoders.base import AudioEncoder, find_device
from uniaudio.model.encoders.chunking import convert_to_float
from uniaudio.model.lora import merge_lora
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

LONGEST = 24 * 3600.0  # seconds of a file; encoders cut what is beyond their reach
READ_AHEAD = 10  # batches of clips that are read before the first of them is encoded, to be sorted by length


@dataclass(frozen=True)
class EncoderOutput:
    """Frames of B clips, padded; the names are those of an exported model.

    Args:
        last_hidden_state: ``[B, A, E]``, 0 beyond a clip's own frames. frame_mask: ``[B, A]``, True on real frames.
        pooler_output: ``[B, E]`` float32, the mean over each clip's real frames.
        hidden_states: all hidden states, each ``[B, A, E_l]``, when asked for; the last is ``last_hidden_state``.
    """

    last_hidden_state: Tensor
    frame_mask: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class EmbedOptions(TypedDict, total=False):
    """The options of ``Embedder.embed``, for its types alone."""

    sampling_rate: int
    layer: int | None
    batch_size: int | None
    batch_seconds: float


class Embedder(nn.Module):
    """An encoder, from ``uniaudio.load_encoder``: ``embed`` for vectors, or a module with gradients.

    Several threads may call ``embed`` at once: files are read side by side, the encoder takes one batch at a time, and
    everyone gets the same numbers as alone.

    Args:
        encoder: its low-rank updates are merged into its weights. trainable: in training mode, all weights that its
            family trains with gradients; else frozen, in eval mode.

    Example:
        >>> encoder = uniaudio.load_encoder("runs/birds", trainable=True)
        >>> waveforms = [torch.randn(16_000) / 10, torch.randn(8_000) / 10]
        >>> output = encoder(waveforms)
        >>> output.pooler_output.shape == (2, encoder.dim)
        True
        >>> output.pooler_output.square().mean().backward()

    Attributes:
        encoder: the module inside, ragged waveforms in, ragged frames out.
    """

    def __init__(self, encoder: AudioEncoder, trainable: bool = False) -> None:
        super().__init__()
        merge_lora(encoder)
        self.encoder = encoder.requires_grad_(False)
        if trainable:
            encoder.make_trainable()
        self.train(trainable)
        self._one_at_a_time = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock, which can be neither copied nor sent."""
        return {name: value for name, value in self.__dict__.items() if name != "_one_at_a_time"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._one_at_a_time = threading.Lock()

    @property
    def dim(self) -> int:
        """Width E of a vector and of a frame."""
        return self.encoder.dim

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.encoder.frame_rate

    @property
    def layer_dims(self) -> tuple[int, ...]:
        """Widths of the hidden states that ``layer`` chooses from; the last one is ``dim``."""
        return self.encoder.layer_dims

    def forward(
        self,
        waveforms: Sequence[Waveform] | Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """Encode waveforms at 16 kHz, with gradients where the mode of torch and of the weights has them.

        Args:
            waveforms: a list of ``[S_i]``, or padded ``[B, S]`` with the clips in front; floats in [-1, 1] or int16,
                on any device.
            lengths: ``[B]`` real samples of padded clips; default: all.

        Raises:
            UserError: for an empty list, an empty clip, or lengths that do not fit.
        """
        encoded = self.encoder(self.pack(waveforms, lengths), layers=output_hidden_states)
        frames, mask = encoded.frames.pad()
        pooled = encoded.frames.with_values(encoded.frames.values.float()).mean()
        states = None
        if encoded.layers is not None and output_hidden_states:
            states = tuple(layer.pad()[0] for layer in encoded.layers)
        return EncoderOutput(frames, mask, pooled, states)

    def pack(self, waveforms: Sequence[Waveform] | Tensor, lengths: Tensor | Sequence[int] | None) -> Ragged:
        """Return waveforms side by side on the encoder's device."""
        device = find_device(self.encoder)
        if isinstance(waveforms, Tensor):
            if waveforms.dim() != 2:
                raise UserError(f"waveforms: a padded tensor is [B, S], not {tuple(waveforms.shape)}")
            refuse_unfit_samples([waveforms])
            clips, longest = waveforms.shape
            counts = torch.as_tensor([longest] * clips if lengths is None else lengths)
            counts = counts.to("cpu", torch.int64)
            if (
                counts.shape != (clips,)
                or not clips
                or not 1 <= int(counts.min()) <= int(counts.max()) <= longest
            ):
                raise UserError(
                    f"lengths: {clips} clips have 1 to {longest} samples each, not {counts.tolist()}"
                )
            return Ragged.from_padded(waveforms.to(device), counts)
        if lengths is not None:
            raise UserError(
                "lengths: only a padded tensor needs them; leave them out for a list of waveforms"
            )
        with convert_to_user_error("waveforms: give a list of waveforms [S]", "`embed` takes files"):
            rows = [torch.as_tensor(waveform) for waveform in waveforms]
        if not rows or any(row.dim() != 1 or not len(row) for row in rows):
            raise UserError(
                f"waveforms: give a list of waveforms [S], not of {[tuple(row.shape) for row in rows]}"
            )
        refuse_unfit_samples(rows)
        if any(row.is_floating_point() for row in rows):  # joined as they are, int16 would not be scaled
            rows = [convert_to_float(row) for row in rows]
        return Ragged.from_rows([row.to(device) for row in rows])

    @overload
    def embed(  # type: ignore[overload-overlap]
        self,
        clips: AudioInput,
        pool: Literal["mean", "none"] = "mean",
        **options: Unpack[EmbedOptions],
    ) -> NDArray[np.float32]: ...

    @overload
    def embed(
        self,
        clips: Iterable[AudioInput],
        pool: Literal["mean"] = "mean",
        **options: Unpack[EmbedOptions],
    ) -> NDArray[np.float32]: ...

    @overload
    def embed(
        self, clips: Iterable[AudioInput], pool: Literal["none"], **options: Unpack[EmbedOptions]
    ) -> list[NDArray[np.float32]]: ...

    def embed(
        self,
        clips: Any,
        pool: Literal["mean", "none"] = "mean",
        *,
        sampling_rate: int = SAMPLE_RATE,
        layer: int | None = None,
        batch_size: int | None = None,
        batch_seconds: float = 60.0,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Encode clips of any length; a clip's result does not depend on the clips beside it, up to rounding.

        Args:
            clips: one clip or many, in a list or anything that can be iterated. A clip is a path, encoded ``bytes``, an
                open file, a waveform as numpy array or torch tensor (int16, or floats in [-1, 1]; ``[S]``, ``[S, C]``
                or ``[C, S]``), ``(waveform, rate)``, the ``audio`` of a row of ``datasets`` (decoded or not) or the
                row itself, or a decoder with ``get_all_samples`` as of ``torchcodec``. Channels are averaged, other
                rates resampled to 16 kHz.
            pool: ``mean``: the mean over each clip's real frames, ``[C, E]`` float32; ``none``: a list of ``[A_i, E]``.
                Of one clip ``[E]`` or ``[A, E]``.
            sampling_rate: of the waveforms that do not state theirs, in Hz.
            layer: a hidden state, 0 to ``len(layer_dims) - 1`` or counted from the end; default: the last frames.
            batch_size: most clips that are encoded at a time; default: as many as ``batch_seconds`` holds.
            batch_seconds: audio that is encoded at a time; less needs less memory.

        Raises:
            UserError: when a clip cannot be used, naming it.

        Example:
            >>> encoder = uniaudio.load_encoder("runs/birds")
            >>> encoder.embed("dog.flac").shape == (encoder.dim,)
            True
            >>> vectors = encoder.embed(["dog.flac", numpy.zeros(44_100)], sampling_rate=44_100, layer=-2)
            >>> vectors.shape
            (2, 64)
            >>> frames = encoder.embed(["dog.flac"], pool="none")[0]  # [A, E], frame_rate of them for a second
        """
        if pool not in ("mean", "none"):
            raise UserError(f"pool: '{pool}' is neither mean nor none")
        if layer is not None:
            self.check_layer(layer)
        if batch_size is not None:
            require_number("batch_size", batch_size)
        require_number("batch_seconds", batch_seconds, is_whole=False)
        is_single = is_single_clip(clips)
        results: list[NDArray[np.float32]] = []
        named = [("clip", clips)] if is_single else iterate_clips(clips)
        for waves in read_in_groups(named, sampling_rate, READ_AHEAD * batch_seconds):
            with self._one_at_a_time:
                results += encode_clips(
                    self.encoder, waves, batch_seconds, layer, batch_size, pooled=pool == "mean"
                )
        if is_single:
            return results[0]
        if pool == "none":
            return results
        return (
            np.stack(results)
            if results
            else np.zeros((0, self.layer_dims[-1 if layer is None else layer]), np.float32)
        )

    def check_layer(self, layer: int) -> None:
        """Refuse a layer that is none.

        Raises:
            UserError: naming the number of hidden states.
        """
        require_number("layer", layer, is_signed=True)
        states = len(self.layer_dims)
        if not -states <= layer < states:
            raise UserError(
                f"layer: {layer} is not one of the encoder's {states} hidden states, 0 to {states - 1}"
            )

    def __repr__(self) -> str:
        millions = sum(parameter.numel() for parameter in self.encoder.parameters()) / 1e6
        return (
            f"Embedder({type(self.encoder).__name__}, {millions:.1f} M parameters, {self.dim} wide, "
            f"{self.frame_rate:g} frames per second)"
        )


def refuse_unfit_samples(waveforms: Sequence[Tensor]) -> None:
    """Refuse samples whose scale is not known.

    Raises:
        UserError: naming their dtype.
    """
    for samples in waveforms:
        if not (samples.is_floating_point() or samples.dtype == torch.int16):
            raise UserError(f"waveforms: samples must be int16 or floats in [-1, 1], not {samples.dtype}")


def read_in_groups(
    clips: Iterable[tuple[str, AudioInput]], rate: int, seconds: float
) -> Iterator[list[NDArray[np.float32]]]:
    """Yield the samples of clips in groups of at least so much audio: a long list need not fit the memory."""
    group: list[NDArray[np.float32]] = []
    room = seconds * SAMPLE_RATE
    for name, clip in clips:
        group.append(read_samples(clip, rate, LONGEST, name))
        room -= len(group[-1])
        if room <= 0:
            yield group
            group, room = [], seconds * SAMPLE_RATE
    if group:
        yield group


def load_embedder(
    spec: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    trust: Trust = NO_TRUST,
    trainable: bool = False,
) -> Embedder:
    """Load an encoder as ``load_encoder`` does.

    Args:
        trust: code that the model may run.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UserError(f"dtype: give a floating-point dtype of torch, such as torch.bfloat16, not {dtype!r}")
    encoder = load_audio_encoder(spec, open_device(device), trust)
    return Embedder(encoder if dtype is None else encoder.to(dtype), trainable)


def load_encoder(
    path_or_name: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    trainable: bool = False,
    trust_remote_code: bool = False,
    allow_code: bool = False,
) -> Embedder:
    """Load an encoder to use: a run, a checkpoint, an exported folder, or a known model by folder or Hub name.

    Args:
        path_or_name: as for ``uniaudio embed``; ``RUN:ema`` takes moving averages, ``random:PATH`` random weights.
        device: default CUDA where there is one, else the CPU. dtype: of the weights, default float32.
        trainable: in training mode, all weights that its family trains with gradients; default: frozen, in eval mode.
        trust_remote_code: let Python code that comes with the model run.
        allow_code: let a run import encoder classes that its config names as ``module:Class``.

    Raises:
        UserError: when it is none of these, needs code that was not allowed, or the device is not there.

    Example:
        >>> encoder = uniaudio.load_encoder("runs/birds")
        >>> encoder.embed(["dog.flac", "rain.wav"]).shape
        (2, 64)
    """
    spec = os.path.expanduser(str(path_or_name))
    return load_embedder(spec, device, dtype, Trust(trust_remote_code, allow_code), trainable)
