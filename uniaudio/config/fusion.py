"""What a run config says of the fusion of several encoders: one record for each operator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from uniaudio.config.schema import Strict

Weight = Annotated[float, Field(ge=0)]


class StftConfig(Strict):
    """The spectral branch of dual-encoder fusion, eq. 7-8."""

    n_fft: PositiveInt = 1024
    mels: PositiveInt = 128
    gamma: float = 1e-2


class Fusion(Strict):
    """What all operators have: ``rate`` in frames per second (default 25, or the base's if that is lower), ``dim``
    (default: the base's width).
    """

    rate: PositiveFloat | None = None
    align: Literal["area", "linear"] = "area"
    lr: PositiveFloat = 5e-5


class Operator(Fusion):
    """What the operators share that MoWE has not."""

    dim: PositiveInt | None = None
    stft: StftConfig | None = None


class ConcatConfig(Operator):
    kind: Literal["concat"]
    start: Literal["base", "random"] = "base"


class SumConfig(Operator):
    kind: Literal["sum"]
    start: Literal["base", "random"] = "base"


class MixConfig(Operator):
    kind: Literal["mix"]
    start: Literal["base", "random"] = "base"


class GateConfig(Operator):
    kind: Literal["gate"]


class Experts(Operator):
    """Operators with experts, each frame going to ``top_k`` of them."""

    experts: PositiveInt
    top_k: PositiveInt = 2
    hidden: PositiveInt | None = None

    @model_validator(mode="after")
    def enough_experts(self) -> Experts:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.experts} experts")
        return self


class MoeConfig(Experts):
    kind: Literal["moe_concat", "moe_proj"]
    experts: PositiveInt = 8
    balance_weight: Weight = 1e-2


class ExplicitConfig(Operator):
    kind: Literal["explicit"]
    recon_weight: Weight = 1e-2
    decor_weight: Weight = 1e-2
    decor_dim: PositiveInt = 64
    learned_projections: bool = False


class WqConfig(Operator):
    kind: Literal["wq"]
    output: Literal["sum", "both"] = "sum"
    heads: PositiveInt = 8
    head_dim: PositiveInt = 128
    blocks: PositiveInt = 1
    residual: bool = False
    zero_start: bool = False


class LayersConfig(Operator):
    kind: Literal["layers"]


class HconvConfig(Operator):
    kind: Literal["hconv", "chconv"]


class UniMoeConfig(Experts):
    kind: Literal["unimoe"]
    experts: PositiveInt = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class MoweConfig(Fusion):
    """The first encoder is the base, the others are the pool. ``smooth_keep`` and ``smooth_epsilon``: see
    ``routers.smoothed``.
    """

    kind: Literal["mowe"]
    weak_dim: PositiveInt | None = None
    routers: Literal["both", "dependent", "independent"] = "both"
    per_frame: bool = False
    reads_prompt: bool = False
    smooth_keep: Annotated[float, Field(ge=0, le=1)] = 0.9
    smooth_epsilon: Weight | None = None
    entropy_weight: Weight = 0.1
    diversity_weight: Weight = 0.1


ONE_IS_ENOUGH = ("layers", "hconv", "chconv")  # operators that have something to fuse in a single encoder

FusionConfig = Annotated[
    ConcatConfig
    | SumConfig
    | MixConfig
    | GateConfig
    | MoeConfig
    | ExplicitConfig
    | WqConfig
    | LayersConfig
    | HconvConfig
    | UniMoeConfig
    | MoweConfig,
    Field(discriminator="kind"),
]
