"""What a run config says of one encoder: where it is from and how it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from uniaudio.config.records import Strict, check_expression

# how an encoder reads a clip; see its family
LISTENING = (
    "pad_to",
    "pad_stride",
    "tail_frames",
    "keep_tail",
    "pool",
    "masked_padding",
    "chunk_seconds",
    "frame_rate",
)


class LoraConfig(Strict):
    """Low-rank adaptation (LoRA, Hu et al. 2022) of linear layers, for parts that are trained with
    `train: lora`.

    Read by: run commands.
    """

    rank: PositiveInt = 16
    """Rank of the update, `r`."""
    alpha: PositiveFloat = 32
    """Scale of the update: it is multiplied by `alpha / rank`."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout probability at the input of the update, in training. Read by: train."""
    targets: Literal["qkv", "all"] | tuple[str, ...] = "qkv"
    """Which linear layers get an update: `qkv` (the projections of attention), `all` (every linear layer), or
    a list of regular expressions that are searched for in the layers' names.
    """

    @field_validator("targets")
    @classmethod
    def check_targets(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for pattern in () if isinstance(targets, str) else targets:
            check_expression(pattern)
        return targets


class EncoderConfig(Strict):
    """One audio encoder: where it comes from and how it is trained.

    Read by: run commands.
    """

    kind: str = "auto"
    """The encoder's architecture. `auto` reads the `model_type` of the checkpoint's config.json; a model type sets it;
    `remote` loads a model with its own code; `module:Class` is a subclass of `AudioEncoder`, created as `Class(path,
    **settings)`.
    """
    path: str = ""
    """A folder, a Hub name, `random:` followed by either for random weights, or a run folder, whose encoder
    is used with its LoRA weights merged. May begin with `${env:NAME}`, `${realmodels}`, `${realdata}` or
    `${miniature}`. Required unless `kind` is `module:Class`.
    """
    revision: str | None = None
    """Branch, tag or commit of a model on the Hub. Default: its main branch."""
    train: Literal["full", "frozen", "lora"] = "full"
    """`full` fine-tunes all weights, `lora` trains low-rank updates, `frozen` trains nothing. A stage's
    `train` overrides it.
    """
    lr: PositiveFloat = 2e-5
    """Peak learning rate of this encoder; `stages[].lr` and `layer_decay` change it for individual parameters. Read by:
    train.
    """
    lora: LoraConfig = LoraConfig()
    """Rank, scale and layers of the low-rank updates, used with `train: lora`."""
    trust_remote_code: bool = False
    """Declares that the model comes with its own Python code; the code runs only with the option
    `--trust-remote-code`.
    """
    pad_to: PositiveFloat | None = None
    """Whisper, Voxtral, Ultravox and GLM-ASR only: seconds to which shorter clips are padded with silence, 30 for
    the stock behaviour. Default: no padding.
    """
    pad_stride: PositiveInt | None = None
    """Whisper, Voxtral and Ultravox only, with `pad_to`: the silence is not appended to every clip; all clips of a
    batch attend to every n-th frame of it instead, which costs little more than no padding. Use 16 or 32, with
    `tail_frames: 10`.
    """
    tail_frames: int = Field(default=0, ge=0)
    """Whisper, Voxtral, Ultravox and GLM-ASR only: frames of silence after the end of each clip."""
    keep_tail: bool = False
    """Whisper, Voxtral, Ultravox and GLM-ASR only: output the frames of `tail_frames` with those of the clip.
    Whisper's own decoder needs them to detect the end of speech; with `pad_to: 30` and `pad_stride: 16`, a tail of
    25 frames is enough.
    """
    pool: PositiveInt = 1
    """Whisper, Voxtral and Ultravox only: frames averaged before the last LayerNorm. `2` gives 25 frames per
    second, as the towers of Qwen2-Audio and Audio Flamingo 3 do, which the adapters `qwen2_audio` and
    `audio_flamingo3` read.
    """
    masked_padding: bool = False
    """Whisper, Voxtral, Ultravox, Qwen2-Audio and Audio Flamingo 3 only: computes the frames that the stock towers
    of Qwen2-Audio and Audio Flamingo 3 give for a clip padded to 30 s with masked silence, at no extra cost; for
    runs that will be exported to these formats.
    """
    chunk_seconds: PositiveFloat | None = None
    """Longest chunk, in seconds, within which frames attend to each other, for encoders without a fixed input length
    (the wav2vec 2.0 family and the towers of other models); longer clips are cut. Default: 30.
    """
    cache: bool | Literal["bfloat16"] = False
    """Store the frames of every clip on disk while the encoder is frozen, so that each clip is encoded once: `true` as
    float32, `bfloat16` rounded to half the size. `probe` and `eval` use frames stored as float32. Read by: train,
    check, probe, eval.
    """
    frame_rate: PositiveFloat | None = None
    """Frames per second of an encoder with `kind: remote`. Default: measured on a clip."""
    recompute: Literal["auto"] | bool = "auto"
    """Activation checkpointing (gradient checkpointing) inside the encoder's layers: less memory, one more
    forward pass of them. `auto` uses it in stages whose micro-batches would not fit into memory otherwise. Read
    by: train, plan.
    """
    settings: dict[str, Any] = Field(default={})
    """Keyword arguments of your own encoder class (`kind: module:Class`)."""

    @model_validator(mode="after")
    def check_path_or_class(self) -> EncoderConfig:
        if not self.path and ":" not in self.kind:
            raise ValueError("path is required: a folder, a Hub name or a run folder")
        if self.settings and ":" not in self.kind:
            raise ValueError("only your own encoder class (kind: module:Class) takes settings")
        return self


def select_given(settings: EncoderConfig, names: Sequence[str]) -> dict[str, Any]:
    """Return those of some settings that are not at their defaults."""
    defaults = EncoderConfig.model_fields
    return {name: value for name in names if (value := getattr(settings, name)) != defaults[name].default}
