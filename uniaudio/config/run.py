"""The run config: which model, trained how. Inherits, takes overrides, and says what does not fit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr, model_validator

from uniaudio.config.adapters import AdapterConfig, StackConfig
from uniaudio.config.encoders import EncoderConfig, LoraConfig
from uniaudio.config.files import VARIABLE, environment_for, expand_path, find_file, portable_name
from uniaudio.config.fusion import ONE_IS_ENOUGH, FusionConfig
from uniaudio.config.layers import apply_override, read_layers
from uniaudio.config.limits import MAX_TEXT_TOKENS
from uniaudio.config.schema import Strict, build
from uniaudio.config.stages import GuardConfig, Stage
from uniaudio.config.strict_yaml import dump_yaml, load_yaml
from uniaudio.config.trust import NO_TRUST, Trust, remembered_trust, require_code, require_remote_code


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
    """The language model, by folder or Hub name, or a miniature one; frozen unless ``train`` says otherwise.

    ``kind: whisper`` takes Whisper's own decoder, which hears the frames by cross attention and needs no adapter.
    ``recompute`` drops the activations inside its layers and makes them again in the backward: less memory, one more
    forward of the decoder; ``auto``: as for an encoder. ``dtype: fp8`` rounds the linear maps inside the layers of a
    frozen one to 8 bits, the rest is as with ``auto``.
    """

    kind: Literal["causal", "whisper"] = "causal"
    path: str = "Qwen/Qwen3-0.6B"
    train: Literal["frozen", "lora", "full"] = "frozen"
    lr: PositiveFloat = 1e-4
    lora: LoraConfig = LoraConfig(rank=8, dropout=0.1, targets="all")
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float32", "fp8"] = "auto"
    trust_remote_code: bool = False
    attention: Literal["auto", "packed", "padded"] = "auto"
    recompute: Literal["auto"] | bool = "auto"
    miniature: MiniatureConfig | None = None


class DataConfig(Strict):
    """How rows become steps.

    ``pool`` rows of a stream are sorted by length together; ``window`` rows of an archive or table are shuffled
    together; ``streams`` is rounded up to a multiple of ``train.micro_batches`` and bounds the useful number of workers
    of all processes. ``patience``: seconds to wait for a read.
    ``max_outage``: seconds that a network or server which cannot be reached is waited for, with growing pauses between
    tries. ``max_seconds`` defaults to the budget of a micro-batch.
    ``max_text_tokens``: most tokens of a question and its answer, markup included, clips not; longer rows are skipped.
    """

    workers: int = Field(default=2, ge=0)
    prefetch: PositiveInt = 2
    pool: PositiveInt = 256
    window: PositiveInt = 256
    streams: PositiveInt = 8
    patience: PositiveFloat = 300
    max_outage: PositiveFloat = 600
    max_seconds: PositiveFloat | None = None
    max_text_tokens: PositiveInt = MAX_TEXT_TOKENS
    max_skipped_share: float = Field(default=0.05, ge=0, le=1)
    log_ids: bool = False


class TrainConfig(Strict):
    """``micro_batches`` counts over all processes; it defaults to the number of processes.

    Of the checkpoints the ``keep_last`` newest are kept, those at steps that ``keep_every`` divides, and the last one
    of every stage. A step whose gradient is not finite is left out, and so is one whose loss is more than
    ``max_loss_ratio`` times the mean of the stage (or 1, if that is more); ``max_bad_steps`` of them in a row end the
    run. ``memory_gib``: GiB that a process may use, for ``recompute: auto``; without it those of its GPU, and on a CPU
    any number. ``compile``: let torch compile the layers of packed encoders and decoders, in the first steps.
    ``hang_seconds``: after so long without a step every process prints its stacks. ``profile``: look at three steps
    with torch's profiler, print the time by part and write a trace.
    """

    max_steps: PositiveInt | None = None
    micro_batches: PositiveInt | None = None
    clip: PositiveFloat = 1.0
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    precision: Literal["auto", "bf16", "no"] = "auto"
    log_every: PositiveInt = 10
    save_every: PositiveInt = 500
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None
    max_loss_ratio: float = Field(default=10.0, gt=1)
    max_bad_steps: PositiveInt = 5
    memory_gib: PositiveFloat | None = None
    compile: bool = False
    hang_seconds: PositiveFloat = 1800
    profile: bool = False
    evaluate_every: PositiveInt | None = None
    tensorboard: bool = True
    label_chunk: PositiveInt = 2048


class EvaluateConfig(Strict):
    """How evaluation sets are asked.

    ``max_examples`` caps the sets whose recipe states no number (None: all rows). ``max_new_tokens`` is the longest
    answer: half a minute of fast speech has some 170 tokens in English.
    """

    max_examples: PositiveInt | None = None
    max_new_tokens: PositiveInt = 256
    batch_seconds: PositiveFloat = 60


MINI = "+mini"  # among the overrides: the config's miniature twin
COMPONENTS = (
    "fusion",
    "adapter",
    "decoder",
)  # what is trained beside the encoders, which have names of their own


class RunConfig(Strict):
    """Everything about one run."""

    seed: int = 0
    output_dir: str
    encoders: dict[str, EncoderConfig] = Field(min_length=1)
    fusion: FusionConfig | None = None
    adapter: AdapterConfig = StackConfig()
    decoder: DecoderConfig = DecoderConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    stages: tuple[Stage, ...] = Field(min_length=1)
    evaluate: EvaluateConfig = EvaluateConfig()
    guard: GuardConfig | None = None
    _folder: Path = PrivateAttr(Path())
    _trust: Trust = PrivateAttr(NO_TRUST)
    _reads_environment: bool = PrivateAttr(True)
    _written: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def parts_fit(self) -> RunConfig:
        for name in self.encoders:
            if name in COMPONENTS or not re.fullmatch(r"\w[\w-]*", name):
                raise ValueError(f"encoders: '{name}' cannot be a name; take letters, digits, _ and -")
        if self.fusion is None and len(self.encoders) > 1:
            raise ValueError(f"{len(self.encoders)} encoders need `fusion: {{kind: ...}}` to become one")
        if self.fusion is not None and len(self.encoders) == 1 and self.fusion.kind not in ONE_IS_ENOUGH:
            raise ValueError(f"fusion.kind {self.fusion.kind} needs a second encoder under `encoders`")
        if self.decoder.kind == "whisper" and self.decoder.miniature is not None:
            raise ValueError("decoder: a miniature decoder is a causal one; leave kind or miniature out")
        if self.decoder.dtype == "fp8" and self.decoder.kind == "whisper":
            raise ValueError("decoder.dtype: fp8 is for causal decoders; leave it out for Whisper's own")
        if self.decoder.dtype == "fp8" and self.decoder.train != "frozen":
            raise ValueError(
                f"decoder.dtype: fp8 is for a frozen decoder, but decoder.train is {self.decoder.train}"
            )
        cached = [name for name, encoder in self.encoders.items() if encoder.cache]
        if cached and self.fusion is not None and self.fusion.kind in ONE_IS_ENOUGH:
            raise ValueError(
                f"encoders.{cached[0]}.cache keeps the last frames, but fusion.kind {self.fusion.kind} reads all "
                "hidden states; leave `cache` out"
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

    def trust_settings(self) -> dict[str, Any]:
        """Return the settings that decide what a run executes and reads, as plain values."""
        told = self.resolved()
        keys = ("kind", "path", "revision", "trust_remote_code", "settings", "miniature")
        parts = {**told["encoders"], "": told["decoder"]}
        chosen = {name: {key: part.get(key) for key in keys} for name, part in parts.items()}
        recipes = [
            [stage["recipe"], (stage["continual"]["ewc"] or {}).get("recipe")] for stage in told["stages"]
        ]
        sets = (told["guard"] or {}).get("sets")
        return {"decoder": chosen.pop(""), "encoders": chosen, "recipes": recipes, "sets": sets}

    def as_written(self, path: str) -> str:
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

    def resolved(self) -> dict[str, Any]:
        """Return plain values from which the same config can be read again.

        What came from the environment stays the name of its variable: it may be secret, and files are shown around.
        """
        told: dict[str, Any] = self.model_dump(mode="json")
        return replaced_texts(told, self._written) if self._written else told

    def save(self, path: Path) -> None:
        """Write the resolved config as YAML."""
        path.write_text(dump_yaml(self.resolved()), encoding="utf-8")


def replaced_texts(value: Any, texts: Mapping[str, str]) -> Any:
    """Return plain values with some texts replaced."""
    if isinstance(value, dict):
        return {key: replaced_texts(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced_texts(item, texts) for item in value]
    return texts.get(value, value) if isinstance(value, str) else value


def load_run(path_or_name: str | Path, overrides: Sequence[str] = (), trust: Trust = NO_TRUST) -> RunConfig:
    """Read a run config, its bases and the overrides ``key.sub=value``; ``+mini`` takes ``mini/NAME.yaml`` beside it.

    Args:
        trust: what the user allows; what was allowed to the run in its ``output_dir`` before is added.

    Raises:
        UserError: naming file and key.
    """
    path = find_file("config", str(path_or_name))
    if MINI in overrides:
        path = find_file("config", str(path.parent / "mini" / path.name))
        overrides = [override for override in overrides if override != MINI]
    data = read_layers(path, "config")
    for override in overrides:
        apply_override(data, override, list(RunConfig.model_fields))
    folder = "runs/mini" if path.parent.name == "mini" else "runs"
    data.setdefault("output_dir", f"{folder}/{path.stem}")
    if isinstance(data.get("adapter"), dict):
        data["adapter"].setdefault("kind", "stack")
    config = expand_paths(build(RunConfig, data, str(path)), path)
    config = config.model_copy(update={"output_dir": os.path.expanduser(config.output_dir)})
    config._folder = path.parent
    config._trust = trust | (remembered_trust(Path(config.output_dir), config.trust_settings()) or NO_TRUST)
    return config


def load_stored_run(file: Path, run: Path, trust: Trust = NO_TRUST) -> RunConfig:
    """Read the ``config.yaml`` that a run or a checkpoint stored, which may be somebody else's.

    ``${env:NAME}`` is resolved in it, and in the recipes and cards that it names, for runs made on this machine alone.

    Args:
        run: the run folder. trust: what the user allows; what was allowed to this very run before is added.

    Raises:
        UserError: naming file and key.
    """
    stored = build(RunConfig, load_yaml(file), str(file))
    written = expand_paths(stored, file, environment=False)
    known = remembered_trust(run, written.trust_settings())
    with environment_for(known is not None):
        config = expand_paths(stored, file)
    config._folder = file.parent
    config._trust = trust | (known or NO_TRUST)
    config._reads_environment = known is not None
    return config


def expand_paths(config: RunConfig, path: Path, environment: bool = True) -> RunConfig:
    """Resolve paths and recipes relative to the config file: a saved config means the same elsewhere.

    Args:
        environment: whether paths through environment variables are resolved too, rather than left as they are.
    """
    texts: dict[str, str] = {}

    def expanded(text: str, key: str) -> str:
        if VARIABLE.search(text) is None:
            return expand_path(text, path.parent, f"{path}: {key}")
        if not environment:
            return text
        resolved = expand_path(text, path.parent, f"{path}: {key}")
        texts[resolved] = text
        return resolved

    encoders = {
        name: encoder.model_copy(update={"path": expanded(encoder.path, f"encoders.{name}.path")})
        if encoder.path
        else encoder
        for name, encoder in config.encoders.items()
    }
    decoder = config.decoder.model_copy(update={"path": expanded(config.decoder.path, "decoder.path")})
    small = decoder.miniature
    if small is not None and small.extra_texts is not None:
        extra = expanded(small.extra_texts, "decoder.miniature.extra_texts")
        decoder = decoder.model_copy(update={"miniature": small.model_copy(update={"extra_texts": extra})})
    stages = tuple(with_portable_recipes(stage, path.parent) for stage in config.stages)
    guard = config.guard
    if guard is not None:
        sets = {name: expanded(folder, f"guard.sets.{name}") for name, folder in guard.sets.items()}
        guard = guard.model_copy(update={"sets": sets})
    changed = config.model_copy(
        update={"encoders": encoders, "decoder": decoder, "stages": stages, "guard": guard}
    )
    changed._written = texts
    return changed


def with_portable_recipes(stage: Stage, near: Path) -> Stage:
    """Let a stage name its recipes so that they are found from any folder."""
    changes: dict[str, Any] = {"recipe": portable_name("recipe", stage.recipe, near)}
    ewc = stage.continual.ewc
    if ewc is not None and ewc.recipe is not None:
        ewc = ewc.model_copy(update={"recipe": portable_name("recipe", ewc.recipe, near)})
        changes["continual"] = stage.continual.model_copy(update={"ewc": ewc})
    return stage.model_copy(update=changes)
