"""From a fusion config and loaded encoders to one encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uniaudio.config.fusion import FITTED, FusionConfig, MoweConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.fusion.base import FusionOperator
from uniaudio.model.fusion.concat_sum_mix import ConcatFusion, ScalarMix, SumFusion
from uniaudio.model.fusion.encoder import FusedEncoder
from uniaudio.model.fusion.explicit import ExplicitInjection
from uniaudio.model.fusion.gate import GateFusion
from uniaudio.model.fusion.hconv import HconvFusion
from uniaudio.model.fusion.moe import MoeFusion
from uniaudio.model.fusion.mowe import MoweEncoder
from uniaudio.model.fusion.stft_residual import StftBranch
from uniaudio.model.fusion.unimoe import UniMoeFusion
from uniaudio.model.fusion.weighted_layers import LayerFusion
from uniaudio.model.fusion.wq import WqFusion

MEETING_RATE = 25.0  # frames per second, as in the papers; a slower base keeps its own
SHARED = {
    "kind",
    "rate",
    "align",
    "lr",
    "dim",
    "stft",
    "start",
    "start_examples",
}  # all else is the operator's own

OPERATORS: Mapping[str, type[FusionOperator]] = {
    "concat": ConcatFusion,
    "sum": SumFusion,
    "mix": ScalarMix,
    "gate": GateFusion,
    "moe_concat": MoeFusion,
    "moe_proj": MoeFusion,
    "explicit": ExplicitInjection,
    "wq": WqFusion,
    "layers": LayerFusion,
    "hconv": HconvFusion,
    "chconv": HconvFusion,
    "unimoe": UniMoeFusion,
}


def fuse(
    config: FusionConfig, encoders: Mapping[str, AudioEncoder], prompt_dim: int | None = None
) -> AudioEncoder:
    """Put encoders behind the operator of a config; the first one is the base.

    Args:
        prompt_dim: width of the decoder's token embeddings, for a router that reads the question.

    Raises:
        UserError: when rates, widths or layers do not suit the operator.
    """
    base = next(iter(encoders.values()))
    rate = config.rate or min(MEETING_RATE, base.frame_rate)
    scales = config.start in FITTED
    if isinstance(config, MoweConfig):
        settings = config.model_dump(exclude=SHARED | {"smooth_keep", "smooth_epsilon", "reads_prompt"})
        return MoweEncoder(
            encoders,
            rate,
            config.align,
            prompt_dim=prompt_dim if config.reads_prompt else None,
            keep=config.smooth_keep,
            epsilon=config.smooth_epsilon,
            scales=scales,
            **settings,
        )
    dim = config.dim or base.dim
    settings = config.model_dump(exclude=SHARED)
    operator = OPERATORS[config.kind](
        tuple(encoders),
        [e.dim for e in encoders.values()],
        dim,
        **settings,
        **derive_arguments(config, encoders),
    )
    stft = None
    if config.stft is not None:
        if operator.frames_per_frame > 1:
            raise UserError("fusion.stft needs one frame per time step: set fusion.output to sum")
        stft = StftBranch(dim, rate, **config.stft.model_dump())
    return FusedEncoder(encoders, operator, rate, config.align, stft, scales)


def derive_arguments(config: FusionConfig, encoders: Mapping[str, AudioEncoder]) -> dict[str, Any]:
    """Return the arguments that follow from the kind: modes of one operator, and the layers of the encoders."""
    kind = config.kind
    if kind in ("concat", "sum", "mix"):
        return {"start": "base" if config.start == "base" else "random"}
    if kind == "wq":
        return {"project_all": config.start in FITTED}
    if kind in ("moe_concat", "moe_proj"):
        return {"project": kind == "moe_proj"}
    if kind not in ("layers", "hconv", "chconv"):
        return {}
    for name, encoder in encoders.items():
        if len(set(encoder.layer_dims)) > 1:
            widths = ", ".join(str(width) for width in dict.fromkeys(encoder.layer_dims))
            raise UserError(
                f"fusion.kind {kind}: the hidden states of {name} are {widths} wide, but must be "
                "equally wide; use an operator that reads only the last hidden state, such as "
                "concat"
            )
    layers = {"layers": [len(encoder.layer_dims) for encoder in encoders.values()]}
    return layers if kind == "layers" else {**layers, "merge": "add" if kind == "hconv" else "concat"}
