"""Whisper's own decoder as the reader: text attends to text, and by cross attention to the frames of its clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.model.activation_checkpointing import run_layer
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.attention import Segments, packed_attention, project_heads
from uniaudio.model.audio_lm import AudioLM, ReadPrompts
from uniaudio.model.base_identity import TOKENIZER_FILES, identify_base
from uniaudio.model.decoder import compute_label_losses
from uniaudio.model.decoder_loading import choose_dtype, make_trainable
from uniaudio.model.decoding import generate_with_cross_attention
from uniaudio.model.encoders.weights import build_with_random_weights, fill, read_tensors
from uniaudio.model.model_files import RANDOM, find_model_folder, read_model_config
from uniaudio.model.tree_attention import Branches
from uniaudio.ragged import Ragged
from uniaudio.types import Batch, Encoded

PREFIXES = ("model.decoder.", "decoder.", "")  # where full and part checkpoints keep the tensors


class LinearBridge(Adapter):
    """A linear map of frames to the decoder's width; it starts as the identity where the widths are equal."""

    def __init__(self, encoder_dim: int, decoder_dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(encoder_dim, decoder_dim)
        if encoder_dim == decoder_dim:
            nn.init.eye_(self.map.weight)
            nn.init.zeros_(self.map.bias)

    def num_tokens(self, frames: int) -> int:
        return frames

    def forward(self, frames: Ragged) -> Ragged:
        return frames.with_values(self.map(frames.values))


class WhisperTextDecoder(nn.Module):
    """Whisper's decoder over packed rows; the head is its table of token embeddings.

    Args:
        decoder: the stock module, frozen as it comes. identity: see ``identify_base``.
    """

    def __init__(self, decoder: WhisperDecoder, identity: dict[str, str] | None = None) -> None:
        super().__init__()
        self.decoder: Any = decoder.requires_grad_(False).eval()
        self.dim = decoder.config.d_model
        self.identity = identity or {}
        self.recomputes = False
        self.layer = apply_decoder_layer

    def can_recompute(self) -> bool:
        """Return True: it calls its layers one by one."""
        return True

    def recompute(self) -> None:
        """Drop the activations inside the layers after the forward and make them again in the backward."""
        self.recomputes = True

    def train(self, mode: bool = True) -> WhisperTextDecoder:
        """Stay in eval mode unless something is trained."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def embed(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Look token ids up; positions are added in ``hidden``."""
        return self.decoder.embed_tokens(ids)

    @property
    def vocabulary(self) -> int:
        """V, the number of tokens."""
        return int(self.decoder.embed_tokens.num_embeddings)

    @property
    def positions(self) -> int:
        """The most tokens of a row."""
        return int(self.decoder.config.max_target_positions)

    def hidden(self, text: Ragged, frames: Ragged, branches: Branches | None = None) -> Float[Tensor, "T D"]:
        """Run the layers over packed text rows ``[T, D]``, each hearing its own row of frames ``[A, D]``.

        Raises:
            UserError: when a row is longer than Whisper's positions.
        """
        most, longest = self.positions, int(text.lengths.max()) if len(text) else 0
        if branches is not None:
            longest = max(branches.prefixes) + max(branches.lengths)
        if longest > most:
            raise UserError(
                f"a row of {longest} tokens is longer than Whisper's {most} positions; shorten the "
                "texts or use another decoder"
            )
        if branches is not None:
            positions = branches.positions
        else:
            positions = Ragged.count_within_rows(text.lengths).to(text.device, non_blocking=True)
        hidden = text.values + self.decoder.embed_positions.weight[positions]
        hidden = F.dropout(hidden, self.decoder.dropout, self.training)
        query_segments = Segments.of(text.lengths, text.device, branches)
        cross = Segments.of(frames.lengths, text.device)
        for layer in self.decoder.layers:
            hidden = run_layer(
                self.recomputes, self.layer, layer, hidden, frames.values, query_segments, cross
            )
        return self.decoder.layer_norm(hidden)

    def losses(
        self, hidden: Float[Tensor, "L D"], labels: Int[Tensor, " L"], chunk: int
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " L"], Bool[Tensor, " L"]]:
        """Return the summed loss, the loss of every label and whether the most likely token was right."""
        table = self.decoder.embed_tokens
        # a frozen table is a plain head, whose logits need not be stored; a trained one, called, would look ids up
        logits_of = self.logits if table.weight.requires_grad else None
        return compute_label_losses(hidden, labels, chunk, table, logits_of)

    def logits(self, hidden: Float[Tensor, "L D"]) -> Float[Tensor, "L V"]:
        """Score every token of the vocabulary with its own embedding."""
        return F.linear(hidden, self.decoder.embed_tokens.weight)


def apply_decoder_layer(
    layer: Any,
    hidden: Float[Tensor, "T D"],
    frames: Float[Tensor, "A D"],
    query_segments: Segments,
    cross: Segments,
) -> Float[Tensor, "T D"]:
    """Apply one stock pre-norm layer to packed rows: self attention, cross attention, feed-forward."""
    training = layer.training
    mixed = attend_rows(
        layer.self_attn, layer.self_attn_layer_norm(hidden), None, query_segments, query_segments
    )
    hidden = hidden + F.dropout(mixed, layer.dropout, training)
    mixed = attend_rows(
        layer.encoder_attn, layer.encoder_attn_layer_norm(hidden), frames, query_segments, cross
    )
    hidden = hidden + F.dropout(mixed, layer.dropout, training)
    inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
    inner = layer.fc2(F.dropout(inner, layer.activation_dropout, training))
    return hidden + F.dropout(inner, layer.dropout, training)


def attend_rows(
    attention: Any,
    hidden: Float[Tensor, "T D"],
    frames: Tensor | None,
    query_segments: Segments,
    cross: Segments,
) -> Float[Tensor, "T D"]:
    """Apply the stock projections: causal among the text where there are no frames, else over the frames."""
    source = None if frames is None else frames.to(hidden.dtype)
    query, key, value = project_heads(attention, hidden, source)
    dropout = attention.dropout if attention.training else 0.0
    mixed = packed_attention(
        query, key, value, query_segments, causal=frames is None, dropout=dropout, key_segments=cross
    )
    return attention.out_proj(mixed.flatten(1))


class CrossAttentionLM(AudioLM):
    """An encoder that is read by cross attention: clips take no places in the text, and their marks are empty."""

    def count_slots(self, samples: int) -> int:
        return 0

    @property
    def shares_prefixes(self) -> bool:
        """Whether a batch may have rows that share the beginning of another one: only text would be shared."""
        return False

    def read(self, batch: Batch) -> tuple[Tensor, Encoded]:
        text = self.decoder.embed(batch.tokens.values)
        cross, encoded = self.encode_prompts(batch, text)
        return self.decoder.hidden(batch.tokens.with_values(text), cross), encoded

    def encode_prompts(self, batch: Batch, text: Tensor) -> tuple[Ragged, Encoded]:
        """Return the frames ``[A, D]`` that every example hears, those of all its clips, and what the encoder said."""
        self.check_masks(batch)
        encoded = self.encode(batch, text)
        frames = self.adapter(encoded.frames).select(batch.example_clips.values)
        owners = batch.example_clips.row_index()
        lengths = torch.zeros(len(batch.example_clips), dtype=torch.int64).index_add(
            0, owners, frames.lengths
        )
        return frames.with_lengths(lengths), encoded

    @torch.no_grad()
    def read_prompts(self, prompts: Batch) -> ReadPrompts:
        text = self.decoder.embed(prompts.tokens.values)
        return ReadPrompts(prompts.tokens.with_values(text), self.encode_prompts(prompts, text)[0])

    def find_branch_reader(self, read: ReadPrompts) -> Callable[[Ragged, Branches], Tensor]:
        return lambda rows, branches: self.decoder.hidden(rows, read.cross_frames, branches)

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
        """Continue the prompts greedily, see ``generate_with_cross_attention``."""
        cross = (read or self.read_prompts(prompts)).cross_frames
        assert cross is not None
        return generate_with_cross_attention(
            self.decoder, prompts.tokens, cross, max_new_tokens, end_of_turn, repetition_penalty
        )


def load_whisper_decoder(
    path: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    train: str = "frozen",
    lora: Any = None,
    seed: int = 0,
) -> WhisperTextDecoder:
    """Load the decoder of a full Whisper checkpoint, or with weights drawn from ``seed`` where the path begins with
    ``random:``; its encoder is not read.

    Raises:
        UserError: when it is no Whisper, or has no decoder.
    """
    drawn = path.startswith(RANDOM)
    folder = find_model_folder(path, revision)
    kind = read_model_config(folder)["model_type"]
    if kind != "whisper":
        raise UserError(f"decoder.path: {path} holds a {kind} model, but decoder.kind is whisper")
    with convert_to_user_error(f"decoder.path: the config.json of {path} cannot be used"):
        config = WhisperConfig.from_pretrained(folder)
    config._attn_implementation = "sdpa"
    try:
        with convert_to_user_error(f"the decoder in {path} cannot be loaded"):
            decoder = build_with_random_weights(lambda: WhisperDecoder(config), seed if drawn else None)
            if not drawn:
                fill(decoder, read_tensors(folder, PREFIXES), folder)
    except UserError as problem:
        raise UserError(f"decoder.path: {problem}; decoder.kind whisper needs a full checkpoint") from problem
    decoder = decoder.to(device, choose_dtype(dtype, train))
    reader = WhisperTextDecoder(decoder, identify_base(path, revision, TOKENIZER_FILES))
    make_trainable(reader, decoder, train, lora, seed)
    return reader
