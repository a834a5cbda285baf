"""Encoder, adapter and decoder: a batch in, summed losses out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from uniaudio.errors import UserError
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.decoding import generate_rows
from uniaudio.model.depth_injection import widen_rows
from uniaudio.model.encoders.base import AudioEncoder, is_trained
from uniaudio.model.float32 import raise_to_float32
from uniaudio.model.label_likelihoods import label_log_likelihoods
from uniaudio.model.shared_prefix import find_key_places
from uniaudio.model.tree_attention import Branches
from uniaudio.ragged import Ragged
from uniaudio.types import Batch, Encoded, LossSum

SILENCE = 1600  # samples that stand in for a batch without any


@dataclass(frozen=True)
class ReadPrompts:
    """What a model keeps of the prompts of a batch, so that several questions of it encode the clips once.

    Args:
        text: the decoder's input rows ``[T, D]``.
        cross_frames: the frames that every prompt attends to by cross attention.
    """

    text: Ragged
    cross_frames: Ragged | None = None


class AudioLM(nn.Module):
    """An audio encoder that speaks to a language model through an adapter.

    Args:
        decoder: a ``TextDecoder``.
        label_chunk: labelled positions whose logits exist at the same time.
    """

    def __init__(
        self, encoder: AudioEncoder, adapter: Adapter, decoder: Any, label_chunk: int = 2048
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.decoder = decoder
        self.label_chunk = label_chunk
        if adapter.decoder_layers:
            decoder.inject_after(adapter.decoder_layers)

    def train(self, mode: bool = True) -> AudioLM:
        """Switch adapter and trained encoder; a frozen encoder stays in eval mode, as the decoder does."""
        super().train(mode)
        if not is_trained(self.encoder):
            self.encoder.eval()
        return self

    def count_slots(self, samples: int) -> int:
        """Return the audio tokens that a clip of ``samples`` takes in the decoder's sequence."""
        return self.adapter.num_tokens(self.encoder.num_frames(samples))

    @property
    def shares_prefixes(self) -> bool:
        """Whether a batch may have rows that share the beginning of another one."""
        return bool(self.decoder.packed)

    def forward(self, batch: Batch) -> LossSum:
        """Return the summed next-token loss over the labelled positions of a packed batch.

        An empty batch goes the whole way with a moment of silence and no labels, and gives zero gradients: ranks stay
        in step under every engine, those that gather weights layer by layer included.

        Raises:
            ValueError: when rows of the batch share a beginning and this decoder cannot (see ``shares_prefixes``).
        """
        if batch.prefixes is not None and not self.shares_prefixes:
            raise ValueError("rows share a prefix, but this decoder reads only whole rows")
        if not batch.answer_tokens:
            hidden, _ = self.read(self.make_silence(batch))
            total, _, _ = self.decoder.losses(hidden[:0], batch.labels, self.label_chunk)
            return LossSum(total + hidden.sum() * 0.0, 0, total.new_zeros(len(batch.tasks), 3).detach())
        hidden, encoded = self.read(batch)
        hidden = hidden[batch.label_positions]
        total, per_token, right = self.decoder.losses(hidden, batch.labels, self.label_chunk)
        columns = torch.stack(
            [per_token.float(), torch.ones_like(per_token), right.to(per_token.dtype)], 1
        ).detach()
        per_task = columns.new_zeros(len(batch.tasks), 3).index_add(0, batch.label_task, columns)
        return LossSum(
            total,
            batch.answer_tokens,
            per_task,
            encoded.losses,
            sum_choices_by_task(encoded.stats, batch),
            encoded.frames,
        )

    def make_silence(self, empty: Batch) -> Batch:
        """Return a batch of one clip of silence behind one token, on the device of an empty one, without labels."""
        device, slots = empty.labels.device, self.count_slots(SILENCE)
        return replace(
            empty,
            audio=Ragged(torch.zeros(SILENCE, dtype=torch.int16, device=device), torch.tensor([SILENCE])),
            tokens=Ragged(
                torch.zeros(1 + slots, dtype=torch.int64, device=device), torch.tensor([1 + slots])
            ),
            audio_positions=torch.arange(1, 1 + slots, device=device),
            audio_index=torch.arange(slots, device=device),
            example_clips=Ragged(torch.zeros(1, dtype=torch.int64), torch.tensor([1])),
            example_task=torch.zeros(1, dtype=torch.int64),
            prompt_lengths=torch.tensor([1 + slots]),
            ids=("",),
            audio_tokens=slots,
        )

    def read(self, batch: Batch) -> tuple[Tensor, Encoded]:
        """Return the decoder's hidden states ``[T, D]`` over a packed batch, and what the encoder said."""
        embeds, encoded = self.embed_batch(batch)
        return self.decoder.hidden(embeds, batch.prefixes), encoded

    @torch.no_grad()
    def read_prompts(self, prompts: Batch) -> ReadPrompts:
        """Encode the clips of prompts, for ``generate_ids`` and ``label_log_likelihoods``."""
        return ReadPrompts(self.embed_batch(prompts)[0])

    @torch.no_grad()
    def generate_ids(
        self,
        prompts: Batch,
        max_new_tokens: int,
        end_of_turn: int,
        pad: int,
        read: ReadPrompts | None = None,
        repetition_penalty: float = 1.0,
    ) -> list[list[int]]:
        """Continue the prompts of a batch greedily and return the new ids of every row, see ``generate_rows``.

        Args:
            read: of the same prompts, where they were read before.
        """
        text = (read or self.read_prompts(prompts)).text
        return generate_rows(self.decoder, text, max_new_tokens, end_of_turn, pad, repetition_penalty)

    @torch.no_grad()
    def label_log_likelihoods(
        self, prompts: Batch, labels: Ragged, read: ReadPrompts | None = None
    ) -> Tensor:
        """Return ``log p(label | prompt)`` of K labels: ``[B, K]``, see ``model/label_likelihoods.py``.

        Args:
            labels: the token ids of every label with its end of turn, as ``ChatFormat.answer`` makes them.
            read: of the same prompts, where they were read before.
        """
        known = read or self.read_prompts(prompts)
        return label_log_likelihoods(self.decoder, known.text, labels, self.find_branch_reader(known))

    def find_branch_reader(self, read: ReadPrompts) -> Callable[[Ragged, Branches], Tensor] | None:
        """Return what makes hidden states of rows with branches; None where the layers cannot."""
        return self.decoder.packed_hidden if self.decoder.packed else None

    def embed_batch(self, batch: Batch) -> tuple[Ragged, Encoded]:
        """Return the decoder's input rows ``[T, D]``, audio tokens in their places, and what the encoder said.

        With features for layers of the decoder, rows are wide: see ``DepthInjection``.

        Raises:
            ValueError: when the batch has other places for audio than the model has audio tokens.
            UserError: when the batch has masks, but the encoder no spectrogram.
        """
        self.check_masks(batch)
        text = self.decoder.embed(batch.tokens.values)
        encoded = self.encode(batch, text)
        audio = self.make_audio_tokens(encoded).values
        if len(audio) != batch.audio_tokens:
            raise ValueError(f"{batch.audio_tokens} audio positions but {len(audio)} audio tokens")
        placed = audio.index_select(0, batch.audio_index)
        text = widen_rows(text, audio.shape[1])
        embeds = text.index_copy(0, batch.audio_positions, placed.to(text.dtype))
        return batch.tokens.with_values(embeds), encoded

    def make_audio_tokens(self, encoded: Encoded) -> Ragged:
        """Return the audio tokens ``[N, D]``, wide where they have features for layers of the decoder."""
        if not self.adapter.encoder_layers:
            return self.adapter(encoded.frames)
        assert encoded.layers is not None
        return self.adapter(encoded.frames, [encoded.layers[layer] for layer in self.adapter.encoder_layers])

    def check_masks(self, batch: Batch) -> None:
        """Refuse masks that nobody would see.

        Raises:
            UserError: when the batch has masks, but the encoder no spectrogram.
        """
        if len(batch.masks) and not self.encoder.takes_masks:
            raise UserError(
                f"spec_augment: {type(self.encoder).__name__} has no spectrogram to mask; leave it out of the recipe"
            )

    def encode(self, batch: Batch, text: Tensor | None) -> Encoded:
        """Encode the clips of a batch; an encoder that reads the question gets its mean embedding, ``text [T, D]``."""
        given: dict[str, Any] = {}
        if self.encoder.takes_prompts and text is not None:
            given["prompts"] = average_questions(batch, text)
        if self.adapter.encoder_layers:
            given["layers"] = True
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.encoder)):
            return self.encoder(batch.audio, masks=batch.masks, **given)


def cast_to_audio_lm(model: nn.Module) -> AudioLM:
    """Return the model that an engine trains as what it is."""
    assert isinstance(model, AudioLM)
    return model


def average_questions(batch: Batch, text: Tensor) -> Tensor:
    """Return for every clip the mean embedding ``[C, D]`` of the text tokens of the question about it.

    A beginning that a row shares counts as its text, too.
    """
    rows, ends = Ragged(torch.arange(len(text)), batch.tokens.lengths), batch.prompt_lengths
    if batch.prefixes is not None:
        rows, ends = find_key_places(batch.tokens.lengths, batch.prefixes), ends + batch.prefixes.lengths
    is_prompt = Ragged.count_within_rows(rows.lengths) < torch.repeat_interleave(ends, rows.lengths)
    is_text = torch.ones(len(text), dtype=torch.bool, device=text.device)
    places = rows.values.to(text.device)
    is_text = is_text.index_fill(0, batch.audio_positions, False)[places] & is_prompt.to(text.device)
    texts = raise_to_float32(text[places])  # bfloat16 counts to 256 and no further
    weights = is_text[:, None].to(texts.dtype)
    owners = rows.row_index().to(text.device)
    sums = texts.new_zeros(len(rows), texts.shape[1]).index_add(0, owners, texts * weights)
    counts = texts.new_zeros(len(rows), 1).index_add(0, owners, weights)
    return (sums / counts.clamp(min=1))[batch.clip_example.to(text.device)]


def sum_choices_by_task(stats: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Add per-clip statistics ``[C]`` up by the task of the clip's first question: ``[K, 2]`` of sums and clips."""
    if not stats:
        return {}
    task = batch.example_task[batch.clip_example].to(next(iter(stats.values())).device)
    choices = {}
    for name, values in stats.items():
        columns = torch.stack([values.detach().float(), torch.ones_like(values, dtype=torch.float32)], 1)
        choices[name] = columns.new_zeros(len(batch.tasks), 2).index_add(0, task, columns)
    return choices
