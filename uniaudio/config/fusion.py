"""What a run config says of the fusion of several encoders: one record for each operator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from uniaudio.config.records import Strict

PCA, WHITENING, WCCN = "pca", "whitening", "wccn"
FITTED = (PCA, WHITENING, WCCN)  # starts in closed form
Weight = Annotated[float, Field(ge=0)]


class StftConfig(Strict):
    """A branch that adds the log-magnitude spectrum to the fused frames (dual-encoder fusion, eq. 7-8).

    Read by: run commands.
    """

    n_fft: PositiveInt = 1024
    """Length of the FFT and of its window, in samples at 16 kHz."""
    mels: PositiveInt = 128
    """Mel bands."""
    gamma: float = 1e-2
    """Initial value of the learned factor of the branch."""


class Fusion(Strict):
    """Keys of every fusion operator: how several encoders become one stream of frames.

    Read by: run commands.
    """

    rate: PositiveFloat | None = None
    """Frames per second of the fused stream, at most that of the fastest encoder. Default: 25, or the rate of
    the first encoder if that is lower.
    """
    align: Literal["area", "linear"] = "area"
    """How streams are converted to `rate`: `area` averages over the time of a frame, `linear` interpolates between the
    centres of frames.
    """
    lr: PositiveFloat = 5e-5
    """Peak learning rate of the fusion's parameters. Read by: train."""
    start: Literal["random", "pca", "whitening", "wccn"] = "random"
    """Initial weights: `random`, as published, or `pca`: every encoder is standardized, and the fusion begins with the
    principal components of all of them, so that none dominates; `whitening` also scales down the directions in which
    the clips of an encoder differ most, `wccn` those in which clips with the same answer differ. The scales are
    trained parameters.
    """
    start_examples: PositiveInt = 300
    """Number of rows of the first stage's recipe to which `start` is fitted; each is encoded once. Read by: train."""


class Operator(Fusion):
    """Keys of every fusion operator but `mowe`."""

    dim: PositiveInt | None = None
    """Width of the fused frames. Default: that of the first encoder."""
    stft: StftConfig | None = None
    """Adds a spectral branch; `{}` uses the defaults. Default: no branch."""


class LinearOperator(Operator):
    """Keys of the operators that can begin with the first encoder alone."""

    start: Literal["base", "random", "pca", "whitening", "wccn"] = "base"  # type: ignore[assignment]
    """Initial weights: `base` begins with the frames of the first encoder, `random` with PyTorch's default
    initialization, the others as for the other operators.
    """


class ConcatConfig(LinearOperator):
    """One linear map over the concatenated frames of all encoders."""

    kind: Literal["concat"]
    """`concat`."""


class SumConfig(LinearOperator):
    """The sum of one linear map per encoder."""

    kind: Literal["sum"]
    """`sum`."""


class MixConfig(LinearOperator):
    """A learned scalar weight per encoder (ELMo, eq. 1)."""

    kind: Literal["mix"]
    """`mix`."""


class GateConfig(Operator):
    """A gate per frame with residuals and layer norms (dual-encoder fusion, eq. 3-6)."""

    kind: Literal["gate"]
    """`gate`."""


class Experts(Operator):
    """Keys of the operators that route each frame to `top_k` experts."""

    experts: PositiveInt
    """Number of experts."""
    top_k: PositiveInt = 2
    """Number of experts to which a frame is routed."""
    hidden: PositiveInt | None = None
    """Hidden width of an expert. Default: twice `dim`, for `unimoe` 8/3 of it."""

    @model_validator(mode="after")
    def check_experts(self) -> Experts:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.experts} experts")
        return self


class MoeConfig(Experts):
    """Mixture of experts over the concatenated frames (`moe_concat`), or over frames that were projected to
    `dim` first (`moe_proj`).
    """

    kind: Literal["moe_concat", "moe_proj"]
    """`moe_concat` or `moe_proj`."""
    experts: PositiveInt = 8
    """Number of experts."""
    balance_weight: Weight = 1e-2
    """Weight of the load-balancing loss (Switch Transformer, eq. 4-6). Read by: train."""


class ExplicitConfig(Operator):
    """Explicit injection: what the first encoder cannot predict of another is added through a gate
    (dual-encoder fusion, eq. 9-13).
    """

    kind: Literal["explicit"]
    """`explicit`."""
    recon_weight: Weight = 1e-2
    """Weight of the reconstruction loss. Read by: train."""
    decor_weight: Weight = 1e-2
    """Weight of the decorrelation loss. Read by: train."""
    decor_dim: PositiveInt = 64
    """Width of the projections whose covariance is penalized."""
    learned_projections: bool = False
    """Train these projections, as in the published equation, instead of fixed random ones."""


class WqConfig(Operator):
    """WQ-Fusion (arXiv 2606.26556): modulation and gated attention over the frames of all encoders on the
    time axis.
    """

    kind: Literal["wq"]
    """`wq`."""
    output: Literal["sum", "both"] = "sum"
    """`sum` adds the frames of equal time to one stream, `both` passes all of them on."""
    heads: PositiveInt = 8
    """Attention heads."""
    head_dim: PositiveInt = 128
    """Width of a head."""
    blocks: PositiveInt = 1
    """Number of attention blocks."""
    residual: bool = False
    """Adds a skip connection and a feed-forward part to each block."""
    zero_start: bool = False
    """Initialize modulation, attention and feed-forward to zero. Read by: train."""


class LayersConfig(Operator):
    """A learned weighted sum over the hidden states of all layers (arXiv 2511.08389); takes a single encoder,
    too.
    """

    kind: Literal["layers"]
    """`layers`."""


class HconvConfig(Operator):
    """Hierarchical convolution over the layer axis (arXiv 2406.12209); takes a single encoder, too."""

    kind: Literal["hconv", "chconv"]
    """`hconv` adds the layers of several encoders, `chconv` concatenates them."""
    start: Literal["random"] = "random"
    """Initial weights: its convolutions keep only a third of the features, so no start preserves all of them."""


class UniMoeConfig(Experts):
    """Shared and routed SwiGLU experts behind RMSNorm (UniAE-MoE)."""

    kind: Literal["unimoe"]
    """`unimoe`."""
    experts: PositiveInt = 4
    """Number of routed experts."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout probability inside the experts, in training. Read by: train."""


class MoweConfig(Fusion):
    """Mixture of weak encoders (MoWE-Audio, arXiv 2409.06635): the first encoder is the base, routers choose
    among the others for each clip.
    """

    kind: Literal["mowe"]
    """`mowe`."""
    start: Literal["random", "pca"] = "random"
    """Initial weights: `pca` standardizes every encoder, and projects weak encoders whose width is not `weak_dim` to
    their principal components.
    """
    weak_dim: PositiveInt | None = None
    """Width to which the frames of the weak encoders are projected. Default: that of the widest of them."""
    routers: Literal["both", "dependent", "independent"] = "both"
    """`independent` is the same for every clip, `dependent` reads the base's frames, `both` takes one encoder
    from each.
    """
    per_frame: bool = False
    """The dependent router chooses for each frame, not for each clip."""
    reads_prompt: bool = False
    """The dependent router reads the question, too."""
    smooth_keep: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of a router's own weights when they are smoothed:
    `smooth_keep * r + (1 - smooth_keep) * smooth_epsilon`.
    """
    smooth_epsilon: Weight | None = None
    """The value towards which the weights are smoothed. Default: 0.1 divided by the number of weak encoders.
    """
    entropy_weight: Weight = 0.1
    """Weight of the losses that make both routers confident. Read by: train."""
    diversity_weight: Weight = 0.1
    """Weight of the loss that keeps the dependent router from sending all clips to one encoder. Read by:
    train.
    """


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
