"""The run config: which model, trained how. Inherits, takes overrides, and says what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from uniaudio.config.files import expand_path, find_file
from uniaudio.config.nearest import did_you_mean
from uniaudio.config.schema import Strict, build
from uniaudio.config.strict_yaml import dump_yaml, load_yaml, parse_scalar
from uniaudio.errors import UserError


class EncoderConfig(Strict):
    """One audio encoder. ``pad_to`` is in seconds, ``tail_frames`` in encoder frames."""

    kind: Literal["whisper"] = "whisper"
    path: str
    revision: str | None = None
    train: Literal["full", "frozen"] = "full"
    lr: PositiveFloat = 2e-5
    pad_to: PositiveFloat | None = None
    tail_frames: int = Field(0, ge=0)


class AdapterConfig(Strict):
    """From frames to audio tokens at ``rate`` per second; ``hidden`` defaults to the decoder's width."""

    kind: Literal["stack"] = "stack"
    rate: PositiveFloat = 12.5
    hidden: PositiveInt | None = None
    lr: PositiveFloat = 1e-3


class MiniatureConfig(Strict):
    """A small Qwen3 that is trained on the texts of the recipe alone and then frozen."""

    hidden: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    intermediate: PositiveInt = 256
    vocabulary: PositiveInt = 512
    steps: PositiveInt = 600
    batch: PositiveInt = 32
    lr: PositiveFloat = 3e-3
    seed: int = 0
    extra_texts: str | None = None


class DecoderConfig(Strict):
    """The frozen language model, by folder or Hub name, or a miniature one."""

    path: str = "Qwen/Qwen3-0.6B"
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    trust_remote_code: bool = False
    attention: Literal["auto", "packed", "padded"] = "auto"
    miniature: MiniatureConfig | None = None


class DataConfig(Strict):
    """``pool`` examples are sorted together; ``max_seconds`` defaults to the budget of a micro-batch."""

    workers: int = Field(2, ge=0)
    prefetch: PositiveInt = 2
    pool: PositiveInt = 256
    max_seconds: PositiveFloat | None = None
    max_skipped_share: float = Field(0.05, ge=0, le=1)
    log_ids: bool = False


class TrainConfig(Strict):
    """``micro_batches`` counts over all processes; it defaults to the number of processes."""

    max_steps: PositiveInt | None = None
    micro_batches: PositiveInt | None = None
    clip: PositiveFloat = 1.0
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    precision: Literal["auto", "bf16", "no"] = "auto"
    log_every: PositiveInt = 10
    save_every: PositiveInt = 500
    keep_last: PositiveInt = 2
    evaluate_every: PositiveInt | None = None
    tensorboard: bool = True
    label_chunk: PositiveInt = 2048


class Budget(Strict):
    """Modelled cost of one micro-batch: a clip costs its seconds plus ``per_example`` for its text."""

    audio_seconds: PositiveFloat
    per_example: float = Field(1.0, ge=0)


class Stage(Strict):
    """A recipe, for so many optimizer steps."""

    name: str
    recipe: str
    steps: PositiveInt
    warmup: int = Field(0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr_share: float = Field(0.0, ge=0, le=1)
    budget: Budget

    @model_validator(mode="after")
    def warmup_fits(self) -> Stage:
        if self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup} is longer than the stage's {self.steps} steps")
        return self


class EvaluateConfig(Strict):
    """How evaluation sets are asked."""

    max_examples: PositiveInt = 200
    max_new_tokens: PositiveInt = 64
    batch_seconds: PositiveFloat = 60


class RunConfig(Strict):
    """Everything about one run. ``folder`` is where the config file stands."""

    seed: int = 0
    output_dir: str
    encoders: dict[str, EncoderConfig]
    adapter: AdapterConfig = AdapterConfig()
    decoder: DecoderConfig = DecoderConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    stages: tuple[Stage, ...] = Field(min_length=1)
    evaluate: EvaluateConfig = EvaluateConfig()
    folder: Path = Field(Path(), exclude=True)

    @model_validator(mode="after")
    def one_encoder(self) -> RunConfig:
        if len(self.encoders) != 1:
            raise ValueError(f"encoders must name exactly one encoder, not {len(self.encoders)}")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages must have different names, got {', '.join(names)}")
        return self

    @property
    def encoder(self) -> EncoderConfig:
        """The one encoder."""
        return next(iter(self.encoders.values()))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages, capped by ``train.max_steps``."""
        planned = sum(stage.steps for stage in self.stages)
        return min(planned, self.train.max_steps or planned)

    def resolved(self) -> dict[str, Any]:
        """Return plain values from which the same config can be read again."""
        return self.model_dump(mode="json")

    def save(self, path: Path) -> None:
        """Write the resolved config as YAML."""
        path.write_text(dump_yaml(self.resolved()), encoding="utf-8")


def load_run(path_or_name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run config, its bases and the overrides ``key.sub=value``.

    Raises:
        UserError: naming file and key.
    """
    path = find_file("config", str(path_or_name))
    data = read_with_bases(path, ())
    for override in overrides:
        apply_override(data, override)
    data.setdefault("output_dir", f"runs/{path.stem}")
    config = build(RunConfig, {**data, "folder": path.parent}, str(path))
    return expand_paths(config, path)


def read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file over the file that its ``base`` names; mappings are merged, everything else is replaced."""
    if path.resolve() in seen:
        raise UserError(f"{path}: `base` goes round in a circle")
    data = load_yaml(path)
    base = data.pop("base", None)
    if base is None:
        return data
    parent = find_file("config", str(base), near=path.parent)
    return merged(read_with_bases(parent, (*seen, path.resolve())), data)


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set ``stages.0.steps=10`` in place; the schema checks the result.

    Raises:
        UserError: when it is not ``key=value`` or leads through something that has no parts.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}': write key.sub=value")
    known_first = list(RunConfig.model_fields)
    parts = key.split(".")
    if parts[0] not in known_first:
        raise UserError(f"override '{override}': unknown key{did_you_mean(parts[0], known_first)}")
    place: Any = data
    for part in parts[:-1]:
        place = step_into(place, part, override)
    value = parse_scalar(text)
    if isinstance(place, list):
        place[list_index(place, parts[-1], override)] = value
    else:
        place[parts[-1]] = value


def step_into(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list):
        return place[list_index(place, part, override)]
    if place.get(part) is None:
        place[part] = {}
    if not isinstance(place[part], (dict, list)):
        raise UserError(f"override '{override}': {part} is a value, it has no parts")
    return place[part]


def list_index(place: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise UserError(f"override '{override}': {part} is not one of the positions 0 to {len(place) - 1}")
    return int(part)


def expand_paths(config: RunConfig, path: Path) -> RunConfig:
    """Resolve the paths of encoders and decoder relative to the config file."""
    encoders = {
        name: e.model_copy(update={"path": expand_path(e.path, path.parent, f"{path}: encoders.{name}.path")})
        for name, e in config.encoders.items()
    }
    decoder = config.decoder
    decoder = decoder.model_copy(update={"path": expand_path(decoder.path, path.parent, f"{path}: decoder.path")})
    return config.model_copy(update={"encoders": encoders, "decoder": decoder})
