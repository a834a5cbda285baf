"""The run config: which model, trained how. Says what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr, model_validator

from uniaudio.config.adapters import RIDGE, AdapterConfig, StackConfig
from uniaudio.config.data_loading import DataConfig
from uniaudio.config.decoder import DecoderConfig
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.evaluation import EvaluateConfig
from uniaudio.config.fusion import ONE_IS_ENOUGH, FusionConfig
from uniaudio.config.records import Seed, Strict
from uniaudio.config.stages import GuardConfig, Stage
from uniaudio.config.strict_yaml import write_yaml
from uniaudio.config.training import TrainConfig
from uniaudio.config.trust import NO_TRUST, Trust, require_code, require_remote_code
from uniaudio.config.usual_names import RUN_NAMES, UsualNames

# what is trained beside the encoders, which have names of their own
COMPONENTS = ("fusion", "adapter", "decoder")


class RunConfig(Strict):
    """A run config: which model, trained how. Files inherit from another one by `base`.

    Read by: run commands.
    """

    usual_names: ClassVar[UsualNames | None] = RUN_NAMES
    seed: Seed = 0
    """Seed of the adapter's and the fusion's initial weights, the order of examples, dropout and
    augmentation.
    """
    output_dir: str = Field(min_length=1)
    """Run folder; may begin with `~` or `${env:NAME}`. Default: `runs/` and the file's name. Read by: train."""
    encoders: dict[str, EncoderConfig] = Field(min_length=1)
    """Audio encoders by a name of your choice, the first one being the base; more than one need a `fusion`.
    """
    fusion: FusionConfig | None = None
    """How several encoders become one. Default: none, for a single encoder."""
    adapter: AdapterConfig = StackConfig()
    """The adapter (projector) between encoder and decoder; `kind` defaults to `stack`."""
    decoder: DecoderConfig = DecoderConfig()
    """The language model."""
    data: DataConfig = DataConfig()
    """Data loading."""
    train: TrainConfig = TrainConfig()
    """Optimizer, global batch, checkpoints and logging."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The stages of training, in order."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Generation and scoring of evaluation sets."""
    guard: GuardConfig | None = None
    """A regression check in training. Default: none."""
    _folder: Path = PrivateAttr(Path())
    _trust: Trust = PrivateAttr(NO_TRUST)
    _reads_environment: bool = PrivateAttr(True)
    _written: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def check_parts(self) -> RunConfig:
        for name in self.encoders:
            if name in COMPONENTS:
                raise ValueError(
                    f"encoders: '{name}' is the name of another part of the model; use another name"
                )
            if not re.fullmatch(r"\w[\w-]*", name):
                raise ValueError(f"encoders: '{name}' cannot be a name; use letters, digits, _ and -")
        if self.fusion is None and len(self.encoders) > 1:
            raise ValueError(f"{len(self.encoders)} encoders need `fusion: {{kind: ...}}` to become one")
        if self.fusion is not None and len(self.encoders) == 1 and self.fusion.kind not in ONE_IS_ENOUGH:
            raise ValueError(f"fusion.kind {self.fusion.kind} needs a second encoder under `encoders`")
        if self.decoder.kind == "whisper" and self.decoder.miniature is not None:
            raise ValueError("decoder: a miniature decoder is causal; leave out kind or miniature")
        if self.decoder.dtype == "fp8" and self.decoder.kind == "whisper":
            raise ValueError("decoder.dtype: fp8 is for causal decoders; leave it out for Whisper's own")
        if self.decoder.dtype == "fp8" and self.decoder.train != "frozen":
            raise ValueError(
                f"decoder.dtype: fp8 is for a frozen decoder, but decoder.train is {self.decoder.train}"
            )
        if self.decoder.kind == "whisper" and getattr(self.adapter, "start", None) == RIDGE:
            raise ValueError(
                f"adapter.start: {RIDGE} is for causal decoders; Whisper's own decoder reads the "
                "frames without an adapter"
            )
        for name in ("depth", "time_markers"):
            if self.decoder.kind == "whisper" and getattr(self.adapter, name) is not None:
                raise ValueError(
                    f"adapter.{name} is for causal decoders; Whisper's own decoder reads the frames "
                    "without it"
                )
        cached = [name for name, encoder in self.encoders.items() if encoder.cache]
        if cached and self.adapter.depth is not None:
            raise ValueError(
                f"encoders.{cached[0]}.cache stores only the output frames, but adapter.depth reads "
                "hidden states; leave `cache` out"
            )
        if cached and self.fusion is not None and self.fusion.kind in ONE_IS_ENOUGH:
            raise ValueError(
                f"encoders.{cached[0]}.cache stores only the output frames, but fusion.kind "
                f"{self.fusion.kind} reads all hidden states; leave `cache` out"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages must have different names, got {', '.join(names)}")
        return self

    @property
    def folder(self) -> Path:
        """Where the config file stands; names in it are looked up there first."""
        return self._folder

    @property
    def trust(self) -> Trust:
        """What whoever opened this config allows; the config itself only states what it needs."""
        return self._trust

    @property
    def reads_environment(self) -> bool:
        """Whether ``${env:NAME}`` is resolved in the recipes and cards that this config names."""
        return self._reads_environment

    def require_trust(self, decoder: bool = True) -> None:
        """Refuse, before anything is built, what was not allowed.

        Args:
            decoder: whether the decoder is to be loaded too.

        Raises:
            UserError: naming the part and the option that allows it.
        """
        for name, encoder in self.encoders.items():
            if ":" in encoder.kind:
                require_code(encoder.kind, f"encoders.{name}", self.trust)
            elif encoder.trust_remote_code:
                require_remote_code(encoder.path, f"encoders.{name}", self.trust)
        if decoder and self.decoder.trust_remote_code:
            require_remote_code(self.decoder.path, "decoder", self.trust)

    def collect_trust_settings(self) -> dict[str, Any]:
        """Return the settings that decide what a run executes and reads, as plain values."""
        values = self.resolve_values()
        keys = ("kind", "path", "revision", "trust_remote_code", "settings", "miniature")
        parts = {**values["encoders"], "": values["decoder"]}
        chosen = {name: {key: part.get(key) for key in keys} for name, part in parts.items()}
        recipes = [
            [stage["recipe"], (stage["continual"]["ewc"] or {}).get("recipe")] for stage in values["stages"]
        ]
        sets = (values["guard"] or {}).get("sets")
        settings: dict[str, Any] = {
            "decoder": chosen.pop(""),
            "encoders": chosen,
            "recipes": recipes,
            "sets": sets,
        }
        if callbacks := values["train"]["callbacks"]:  # runs of earlier versions, without any, stay known
            settings["callbacks"] = callbacks
        return settings

    def restore_written_path(self, path: str) -> str:
        """Return a path as the config has it where that is through an environment variable, else as it is."""
        return self._written.get(path, path)

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of all stages, capped by ``train.max_steps``; None where hours of audio end a stage."""
        steps = [stage.steps for stage in self.stages]
        if None in steps:
            return self.train.max_steps
        planned = sum(count for count in steps if count is not None)
        return min(planned, self.train.max_steps or planned)

    def find_longest_clip(self, stage: Stage) -> float:
        """Return the seconds of the longest clip that a stage trains on."""
        return self.data.max_seconds or stage.budget.audio_seconds

    def resolve_values(self) -> dict[str, Any]:
        """Return plain values from which the same config can be read again.

        What came from the environment stays the name of its variable: it may be secret, and files are shown around.
        """
        values: dict[str, Any] = self.model_dump(mode="json")
        return replace_texts(values, self._written) if self._written else values

    def save(self, path: Path) -> None:
        """Write the resolved config as YAML."""
        write_yaml(path, self.resolve_values())


def replace_texts(value: Any, texts: Mapping[str, str]) -> Any:
    """Return plain values with some texts replaced."""
    if isinstance(value, dict):
        return {key: replace_texts(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_texts(item, texts) for item in value]
    return texts.get(value, value) if isinstance(value, str) else value
