"""From a run config or a checkpoint to one audio encoder, alone or fused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from uniaudio.build.fusion import fuse
from uniaudio.config.decoder import DecoderConfig
from uniaudio.config.encoders import LISTENING, EncoderConfig, select_given
from uniaudio.config.model_spec import ModelSpec, parse_model_spec
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_stored_run
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import announce, warn_once
from uniaudio.errors import UserError, convert_to_user_error, read_first_line
from uniaudio.model.base_identity import CODE, CONTENT, identify_base
from uniaudio.model.cached_encoder import keep_features
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.registry import choose_settings, find_family, is_local_path, load_audio_encoder
from uniaudio.model.fusion.encoder import list_named_encoders
from uniaudio.model.lora import add_lora, merge_lora
from uniaudio.model.model_files import read_stock_config
from uniaudio.model.model_hash import hash_source_code
from uniaudio.run_records import STEP
from uniaudio.train.checkpoint.folders import choose_checkpoint, resolve_latest
from uniaudio.train.checkpoint.integrity import BASES, COMPLETE, CONFIG, EMA, MODEL, STATE, find_damage
from uniaudio.train.checkpoint.reading import Checkpoint, check_bases, load_checkpoint
from uniaudio.train.trainable import TrainableParameters, go_through_stages, put_tensors

AVERAGED = ":ema"  # behind a run's path: its moving averages in place of its weights
PART = "encoder."  # what the names of its tensors begin with in a checkpoint
# of a router that reads the question: [E, width of the question]
READS_PROMPT = "encoder.dependent.read_prompt.weight"
Settings = TypeVar("Settings", EncoderConfig, DecoderConfig)


def choose_device() -> torch.device:
    """Return CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_device(name: str | torch.device | None) -> torch.device:
    """Return a device that can be used; None: as ``choose_device``.

    Raises:
        UserError: when it is not there.
    """
    try:
        device = choose_device() if name is None else torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise UserError(f"device: {name} cannot be used ({read_first_line(problem)})") from problem
    return device


def find_checkpoint(spec: str, read: Sequence[str] = (MODEL, STATE, BASES, CONFIG, EMA)) -> Path | None:
    """Return the checkpoint that a run folder or checkpoint folder stands for.

    Of a run folder it is the newest one whose files match their checksums; where that is not the last one that was
    written, the console says so once.

    Args:
        read: files that will be read, which alone are compared: hashing weights takes seconds.

    Raises:
        UserError: when a checkpoint is named that is damaged, or none of a run can be used.
    """
    path = resolve_latest(Path(spec.removesuffix(AVERAGED)))
    if (path / COMPLETE).exists() or (STEP.fullmatch(path.name) and path.is_dir()):
        if damage := find_damage(path, checksums=False):
            raise UserError(
                f"{path} is not a complete checkpoint ({damage}); use another one, or copy it again"
            )
        return path
    chosen, complaint = choose_checkpoint(path, read)
    if chosen is None and complaint:
        raise UserError(f"{path} holds no checkpoint that can be used: {complaint}")
    if complaint:
        warn_once(complaint)
    return chosen


def open_checkpoint(spec: str) -> Checkpoint | None:
    """Read the checkpoint of a run folder or checkpoint folder; ``:ema`` behind it takes its moving averages."""
    folder = find_checkpoint(spec)
    if folder is None:
        return None
    # one that was chosen has been compared just now
    named = folder == resolve_latest(Path(spec.removesuffix(AVERAGED)))
    return load_checkpoint(folder, ema=spec.endswith(AVERAGED), verify=named)


def is_run(spec: str) -> bool:
    """Return whether a path is a run folder, a checkpoint or a config of one rather than a model's own folder."""
    folder = resolve_latest(Path(spec.removesuffix(AVERAGED)))
    return (
        (folder / COMPLETE).exists()
        or ((folder / CONFIG).is_file() and not (folder / "config.json").exists())
        or (folder / "checkpoints").is_dir()
        or (folder / "metrics.jsonl").is_file()
    )


def is_run_encoder(settings: EncoderConfig) -> bool:
    """Return whether the encoder is that of a run; a class of the user's own may be given the path of one."""
    return ":" not in settings.kind and is_run(settings.path)


def load_part(
    settings: EncoderConfig, where: str, seed: int, trust: Trust, run_encoder: AudioEncoder | None = None
) -> AudioEncoder:
    """Load one encoder and make it trainable, low-rank or frozen, as its settings say.

    Args:
        run_encoder: the encoder where the settings name a run; None loads it with the weights of the run.

    Raises:
        UserError: naming the key ``where``.
    """
    if is_run_encoder(settings):
        encoder = run_encoder
        if encoder is None:
            encoder = load_model_spec(name_run_encoder(settings), torch.device("cpu"), trust)
        merge_lora(encoder)
        encoder.make_trainable()
    else:
        encoder = load_audio_encoder(settings, where, seed, trust)
    if settings.recompute is True and not encoder.can_recompute():
        raise UserError(
            f"{where}.recompute: {type(encoder).__name__} has no layers that can recompute; leave it out"
        )
    if settings.train == "frozen":
        encoder.requires_grad_(False)
    elif settings.train == "lora":
        lora = settings.lora
        try:
            add_lora(encoder, lora.rank, lora.alpha, lora.dropout, lora.targets, seed)
        except UserError as problem:
            raise UserError(f"{where}.{problem}") from problem
    return encoder


def name_run_encoder(settings: EncoderConfig) -> ModelSpec:
    """Return the MODEL that the settings of an encoder stand for whose path is a run."""
    return ModelSpec(settings.path, select_given(settings, LISTENING))


def build_encoder(
    config: RunConfig, prompt_dim: int | None = None, run_encoders: Mapping[str, AudioEncoder] | None = None
) -> AudioEncoder:
    """Load the config's encoders and fuse them; new weights are a function of the seed.

    Args:
        prompt_dim: width of the decoder's token embeddings, for a router that reads the question.
        run_encoders: those of the config's encoders that are runs, by name; None loads them with their weights.

    Raises:
        UserError: before anything is loaded, when an encoder needs code that was not allowed.
    """
    config.require_trust(decoder=False)
    built = run_encoders or {}
    parts = {
        name: load_part(settings, f"encoders.{name}", config.seed, config.trust, built.get(name))
        for name, settings in config.encoders.items()
    }
    if config.fusion is None:
        return next(iter(parts.values()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return fuse(config.fusion, parts, prompt_dim)


def check_model(spec: str, trust: Trust = NO_TRUST) -> None:
    """Check a MODEL and its options without reading weights or asking the Hub.

    Raises:
        UserError: for options that are unknown, out of bounds, or none of the encoder's.
    """
    model = parse_model_spec(spec)
    folder = find_checkpoint(model.path, (CONFIG,)) if model.has_options else None
    if folder is not None:
        config = load_stored_run(folder / CONFIG, folder.parent.parent, trust)
        encoders = model.configure_run(config.encoders)
    elif model.has_options and not is_run(model.path):
        encoders = {model.path: model.configure_model(trust.remote_code)}
    else:
        return
    for name, settings in encoders.items():
        if ":" not in settings.kind and is_local_path(settings.path) and not is_run(settings.path):
            kind, family = find_family(settings, name)
            choose_settings(settings, family, kind, name)


def identify_encoder_bases(config: RunConfig) -> dict[str, dict[str, str]]:
    """Return the identities of the weights that the encoders start from, by ``encoder NAME``."""
    bases = {f"encoder {name}": identify_encoder(settings) for name, settings in config.encoders.items()}
    return {name: {**base, "path": config.restore_written_path(base["path"])} for name, base in bases.items()}


def add_hashes_of_built(
    bases: Mapping[str, dict[str, str]], config: RunConfig, encoder: AudioEncoder
) -> dict[str, dict[str, str]]:
    """Return the identities of the starting weights with what is known once the encoders are built: the hash of the
    first weights of the user's own classes, and that of code which is not this package's, see ``hash_source_code``.

    Args:
        bases: of ``identify_encoder_bases``. encoder: as ``build_encoder`` made it from the config.
    """
    parts = list_named_encoders(config, encoder)
    hashes = {
        f"encoder {name}": {
            # of a run, its weights count
            CONTENT: parts[name].initial_sha256 if ":" in settings.kind else "",
            CODE: hash_source_code(parts[name]),
        }
        for name, settings in config.encoders.items()
    }
    return {
        part: {**base, **{key: digest for key, digest in hashes.get(part, {}).items() if digest}}
        for part, base in bases.items()
    }


def identify_encoder(settings: EncoderConfig) -> dict[str, str]:
    """Return a content hash or a Hub name with its commit; for a run, the hash of its trained tensors and bases.

    Raises:
        UserError: when there is no such model, or a run lacks a whole checkpoint or the averages that are asked for.
    """
    if ":" in settings.kind:  # what such a class reads is its own affair, see ``add_hashes_of_built``
        return {"path": f"{settings.kind} {settings.path}".strip()}
    if not is_run(settings.path):
        return identify_base(settings.path, settings.revision)
    folder = find_checkpoint(settings.path)
    if folder is None:
        raise UserError(f"{settings.path} is a run folder without a complete checkpoint")
    averages = (EMA,) if settings.path.endswith(AVERAGED) else ()
    if averages and not (folder / EMA).is_file():
        raise UserError(f"{folder} has no moving averages; leave {AVERAGED} out")
    digest = hashlib.sha256()
    for name in (MODEL, *averages, BASES):
        digest.update((folder / name).read_bytes())
    return {"path": settings.path, "sha256": digest.hexdigest()}


def load_encoder(
    spec: str, device: torch.device | None = None, trust: Trust = NO_TRUST, keep_frames: bool = False
) -> AudioEncoder:
    """Load an encoder from a run or checkpoint folder, the folder or Hub name of a known model, or ``random:PATH``.

    Args:
        spec: with options behind it, such as ``?pad_to=30``, see ``parse_model_spec``.
        trust: code that the model may run.
        keep_frames: whether frozen encoders of a run whose config keeps their frames on disk read and write them.

    Raises:
        UserError: when it is none of them, or needs code that was not allowed.
    """
    return load_model_spec(parse_model_spec(spec), device or choose_device(), trust, keep_frames)


def load_model_spec(
    model: ModelSpec, device: torch.device, trust: Trust, keep_frames: bool = False
) -> AudioEncoder:
    """Load the encoder of a MODEL that was taken apart, see ``load_encoder``."""
    announce(f"loading the encoder of {model.path} ...")
    checkpoint = open_checkpoint(model.path)
    if checkpoint is None:
        if is_run(model.path):
            raise UserError(f"{model.path} is a run folder without a complete checkpoint")
        settings = model.configure_model(trust.remote_code)
        return load_audio_encoder(settings, model.path, trust=trust).to(device).eval()
    config = apply_options(read_stored_config(checkpoint, trust), model)
    config.require_trust(decoder=False)
    bases = {**checkpoint.bases, **identify_encoder_bases(config)}
    check_bases(checkpoint, bases)
    trained = {name: tensor for name, tensor in checkpoint.model.items() if name.startswith(PART)}
    encoder = build_encoder(config, read_prompt_width(config, checkpoint))
    check_bases(checkpoint, add_hashes_of_built(bases, config, encoder))
    holder, structure = bring_encoder_to_stage(encoder, config, checkpoint.state["stage"])
    put_tensors(holder, structure, trained, checkpoint.path)
    holder.to(device).eval()
    if keep_frames:
        keep_features([holder], config, None, device, in_training=False)
    return holder.encoder


def apply_options(config: RunConfig, model: ModelSpec) -> RunConfig:
    """Return a run's config with the options of a MODEL over the settings of its encoders.

    Raises:
        UserError: when they name no encoder of it.
    """
    if not model.has_options:
        return config
    return config.model_copy(update={"encoders": model.configure_run(config.encoders)})


def read_stored_config(checkpoint: Checkpoint, trust: Trust = NO_TRUST) -> RunConfig:
    """Read the config of a checkpoint, see ``load_stored_run``, with the models that it was trained with."""
    config = load_stored_run(checkpoint.path / CONFIG, checkpoint.path.parent.parent, trust)
    return pin_models(config, checkpoint.bases)


def pin_models(
    config: RunConfig, bases: Mapping[str, Mapping[str, str]], keep_stated: bool = False
) -> RunConfig:
    """Return a config that takes models of the Hub from the commits of a checkpoint's bases, for branches move on.

    Args:
        keep_stated: leave a revision that the config states as it is.
    """

    def pin(name: str, settings: Settings) -> Settings:
        base = bases.get(name, {})
        is_other = base.get("path") != settings.path or (keep_stated and settings.revision is not None)
        if is_other or "revision" not in base:
            return settings
        return settings.model_copy(update={"revision": base["revision"]})

    encoders = {name: pin(f"encoder {name}", settings) for name, settings in config.encoders.items()}
    return config.model_copy(update={"encoders": encoders, "decoder": pin("decoder", config.decoder)})


class EncoderHolder(nn.Module):
    """An encoder under the name that it has in a whole model."""

    def __init__(self, encoder: AudioEncoder) -> None:
        super().__init__()
        self.encoder = encoder


def bring_encoder_to_stage(
    encoder: AudioEncoder, config: RunConfig, stage: int
) -> tuple[EncoderHolder, TrainableParameters]:
    """Bring a freshly built encoder to a stage, without the rest of its model."""
    holder = EncoderHolder(encoder)
    return holder, go_through_stages(holder, config, stage, whole=False)


def read_prompt_width(config: RunConfig, checkpoint: Checkpoint) -> int | None:
    """Return the width of the questions that the router of a checkpoint reads, if it reads any.

    Raises:
        UserError: when only the decoder can tell, and its configuration cannot be read.
    """
    if not getattr(config.fusion, "reads_prompt", False):
        return None
    if READS_PROMPT in checkpoint.model:
        return checkpoint.model[READS_PROMPT].shape[1]
    kept = checkpoint.path.parent.parent / "decoder"  # the router is not trained yet, so the decoder tells
    path = str(kept) if kept.is_dir() else config.decoder.folder
    allowed = config.decoder.trust_remote_code and config.trust.remote_code
    with convert_to_user_error(f"decoder.path: the config.json of {path} cannot be read"):
        decoder = read_stock_config(path, config.decoder.revision, allowed)
    return int(decoder.get_text_config().hidden_size)
