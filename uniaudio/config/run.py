"""The run config: which model, trained how. Inherits, takes overrides, and says what does not fit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr, field_validator, model_validator

from uniaudio.config.adapters import RIDGE, AdapterConfig, StackConfig
from uniaudio.config.encoders import EncoderConfig, LoraConfig
from uniaudio.config.fusion import ONE_IS_ENOUGH, FusionConfig
from uniaudio.config.limits import MAX_TEXT_TOKENS
from uniaudio.config.overrides import Overrides, apply_overrides, lay_over_base, read_layers
from uniaudio.config.path_variables import VARIABLE, allow_environment, expand_path
from uniaudio.config.records import Strict, build
from uniaudio.config.search_paths import find_file, make_portable_name
from uniaudio.config.stages import GuardConfig, Stage
from uniaudio.config.strict_yaml import dump_yaml, load_yaml
from uniaudio.config.trust import NO_TRUST, Trust, read_remembered_trust, require_code, require_remote_code

TrackerName = Literal[
    "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab"
]


class MiniatureConfig(Strict):
    """A small Qwen3 that is trained from scratch on the texts of the recipe, then frozen; for runs without a
    download.

    Read by: train, check, plan, tune-batch.
    """

    hidden: PositiveInt = 128
    """Width of the model."""
    layers: PositiveInt = 4
    """Transformer layers."""
    heads: PositiveInt = 4
    """Attention heads."""
    kv_heads: PositiveInt = 2
    """Key and value heads (grouped-query attention)."""
    intermediate: PositiveInt = 256
    """Width of the feed-forward layers."""
    vocabulary: PositiveInt = 512
    """Tokens of its byte-level BPE tokenizer, at least 256 and the special tokens."""
    steps: PositiveInt = 600
    """Optimizer steps of its training. Read by: train, tune-batch."""
    batch: PositiveInt = 32
    """Texts per step. Read by: train, tune-batch."""
    lr: PositiveFloat = 3e-3
    """Peak learning rate. Read by: train, tune-batch."""
    seed: int = 0
    """Seed of its weights and batches. Read by: train, tune-batch."""
    extra_texts: str | None = None
    """Text file with more lines to train on. Default: the texts of the recipe alone. Read by: train,
    tune-batch.
    """


class DecoderConfig(Strict):
    """The language model that reads the audio tokens and is trained on the answers' next-token loss; frozen
    by default.

    Read by: train, check, plan, tune-batch, eval, ask, serve, forgetting.
    """

    kind: Literal["causal", "whisper"] = "causal"
    """`causal` is a decoder-only language model; `whisper` is Whisper's own decoder, which reads the frames
    by cross attention and needs no adapter.
    """
    path: str = "Qwen/Qwen3-0.6B"
    """A folder or Hub name of a transformers model; may begin with `${env:NAME}` or `${realmodels}`. `random:`
    and either of them takes random weights. Read by: train, check, plan, tune-batch, eval, ask, serve, forgetting,
    preview.
    """
    train: Literal["frozen", "lora", "full"] = "frozen"
    """`frozen`, `lora`, or `full` fine-tuning."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate where it is trained. Read by: train."""
    lora: LoraConfig = LoraConfig(rank=8, dropout=0.1, targets="all")
    """Rank, scale and layers of the low-rank updates, used with `train: lora`."""
    revision: str | None = None
    """Branch, tag or commit of a model on the Hub. Default: its main branch."""
    dtype: Literal["auto", "bfloat16", "float32", "fp8"] = "auto"
    """Precision of a frozen decoder's weights. `auto` is bfloat16 on CUDA and float32 elsewhere; `fp8` rounds the
    linear layers to 8 bits (experimental, NVIDIA Ada or newer).
    """
    trust_remote_code: bool = False
    """States that the model needs Python code of its own; the code runs only with the option
    `--trust-remote-code`.
    """
    attention: Literal["auto", "packed", "padded"] = "auto"
    """`packed` puts examples side by side without padding, `padded` pads them to one length, `auto` packs
    where the results equal the stock model's.
    """
    recompute: Literal["auto"] | bool = "auto"
    """Activation checkpointing (gradient checkpointing) inside its layers; `auto` as for an encoder. Read by:
    train, plan.
    """
    miniature: MiniatureConfig | None = None
    """Train a small decoder on the recipe's texts in place of loading `path`. Default: load `path`."""

    @property
    def folder(self) -> str:
        """The folder or Hub name with the decoder's configuration and tokenizer: the path without `random:`."""
        return self.path.removeprefix("random:")


class DataConfig(Strict):
    """Data loading: workers, sampling, sequence packing, and what happens to rows that cannot be used.

    Read by: train.
    """

    workers: int = Field(default=2, ge=0)
    """Data-loading processes of each training process; 0 loads in the training process."""
    prefetch: PositiveInt = 2
    """Micro-batches that each worker keeps ready."""
    pool: PositiveInt = 256
    """Rows of a stream that are sorted by length together (length bucketing); more means fuller batches and
    less randomness: where each dataset has clips of one length, a micro-batch then holds one task alone.
    """
    window: PositiveInt = 256
    """Shuffle buffer: rows of a shard (archive, table or stream) that are shuffled together."""
    streams: PositiveInt = 8
    """Independent streams of examples, rounded up to a multiple of `train.micro_batches`; bounds the useful
    number of workers of all processes together.
    """
    patience: PositiveFloat = 300
    """Seconds to wait for a worker before the run ends with an error."""
    max_outage: PositiveFloat = 600
    """Seconds that an unreachable network or server is retried, with growing pauses."""
    max_seconds: PositiveFloat | None = None
    """Longest clip in seconds; longer ones are skipped. Default: the stage's `budget.audio_seconds`. Read by:
    train, tune-batch.
    """
    max_text_tokens: PositiveInt = MAX_TEXT_TOKENS
    """Most tokens of a question with its answer, chat markup included and audio not; longer rows are skipped.
    Read by: train, check, eval, ask, forgetting.
    """
    max_skipped_share: float = Field(default=0.05, ge=0, le=1)
    """Share of a source's rows that may be skipped before the run ends with an error."""
    log_ids: bool = False
    """Write the ids of the examples of each logged step to `metrics.jsonl`."""


class TrainConfig(Strict):
    """The optimizer (AdamW), the global batch, checkpoints and logging.

    Read by: train.
    """

    max_steps: PositiveInt | None = None
    """Most optimizer steps of the whole run, over all stages. Default: those of the stages."""
    micro_batches: PositiveInt | None = None
    """Micro-batches of one optimizer step over all processes; divided by their number it is the gradient
    accumulation of each. Default: the number of processes. Read by: train, check, plan, data stats.
    """
    clip: PositiveFloat = 1.0
    """Gradient clipping: largest norm of the gradient."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW, for matrices; biases and norms are not decayed."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Coefficients of AdamW's running means of the gradient and of its square."""
    precision: Literal["auto", "bf16", "no"] = "auto"
    """`bf16` runs the forward under autocast, `no` in float32, `auto` takes bf16 on a GPU that has it.
    Weights and moments are float32. Read by: train, plan, tune-batch.
    """
    log_every: PositiveInt = 10
    """Optimizer steps between two lines of metrics."""
    save_every: PositiveInt = 500
    """Optimizer steps between two checkpoints."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that are kept; those at the ends of stages are kept besides."""
    keep_every: PositiveInt | None = None
    """Keep the checkpoints at multiples of this number of steps, too. Default: none."""
    max_loss_ratio: float = Field(default=10.0, gt=1)
    """Loss spikes: a step whose loss is more than this factor times the stage's mean (or 1, if that is more)
    is skipped.
    """
    max_bad_steps: PositiveInt = 5
    """Skipped steps in a row (loss spikes, gradients that are not finite) after which the run ends with an
    error.
    """
    memory_gib: PositiveFloat | None = None
    """Memory that a process may use, in GiB, for `recompute: auto`. Default: that of its GPU; not bounded on
    a CPU. Read by: train, plan.
    """
    compile: bool = False
    """Compile the layers of packed encoders and decoders with `torch.compile`."""
    hang_seconds: PositiveFloat = 1800
    """Seconds without a step after which every process writes the stacks of its threads to the run folder."""
    profile: bool = False
    """Profile three steps with PyTorch's profiler, print the time by part and write a trace."""
    callbacks: tuple[str, ...] = ()
    """Classes of your own, each `module:Class` with methods such as `on_log` that training calls (docs/python.md);
    imported only with the option `--allow-code`.
    """
    evaluate_every: PositiveInt | None = None
    """Optimizer steps between two evaluations on the recipe's evaluation sets. Default: no evaluation in
    training. Read by: train, check.
    """
    tensorboard: bool = True
    """Write TensorBoard event files beside `metrics.jsonl`, where its package is installed (extra `tensorboard`)."""
    trackers: tuple[TrackerName, ...] = ()
    """Experiment trackers besides `metrics.jsonl`; each needs its package, for `wandb`, `trackio` and `mlflow` the
    extra of that name.
    """
    project: str = "uniaudio"
    """Project of the trackers (experiment in MLflow)."""
    run_name: str | None = None
    """Name of the run in the trackers. Default: that of the run folder."""
    tags: tuple[str, ...] = ()
    """Tags of the run in the trackers."""
    label_chunk: PositiveInt = 2048
    """Answer tokens whose logits are in memory at a time. Read by: train, plan."""

    @field_validator("callbacks")
    @classmethod
    def check_callbacks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"[\w.]+:\w+", name):
                raise ValueError(f"callbacks: '{name}' is not written as module:Class")
        return names


class EvaluateConfig(Strict):
    """How evaluation sets are generated and scored.

    Read by: train, eval, forgetting.
    """

    max_examples: PositiveInt | None = None
    """Most rows of an evaluation set whose recipe states no number. Default: all rows."""
    max_new_tokens: PositiveInt = 256
    """Longest generated answer in tokens; 256 hold half a minute of fast speech."""
    repetition_penalty: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    """Divides the logits of tokens that the answer already holds where they are positive, and multiplies them
    where they are not (Keskar et al. 2019); 1 is none.
    """
    batch_seconds: PositiveFloat = 60
    """Seconds of audio in a batch; results do not depend on it."""


MINI = "+mini"  # among the overrides: the config's miniature twin
COMPONENTS = (
    "fusion",
    "adapter",
    "decoder",
)  # what is trained beside the encoders, which have names of their own


class RunConfig(Strict):
    """A run config: which model, trained how. Files inherit from another one by `base`.

    Read by: run commands.
    """

    seed: int = 0
    """Seed of the adapter's and the fusion's initial weights, the order of examples, dropout and
    augmentation.
    """
    output_dir: str
    """Run folder. Default: `runs/` and the file's name. Read by: train."""
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
        if self.decoder.kind == "whisper" and getattr(self.adapter, "start", None) == RIDGE:
            raise ValueError(
                f"adapter.start: {RIDGE} is for causal decoders; Whisper's own reads the frames without an adapter"
            )
        for name in ("depth", "time_markers"):
            if self.decoder.kind == "whisper" and getattr(self.adapter, name) is not None:
                raise ValueError(
                    f"adapter.{name} is for causal decoders; Whisper's own reads the frames without it"
                )
        cached = [name for name, encoder in self.encoders.items() if encoder.cache]
        if cached and self.adapter.depth is not None:
            raise ValueError(
                f"encoders.{cached[0]}.cache keeps the last frames, but adapter.depth reads hidden states; leave "
                "`cache` out"
            )
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
        path.write_text(dump_yaml(self.resolve_values()), encoding="utf-8")


def replace_texts(value: Any, texts: Mapping[str, str]) -> Any:
    """Return plain values with some texts replaced."""
    if isinstance(value, dict):
        return {key: replace_texts(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_texts(item, texts) for item in value]
    return texts.get(value, value) if isinstance(value, str) else value


def load_run(path_or_name: str | Path, overrides: Overrides = (), trust: Trust = NO_TRUST) -> RunConfig:
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
    folder = "runs/mini" if path.parent.name == "mini" else "runs"
    return build_run({"output_dir": f"{folder}/{path.stem}", **data}, path, overrides, trust)


def parse_run(
    values: Mapping[str, Any], folder: Path, overrides: Overrides = (), trust: Trust = NO_TRUST
) -> RunConfig:
    """Make a run config of plain values, as a file would hold them; see ``load_run``.

    Args:
        folder: in which relative paths and names are looked up first.

    Raises:
        UserError: naming the key.
    """
    path = folder / "config"  # no file: messages say "config: key"
    return build_run(lay_over_base(make_plain(values), path, "config"), path, overrides, trust)


def make_plain(value: Any) -> Any:
    """Return nested values as YAML could hold them: paths as text, tuples as lists, numbers of numpy as numbers."""
    if isinstance(value, Mapping):
        return {str(key): make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") else value


def build_run(data: dict[str, Any], path: Path, overrides: Overrides, trust: Trust) -> RunConfig:
    """Return the run config of what a file says, and of overrides; see ``load_run``.

    Args:
        data: changed in place. path: of the file.
    """
    apply_overrides(
        data,
        make_plain(overrides) if isinstance(overrides, Mapping) else overrides,
        list(RunConfig.model_fields),
    )
    if isinstance(data.get("adapter"), dict):
        data["adapter"].setdefault("kind", "stack")
    name = str(path) if path.is_file() else path.name
    config = expand_paths(build(RunConfig, data, name), path, name=name)
    config = config.model_copy(update={"output_dir": os.path.expanduser(config.output_dir)})
    config._folder = path.parent
    config._trust = trust | (
        read_remembered_trust(Path(config.output_dir), config.collect_trust_settings()) or NO_TRUST
    )
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
    known = read_remembered_trust(run, written.collect_trust_settings())
    with allow_environment(known is not None):
        config = expand_paths(stored, file)
    config._folder = file.parent
    config._trust = trust | (known or NO_TRUST)
    config._reads_environment = known is not None
    return config


def expand_paths(config: RunConfig, path: Path, environment: bool = True, name: str = "") -> RunConfig:
    """Resolve paths and recipes relative to the config file: a saved config means the same elsewhere.

    Args:
        environment: whether paths through environment variables are resolved too, rather than left as they are.
        name: how messages call the file; default its path.
    """
    texts: dict[str, str] = {}
    name = name or str(path)

    def expand_text_path(text: str, key: str) -> str:
        if VARIABLE.search(text) is None:
            return expand_path(text, path.parent, f"{name}: {key}")
        if not environment:
            return text
        resolved = expand_path(text, path.parent, f"{name}: {key}")
        texts[resolved] = text
        return resolved

    encoders = {
        name: encoder.model_copy(update={"path": expand_text_path(encoder.path, f"encoders.{name}.path")})
        if encoder.path
        else encoder
        for name, encoder in config.encoders.items()
    }
    decoder = config.decoder.model_copy(
        update={"path": expand_text_path(config.decoder.path, "decoder.path")}
    )
    small = decoder.miniature
    if small is not None and small.extra_texts is not None:
        extra = expand_text_path(small.extra_texts, "decoder.miniature.extra_texts")
        decoder = decoder.model_copy(update={"miniature": small.model_copy(update={"extra_texts": extra})})
    stages = tuple(make_recipes_portable(stage, path.parent) for stage in config.stages)
    guard = config.guard
    if guard is not None:
        sets = {name: expand_text_path(folder, f"guard.sets.{name}") for name, folder in guard.sets.items()}
        guard = guard.model_copy(update={"sets": sets})
    changed = config.model_copy(
        update={"encoders": encoders, "decoder": decoder, "stages": stages, "guard": guard}
    )
    changed._written = texts
    return changed


def make_recipes_portable(stage: Stage, near: Path) -> Stage:
    """Let a stage name its recipes so that they are found from any folder."""
    changes: dict[str, Any] = {"recipe": make_portable_name("recipe", stage.recipe, near)}
    ewc = stage.continual.ewc
    if ewc is not None and ewc.recipe is not None:
        ewc = ewc.model_copy(update={"recipe": make_portable_name("recipe", ewc.recipe, near)})
        changes["continual"] = stage.continual.model_copy(update={"ewc": ewc})
    return stage.model_copy(update=changes)
