"""What a run config says of one encoder: where it is from and how it is trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from uniaudio.config.schema import Strict


class LoraConfig(Strict):
    """Low-rank updates (Hu et al. 2022) of chosen linear maps; the defaults are those of dual-encoder fusion.

    ``targets``: ``qkv`` (the projections of attention), ``all`` (every linear map), or regular expressions that are
    searched for in the names of the linear maps.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: Literal["qkv", "all"] | tuple[str, ...] = "qkv"


class EncoderConfig(Strict):
    """One audio encoder.

    ``kind: auto`` goes by the ``model_type`` of the checkpoint's config.json; ``module:Class`` is the user's own
    ``AudioEncoder``, made as ``Class(path, **settings)``. ``path``: a folder or Hub name, ``random:`` before it for
    random weights, or a run folder, whose encoder is taken with its LoRA merged. ``pad_to`` (seconds) and
    ``tail_frames`` are for Whisper, ``chunk_seconds`` for encoders without a reach of their own, ``frame_rate`` for
    those of remote code. ``cache`` keeps the frames of every clip on disk while the encoder is frozen, so that each is
    encoded once: as they are, or rounded to ``bfloat16``. ``recompute`` drops the activations inside its layers and
    makes them again in the backward; ``auto``: in stages whose micro-batches would not fit the memory otherwise.
    """

    kind: str = "auto"
    path: str = ""
    revision: str | None = None
    train: Literal["full", "frozen", "lora"] = "full"
    lr: PositiveFloat = 2e-5
    lora: LoraConfig = LoraConfig()
    trust_remote_code: bool = False
    pad_to: PositiveFloat | None = None
    tail_frames: int = Field(default=0, ge=0)
    chunk_seconds: PositiveFloat | None = None
    cache: bool | Literal["bfloat16"] = False
    frame_rate: PositiveFloat | None = None
    recompute: Literal["auto"] | bool = "auto"
    settings: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def path_or_class(self) -> EncoderConfig:
        if not self.path and ":" not in self.kind:
            raise ValueError("path is required: a folder, a Hub name or a run folder")
        if self.settings and ":" not in self.kind:
            raise ValueError("settings belong to an encoder class of your own, kind: module:Class")
        return self
