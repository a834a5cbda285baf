"""The language model that reads audio tokens: packed where its layers allow it, padded otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.profiler import record_function
from transformers import GenerationConfig, PreTrainedModel

from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.model.activation_checkpointing import find_recomputable_layers, recompute_layer
from uniaudio.model.attention import PACKED, Segments, register_packed_attention
from uniaudio.model.cross_entropy import frozen_head_cross_entropy
from uniaudio.model.decoder_limits import find_position_limit, refuse_without_generation
from uniaudio.model.depth_injection import DepthInjection
from uniaudio.model.shared_prefix import compute_row_positions, find_key_places
from uniaudio.model.tree_attention import Branches
from uniaudio.ragged import Ragged
from uniaudio.types import SharedPrefixes

LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class TextDecoder(nn.Module):
    """A causal language model; frozen as it comes: no gradients of its own, always in eval mode, never in the
    optimizer.

    What ``make_trainable`` opens afterwards is trained and switches modes.

    Args:
        lm: any ``AutoModelForCausalLM``. On the meta device nothing is compared: it is taken to be exact where it runs.
        attention: ``packed`` (rows side by side, no padding), ``padded`` (the stock way), or ``auto``: packed
            when every layer is plain full attention.
        identity: what a checkpoint records of the weights (see ``identify_base``).

    Attributes:
        pads_exactly: whether rows can be generated together, padded on the left.
        positions: the most tokens of a row, its audio included; None: any number.

    Raises:
        UserError: when ``packed`` is asked of a decoder whose layers cannot do it, and for models that cannot answer or
            whose losses would be wrong.
    """

    def __init__(
        self, lm: PreTrainedModel, attention: str = "auto", identity: dict[str, str] | None = None
    ) -> None:
        super().__init__()
        self.lm = lm.requires_grad_(False).eval()
        # a model's own may have penalties, beams or sampling, which nobody has asked for here
        self.lm.generation_config = GenerationConfig()
        self.dim = lm.get_input_embeddings().embedding_dim
        self.identity = identity or {}
        self.recomputes = False
        self.injection: DepthInjection | None = None
        obstacle = explain_why_not_packed(lm)
        self.stock_attention = lm.config._attn_implementation
        register_packed_attention()
        if not obstacle and attention != "padded" and not self.can_pack_exactly():
            obstacle = f"{type(lm).__name__} gives different results when rows are packed"
        if attention == "packed" and obstacle:
            raise UserError(
                f"decoder.attention: packed is not possible, {obstacle}; set it to auto or padded"
            )
        self.packed = attention != "padded" and not obstacle
        self.positions = find_position_limit(lm)
        self.pads_exactly = self.can_pad_prompts()
        self.plain_head = self.has_plain_head()

    def train(self, mode: bool = True) -> TextDecoder:
        """Stay in eval mode unless something is trained: frozen means frozen, dropout included."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def inject_after(self, layers: Sequence[int]) -> None:
        """Read wide rows from now on, whose features are added behind these layers.

        Raises:
            UserError: when it has no such layer.
        """
        self.injection = DepthInjection(self.lm, layers)

    def split_rows(self, rows: Tensor, once: bool = False) -> Tensor:
        """Return the embeddings ``[B, T, D]`` of rows and hand their features to the layers, see ``DepthInjection``."""
        return rows if self.injection is None else self.injection.split(rows, once)

    def clear_features(self) -> None:
        """Forget the features of rows; layers that run again in the backward do so without their hooks."""
        if self.injection is not None:
            self.injection.clear()

    def can_recompute(self) -> bool:
        """Return whether the stock model has layers that may be run a second time."""
        return bool(find_recomputable_layers(self.lm))

    def recompute(self) -> None:
        """Drop the activations inside the layers after the forward and make them again in the backward.

        Raises:
            UserError: when the architecture cannot.
        """
        layers = find_recomputable_layers(self.lm)
        if not layers:
            raise UserError(f"decoder.recompute: {type(self.lm).__name__} cannot recompute; leave it out")
        for layer in layers:
            recompute_layer(layer)
        self.recomputes = True

    def embed(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Look token ids up in the decoder's own table."""
        return self.lm.get_input_embeddings()(ids)

    def hidden(self, embeds: Ragged, prefixes: SharedPrefixes | None = None) -> Float[Tensor, "T D"]:
        """Run the layers over packed rows ``[T, D]``; every row sees itself only, causally, from position 0.

        Args:
            prefixes: rows that also see the beginning of another one and go on behind it; packed decoders only.
        """
        if self.packed:
            return self.packed_hidden(embeds, prefixes=prefixes)
        assert prefixes is None
        return self.padded_hidden(embeds)

    def packed_hidden(
        self, embeds: Ragged, branches: Branches | None = None, prefixes: SharedPrefixes | None = None
    ) -> Float[Tensor, "T D"]:
        """Pass all rows as one, with their borders handed to our attention function through the stock layers."""
        if branches is not None:
            positions = branches.positions
        else:
            positions = compute_row_positions(embeds.lengths, prefixes).to(embeds.device, non_blocking=True)
        keys = None if prefixes is None else find_key_places(embeds.lengths, prefixes)
        # a view would be compiled apart from what layers return
        rows = self.split_rows(embeds.values[None]).clone()
        self.set_attention(PACKED)
        try:
            output = self.lm.base_model(
                inputs_embeds=rows,
                position_ids=positions[None],
                attention_mask={"full_attention": None},  # a prepared (empty) mask: transformers builds none
                use_cache=False,
                segments=Segments.of(embeds.lengths, embeds.device, branches, keys),
            )
        finally:
            # the layers will be run again in the backward
            if not (self.recomputes and torch.is_grad_enabled()):
                self.set_attention(self.stock_attention)
            self.clear_features()
        return output.last_hidden_state[0]

    def padded_hidden(self, embeds: Ragged) -> Float[Tensor, "T D"]:
        """Pad the rows on the right and take the stock way, for layers that are not plain attention."""
        self.set_attention(self.stock_attention)
        padded, mask = embeds.pad()
        positions = torch.arange(padded.shape[1], device=padded.device)[None].expand(len(embeds), -1)
        output = self.lm.base_model(
            inputs_embeds=self.split_rows(padded),
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=False,
        )
        self.clear_features()
        return Ragged.from_padded(output.last_hidden_state, embeds.lengths).values

    def set_attention(self, name: str) -> None:
        """Switch the implementation for the calls that follow; layers read it from the shared config."""
        self.lm.config._attn_implementation = name

    def generate(
        self,
        embeds: Float[Tensor, "B L D"],
        mask: Int[Tensor, "B L"],
        logits_processor: list[Any] | None = None,
        **settings: Any,
    ) -> Any:
        """Continue rows padded on the left with the stock model and its cache, in layers that are not compiled.

        Args:
            settings: of a ``GenerationConfig``; what they leave out is transformers' default.
        """
        self.set_attention(self.stock_attention)
        with torch.compiler.set_stance("force_eager"):  # the cache grows with every token
            return self.lm.generate(
                inputs_embeds=self.split_rows(embeds, once=True),
                attention_mask=mask,
                generation_config=GenerationConfig(**settings),
                logits_processor=logits_processor,
            )

    @property
    def vocabulary(self) -> int:
        """V, the number of tokens."""
        return int(self.lm.get_input_embeddings().num_embeddings)

    def losses(
        self, hidden: Float[Tensor, "L D"], labels: Int[Tensor, " L"], chunk: int
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " L"], Bool[Tensor, " L"]]:
        """Return the summed loss, the loss of every label and whether the most likely token was right."""
        head = self.lm.get_output_embeddings()
        return compute_label_losses(hidden, labels, chunk, head, None if self.plain_head else self.logits)

    def logits(self, hidden: Float[Tensor, "L D"]) -> Float[Tensor, "L V"]:
        """Turn hidden states of the last layer into logits, with the scaling or capping that this architecture adds."""
        config = self.lm.config.get_text_config()
        head = self.lm.get_output_embeddings()
        logits = head(hidden.to(head.weight.dtype))  # Mamba keeps its residual stream in float32
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = cap * torch.tanh(logits / cap)
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        return logits

    @torch.no_grad()
    def can_pack_exactly(self) -> bool:
        """Compare two short rows packed with the same rows padded, so that no architecture is trusted by its name."""
        table = self.lm.get_input_embeddings()
        ids = torch.arange(8, device=self.lm.device) % table.num_embeddings
        rows = Ragged(table(ids), torch.tensor([5, 3]))
        try:
            packed = self.packed_hidden(rows)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False
        return packed.is_meta or close(packed, self.padded_hidden(rows))

    @torch.no_grad()
    def can_pad_prompts(self) -> bool:
        """Generate from two short rows and from the shorter one alone, and return whether that gives the same.

        Raises:
            UserError: when it cannot generate from embeddings.
        """
        refuse_without_generation(type(self.lm))
        if self.lm.device.type == "meta":
            return True
        table = self.lm.get_input_embeddings()
        rows = table(torch.arange(10, device=self.lm.device).reshape(2, 5) % table.num_embeddings)
        mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], device=self.lm.device)
        rows = rows * mask[..., None]
        settings: dict[str, Any] = {
            "max_new_tokens": 1,
            "do_sample": False,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }
        settings |= {"output_logits": True, "return_dict_in_generate": True}
        with convert_to_user_error(
            f"decoder.path: {type(self.lm).__name__} cannot generate from embeddings", "use another decoder"
        ):
            together = self.generate(rows, mask, **settings)
            alone = self.generate(rows[1:, 2:], mask[1:, 2:], **settings)
        return close(together.logits[0][1], alone.logits[0][0])

    @torch.no_grad()
    def has_plain_head(self) -> bool:
        """Return whether logits are what the head alone makes of hidden states.

        Four tokens by their ids through the whole model are compared with the same by their embeddings through layers
        and head, so that no architecture is judged by its name: audio tokens have no ids.

        Raises:
            UserError: when the logits cannot be had from the hidden states, so losses would be wrong, or embeddings
                become something else than ids do, such as by a factor that only ids get.
        """
        if self.lm.device.type == "meta":
            config = self.lm.config.get_text_config()
            return all(getattr(config, name, None) is None for name in LOGIT_SETTINGS)
        self.set_attention(self.stock_attention)
        ids = torch.arange(4, device=self.lm.device)[None] % self.vocabulary
        stock = self.lm(input_ids=ids, use_cache=False).logits[0].float()
        name = type(self.lm).__name__
        if not stock.isfinite().all():
            raise UserError(
                f"decoder.path: {name} gives values that are not finite for a short text, so its weights are damaged "
                "or its dtype is too narrow for them; get its files again, or set decoder.dtype to float32"
            )
        hidden = self.lm.base_model(inputs_embeds=self.embed(ids), use_cache=False).last_hidden_state[0]
        logits = self.logits(hidden)
        if close(logits, stock):
            head = self.lm.get_output_embeddings()
            return torch.equal(logits, head(hidden.to(head.weight.dtype)))
        if close(hidden, self.lm.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]):
            raise UserError(
                f"decoder.path: the logits of {name} are not a known function of its hidden states; use another decoder"
            )
        raise UserError(
            f"decoder.path: {name} gives other results from embeddings than from token ids; use another decoder"
        )


@record_function("uniaudio::loss")  # a part of its own in a profile of the step
def compute_label_losses(
    hidden: Float[Tensor, "L D"],
    labels: Int[Tensor, " L"],
    chunk: int,
    head: nn.Module,
    logits_of: Callable[[Tensor], Tensor] | None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " L"], Bool[Tensor, " L"]]:
    """Return the summed loss, the loss of every label and whether the most likely token was right.

    Args:
        logits_of: hidden states to logits where they are more than the head makes of them. None: the head alone,
            which needs no stored logits as long as it is frozen.
    """
    weight: Tensor = head.weight  # type: ignore[assignment]
    if logits_of is None and not weight.requires_grad:
        return frozen_head_cross_entropy(hidden, weight, getattr(head, "bias", None), labels, chunk)
    per_token, right = [], []
    for rows, ids in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        logits = (logits_of or head)(rows.to(weight.dtype)).float()
        per_token.append(nn.functional.cross_entropy(logits, ids, reduction="none"))
        right.append(logits.argmax(-1) == ids)
    losses = torch.cat(per_token)
    return losses.sum(), losses.detach(), torch.cat(right)


def close(one: Tensor, other: Tensor) -> bool:
    """Return whether two results agree within the rounding of their dtype, relative to their size."""
    tolerance = 1e-4 if one.dtype == torch.float32 else 0.05
    return bool(
        (one.float() - other.float()).abs().max() <= tolerance * other.float().abs().max().clamp(min=1e-3)
    )


def explain_why_not_packed(lm: PreTrainedModel) -> str:
    """Return why rows cannot be packed in this decoder, or an empty text."""
    config = lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"its layers are {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"its attention slides over {config.sliding_window} positions"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention logits are capped"
    if not getattr(lm, "_supports_attention_backend", False):
        return f"{type(lm).__name__} has its own attention"
    return ""
