"""Encoders without weights, from their configuration alone: what does not fit is told before any weights are read."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from uniaudio.build.encoders import (
    apply_options,
    build_encoder,
    find_checkpoint,
    is_run,
    is_run_encoder,
    name_run_encoder,
)
from uniaudio.build.model import read_decoder_config
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.model_spec import ModelSpec
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_stored_run
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.errors import UserError, prefix_user_errors
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.hf_auto import list_code_places
from uniaudio.model.encoders.imported import import_encoder_class
from uniaudio.model.encoders.registry import HF_AUTO, find_family, is_local_path, load_audio_encoder
from uniaudio.model.model_files import RANDOM, fetch_model_config, find_model_folder
from uniaudio.train.checkpoint.integrity import CONFIG


def sketch_encoder(config: RunConfig) -> AudioEncoder | None:
    """Build the config's encoder without weights, so that what does not fit is told before any are read.

    Returns:
        None when an encoder is a class of somebody's own or needs code that is not trusted, or is a run with such an
        encoder.

    Raises:
        UserError: as ``build_encoder`` does for kinds, rates, widths, layers and targets of low-rank updates; for an
            encoder that is a run without a whole checkpoint.
    """
    sketched: dict[str, EncoderConfig] = {}
    run_encoders: dict[str, AudioEncoder] = {}
    for name, settings in config.encoders.items():
        where = f"encoders.{name}"
        if is_run_encoder(settings):
            run_encoder = sketch_run_encoder(settings, where, config.trust)
            if run_encoder is None:
                return None
            sketched[name], run_encoders[name] = settings, run_encoder
            continue
        without_weights = randomize_weights(settings, where, config.trust)
        if without_weights is None:
            return None
        sketched[name] = without_weights
    prompt_width = find_prompt_width(config)
    with torch.device("meta"):
        changed = config.model_copy(update={"encoders": sketched})
        return build_encoder(changed, prompt_width, run_encoders)


def find_prompt_width(config: RunConfig) -> int:
    """Return the width of the questions that a router reads; 1 where none does, or the decoder is not known."""
    if getattr(config.fusion, "reads_prompt", False):
        with suppress(UserError):
            return int(getattr(read_decoder_config(config), "hidden_size", 1))
    return 1


def sketch_run_encoder(settings: EncoderConfig, where: str, trust: Trust) -> AudioEncoder | None:
    """Build the encoder of a run without weights, from the config in its checkpoint; None as ``sketch_encoder``.

    Stages need not be gone through: they add low-rank updates alone, which are merged where a run is an encoder.

    Raises:
        UserError: naming the key ``where``, when the run has no whole checkpoint or its encoder cannot be built.
    """
    with prefix_user_errors(where):
        folder = find_checkpoint(settings.path, (CONFIG,))
        if folder is None:
            raise UserError(f"{settings.path} is a run folder without a complete checkpoint")
        config = load_stored_run(folder / CONFIG, folder.parent.parent, trust)
        return sketch_encoder(apply_options(config, name_run_encoder(settings)))


def sketch_model(model: ModelSpec) -> AudioEncoder | None:
    """Build the encoder of a model without weights; None where ``sketch_encoder`` has none.

    Raises:
        UserError: when the folder holds no known encoder.
    """
    path = model.path
    settings = randomize_weights(model.configure_model(), path, NO_TRUST) if is_local_path(path) else None
    if settings is None:
        return None
    with torch.device("meta"):
        return load_audio_encoder(settings, path)


def randomize_weights(settings: EncoderConfig, where: str, trust: Trust) -> EncoderConfig | None:
    """Return the settings with random weights and the architecture in a local folder.

    Of a model on the Hub its config.json is fetched; of one that is read with its own feature extractor that one and
    the code of the model, too.

    Returns:
        None when the architecture is only known with the weights, or with code that is not trusted.

    Raises:
        UserError: when there is no such folder, repository or class, or the architecture is not known.
    """
    if ":" in settings.kind:
        if trust.code:
            import_encoder_class(settings, where, trust)
        return None
    if is_run(settings.path):
        return None
    _, family = find_family(settings, where)
    changes: dict[str, Any] = {"revision": None}
    with prefix_user_errors(where):
        folder = fetch_model_config(settings.path, settings.revision)
        if family is HF_AUTO:
            has_code = bool(list_code_places(folder))
            if has_code and not (settings.trust_remote_code and trust.remote_code):
                return None
            changes["trust_remote_code"] = has_code
            folder = find_model_folder(
                RANDOM + settings.path.removeprefix(RANDOM), settings.revision, has_code
            )
    return settings.model_copy(update={**changes, "path": f"{RANDOM}{folder}"})
