"""The language model of a run config."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from uniaudio.config.encoders import LoraConfig
from uniaudio.config.records import Seed, Strict


class MiniatureConfig(Strict):
    """A small Qwen3 that is trained from scratch on the texts of the recipe, then frozen; for runs without a
    download.

    Read by: train, check, plan, tune-batch.
    """

    hidden: PositiveInt = 128
    """Width of the model."""
    layers: PositiveInt = 4
    """Transformer layers."""
    heads: PositiveInt = 4
    """Attention heads."""
    kv_heads: PositiveInt = 2
    """Key and value heads (grouped-query attention)."""
    intermediate: PositiveInt = 256
    """Width of the feed-forward layers."""
    vocabulary: PositiveInt = 512
    """Number of tokens of its byte-level BPE tokenizer, at least 256 plus the special tokens."""
    steps: PositiveInt = 600
    """Optimizer steps of its training. Read by: train, tune-batch."""
    batch: PositiveInt = 32
    """Texts per step. Read by: train, tune-batch."""
    lr: PositiveFloat = 3e-3
    """Peak learning rate. Read by: train, tune-batch."""
    seed: Seed = 0
    """Seed of its weights and batches. Read by: train, tune-batch."""
    extra_texts: str | None = None
    """Text file with more lines to train on. Default: only the texts of the recipe. Read by: train, tune-batch."""


class DecoderConfig(Strict):
    """The language model that reads the audio tokens and is trained on the answers' next-token loss; frozen
    by default.

    Read by: train, check, plan, tune-batch, eval, ask, serve, forgetting.
    """

    kind: Literal["causal", "whisper"] = "causal"
    """`causal` is a decoder-only language model; `whisper` is Whisper's own decoder, which reads the frames
    by cross attention and needs no adapter.
    """
    path: str = "Qwen/Qwen3-0.6B"
    """A folder or Hub name of a transformers model; may begin with `${env:NAME}` or `${realmodels}`. `random:` followed
    by either gives random weights. Read by: train, check, plan, tune-batch, eval, ask, serve, forgetting, preview.
    """
    train: Literal["frozen", "lora", "full"] = "frozen"
    """`frozen`, `lora`, or `full` fine-tuning."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate, if it is trained. Read by: train."""
    lora: LoraConfig = LoraConfig(rank=8, dropout=0.1, targets="all")
    """Rank, scale and layers of the low-rank updates, used with `train: lora`."""
    revision: str | None = None
    """Branch, tag or commit of a model on the Hub. Default: its main branch."""
    dtype: Literal["auto", "bfloat16", "float32", "fp8"] = "auto"
    """Precision of a frozen decoder's weights. `auto` is bfloat16 on CUDA and float32 elsewhere; `fp8` rounds the
    linear layers to 8 bits (experimental, NVIDIA Ada or newer).
    """
    trust_remote_code: bool = False
    """Declares that the model comes with its own Python code; the code runs only with the option
    `--trust-remote-code`.
    """
    attention: Literal["auto", "packed", "padded"] = "auto"
    """`packed` stores examples one after another without padding, `padded` pads them to one length, `auto` packs if the
    results equal those of the stock model.
    """
    recompute: Literal["auto"] | bool = "auto"
    """Activation checkpointing (gradient checkpointing) inside its layers; `auto` as for an encoder. Read by:
    train, plan.
    """
    miniature: MiniatureConfig | None = None
    """Train a small decoder on the recipe's texts in place of loading `path`. Default: load `path`."""

    @property
    def folder(self) -> str:
        """The folder or Hub name with the decoder's configuration and tokenizer: the path without `random:`."""
        return self.path.removeprefix("random:")
