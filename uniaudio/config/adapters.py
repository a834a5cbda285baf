"""What a run config says of the adapter: one record for each kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from uniaudio.config.records import Strict

RIDGE = "ridge"


class DepthConfig(Strict):
    """Hidden states of encoder layers for layers of the decoder (DeepStack, arXiv 2406.04334), each through its own
    LayerNorm and linear map, added at the audio positions. The maps start at zero, so the first loss does not change.

    Read by: run commands.
    """

    encoder_layers: tuple[NonNegativeInt, ...] = Field(min_length=1)
    """Hidden states of the encoder: 0 is what its first layer reads, the last one its frames."""
    decoder_layers: tuple[NonNegativeInt, ...] = Field(min_length=1)
    """Layers of the decoder, counted from 0, after which the hidden states are added: as many as `encoder_layers`, in
    the same order, each once. The last layer is not possible, because no layer would read the sum.
    """

    @model_validator(mode="after")
    def check_pairs(self) -> DepthConfig:
        if len(self.encoder_layers) != len(self.decoder_layers):
            raise ValueError(
                f"{len(self.encoder_layers)} encoder_layers and {len(self.decoder_layers)} "
                "decoder_layers; give the same number of both"
            )
        if len(set(self.decoder_layers)) < len(self.decoder_layers):
            raise ValueError("decoder_layers: a layer is listed twice")
        return self


class AdapterSettings(Strict):
    """The adapter (projector) between encoder and decoder: it maps the encoder's frames to audio tokens in
    the decoder's embedding space.

    Read by: run commands.
    """

    hidden: PositiveInt | None = None
    """Width of the hidden layers. By default the decoder's width for `stack` and `pool`, the encoder's for `conv`,
    `qformer` and `perceiver`, five times the encoder's for `tokens` and eight times for `ultravox`. `qwen2_audio`,
    `audio_flamingo3` and `voxtral` have no such setting, because their formats fix the widths.
    """
    lr: PositiveFloat = 1e-3
    """Peak learning rate of the adapter. Read by: train."""
    depth: DepthConfig | None = None
    """Hidden states of encoder layers that are added after layers of the decoder. Not for projectors of published
    models.
    """
    time_markers: PositiveFloat | None = None
    """Seconds between time markers: the time as text, such as `4s`, is put before the audio tokens that begin at that
    time, with one token per character. Not for projectors of published models, and not for `perceiver`, whose tokens
    have no order in time.
    """

    @model_validator(mode="after")
    def check_additions(self) -> AdapterSettings:
        kind = getattr(self, "kind", "")
        refused = {"depth": self.depth, "time_markers": self.time_markers}
        for name, value in refused.items():
            if value is not None and kind in ("qwen2_audio", "audio_flamingo3", "voxtral", "ultravox"):
                raise ValueError(f"{name}: the format of {kind} does not support it; use another kind")
        if self.time_markers is not None and kind == "perceiver":
            raise ValueError(
                "time_markers: the tokens of a perceiver have no order in time; use another kind"
            )
        return self

    @property
    def tokens_per_second(self) -> float | None:
        """Audio tokens per second of sound, None where their number is fixed for a clip."""
        return getattr(self, "rate", None)


class GroupingSettings(AdapterSettings):
    """Every group of neighbouring frames becomes one audio token on its own.

    Read by: run commands.
    """

    start: Literal["random", "ridge"] = "random"
    """Initial weights: `random`, or `ridge`, a closed-form solution that makes audio tokens estimates of the answers in
    the decoder's embedding space; a causal decoder then uses the audio after far fewer steps. Read by: train.
    """
    start_examples: PositiveInt = 400
    """Number of rows of the first stage's recipe to which `start: ridge` is fitted; each is encoded once. Read by:
    train.
    """


class StackConfig(GroupingSettings):
    """Neighbouring frames are stacked to `rate` tokens per second, then pass through an MLP."""

    kind: Literal["stack"] = "stack"
    """`stack`, the default."""
    rate: PositiveFloat = 12.5
    """Audio tokens per second of sound; must divide the encoder's frame rate. The default, 12.5, is one token
    for four frames of Whisper.
    """


class LinearConfig(GroupingSettings):
    """One linear map (XARES-LLM): neighbouring frames are stacked to `rate` tokens per second, with no norm and
    no hidden layer.
    """

    kind: Literal["linear"]
    """`linear`."""
    rate: PositiveFloat = 12.5
    """Audio tokens per second of sound; must divide the encoder's frame rate. With the encoder's own rate, each frame
    is mapped separately.
    """

    @model_validator(mode="after")
    def check_no_hidden(self) -> LinearConfig:
        if self.hidden is not None:
            raise ValueError("hidden: a linear adapter has no hidden layer; use `kind: stack` for an MLP")
        return self


class PoolConfig(GroupingSettings):
    """The mean of neighbouring frames, `rate` a second, then an MLP."""

    kind: Literal["pool"]
    """`pool`."""
    rate: PositiveFloat = 12.5
    """Audio tokens per second of sound; must divide the encoder's frame rate."""


class ConvConfig(AdapterSettings):
    """Convolutions of stride 2 down to `rate` tokens per second."""

    kind: Literal["conv"]
    """`conv`."""
    rate: PositiveFloat = 12.5
    """Audio tokens per second of sound; the encoder's frame rate divided by a power of two."""
    kernel: PositiveInt = 5
    """Kernel size of each convolution in frames, an odd number."""


class QformerConfig(AdapterSettings):
    """Window-level Q-Former (SALMONN): `queries` tokens for every window of `window_seconds`, by cross
    attention to the frames of the window.
    """

    kind: Literal["qformer"]
    """`qformer`."""
    window_seconds: PositiveFloat = 0.33
    """Length of a window in seconds, rounded to whole frames."""
    queries: PositiveInt = 1
    """Audio tokens per window."""
    layers: PositiveInt = 2
    """Transformer layers."""
    heads: PositiveInt = 8
    """Attention heads of each layer; must divide `hidden`."""

    @property
    def tokens_per_second(self) -> float:
        """Nominal: windows are rounded to whole frames."""
        return self.queries / self.window_seconds


class PerceiverConfig(AdapterSettings):
    """Perceiver resampler: `queries` tokens for every clip, whatever its length."""

    kind: Literal["perceiver"]
    """`perceiver`."""
    queries: PositiveInt = 100
    """Audio tokens per clip."""
    layers: PositiveInt = 2
    """Transformer layers."""
    heads: PositiveInt = 8
    """Attention heads of each layer; must divide `hidden`."""


class TokensConfig(AdapterSettings):
    """A fixed number of tokens for every clip: frames are interpolated over the clip's duration, stacked and
    passed through a SwiGLU MLP (MoWE-Audio).
    """

    kind: Literal["tokens"]
    """`tokens`."""
    tokens: PositiveInt = 100
    """Audio tokens per clip."""
    stack: PositiveInt = 15
    """Interpolated frames that are stacked into one token."""


class StockProjectorConfig(AdapterSettings):
    """The projector of a published audio language model, for runs whose whole model is to be exported to its
    format (`uniaudio export --to`).
    """

    kind: Literal["qwen2_audio", "audio_flamingo3", "voxtral"]
    """`qwen2_audio`: one linear map at 25 tokens per second, with learned tokens before and after those of a clip.
    `audio_flamingo3`: two linear maps at 25 per second. `voxtral`: four frames stacked, two linear maps at 12.5 per
    second, with a learned token before those of a clip. The first two need `pool: 2` on a Whisper encoder.
    """

    @model_validator(mode="after")
    def check_hidden(self) -> StockProjectorConfig:
        if self.hidden is not None:
            raise ValueError(f"hidden: the format of {self.kind} fixes its widths; leave it out")
        return self

    @property
    def tokens_per_second(self) -> float:
        """Without the marks around a clip."""
        return 12.5 if self.kind == "voxtral" else 25.0


class UltravoxConfig(AdapterSettings):
    """The projector of Ultravox: stacked frames, RMSNorm, a linear map, SwiGLU, RMSNorm, a linear map; for runs
    whose whole model is to be exported to its format.
    """

    kind: Literal["ultravox"]
    """`ultravox`."""
    stack: PositiveInt = 8
    """Neighbouring frames of Whisper, 50 per second, that make one audio token."""

    @property
    def tokens_per_second(self) -> float:
        """Nominal: the last group of a clip may be shorter."""
        return 50.0 / self.stack


AdapterConfig = Annotated[
    StackConfig
    | LinearConfig
    | PoolConfig
    | ConvConfig
    | QformerConfig
    | PerceiverConfig
    | TokensConfig
    | StockProjectorConfig
    | UltravoxConfig,
    Field(discriminator="kind"),
]
