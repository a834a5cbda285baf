"""What a run config says of the adapter: one record for each kind.

``hidden`` defaults to the decoder's width for ``stack`` and ``pool``, to the encoder's for ``conv``, ``qformer`` and
``perceiver``, and to five times the encoder's for ``tokens``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from uniaudio.config.schema import Strict


class Adapter(Strict):
    hidden: PositiveInt | None = None
    lr: PositiveFloat = 1e-3

    @property
    def tokens_per_second(self) -> float | None:
        """Audio tokens per second of sound, None where their number is fixed for a clip."""
        return getattr(self, "rate", None)


class StackConfig(Adapter):
    """Neighbouring frames stacked to ``rate`` tokens per second, then an MLP."""

    kind: Literal["stack"] = "stack"
    rate: PositiveFloat = 12.5


class PoolConfig(Adapter):
    """The mean of neighbouring frames, then an MLP."""

    kind: Literal["pool"]
    rate: PositiveFloat = 12.5


class ConvConfig(Adapter):
    """Strided convolutions down to ``rate`` tokens per second."""

    kind: Literal["conv"]
    rate: PositiveFloat = 12.5
    kernel: PositiveInt = 5


class QformerConfig(Adapter):
    """``queries`` tokens for every window of ``window_seconds`` (window Q-Former of SALMONN)."""

    kind: Literal["qformer"]
    window_seconds: PositiveFloat = 0.33
    queries: PositiveInt = 1
    layers: PositiveInt = 2
    heads: PositiveInt = 8

    @property
    def tokens_per_second(self) -> float:
        """Nominal: windows are rounded to whole frames."""
        return self.queries / self.window_seconds


class PerceiverConfig(Adapter):
    """``queries`` tokens for every clip, however long (perceiver resampler)."""

    kind: Literal["perceiver"]
    queries: PositiveInt = 100
    layers: PositiveInt = 2
    heads: PositiveInt = 8


class TokensConfig(Adapter):
    """``tokens`` for every clip by stacking interpolated frames (MoWE: 100)."""

    kind: Literal["tokens"]
    tokens: PositiveInt = 100
    stack: PositiveInt = 15


AdapterConfig = Annotated[
    StackConfig | PoolConfig | ConvConfig | QformerConfig | PerceiverConfig | TokensConfig,
    Field(discriminator="kind"),
]
