"""The weights of the models that a run config names in folders, by the headers of their files."""

from __future__ import annotations

from pathlib import Path

from uniaudio.build.encoders import is_run_encoder
from uniaudio.config.run import RunConfig
from uniaudio.model.decoder_loading import refuse_incomplete_causal_lm
from uniaudio.model.model_files import RANDOM
from uniaudio.model.weight_headers import read_tensor_headers


def check_weight_files(config: RunConfig) -> None:
    """Refuse folders of models without weights, and with weight files that are missing or damaged.

    Models of the Hub are not looked at, nor those that are read by code of their own, which may store weights anyhow.

    Raises:
        UserError: naming the key of the config and the file.
    """
    for name, settings in config.encoders.items():
        is_stock = ":" not in settings.kind and settings.kind != "remote" and not settings.trust_remote_code
        if is_stock and not is_run_encoder(settings):
            check_folder(settings.path, f"encoders.{name}.path")
    if config.decoder.miniature is None and not config.decoder.trust_remote_code:
        check_folder(config.decoder.path, "decoder.path")


def check_folder(path: str, where: str) -> None:
    """Look at the weight files of one model, see ``check_weight_files``."""
    if not path.startswith(RANDOM) and Path(path).is_dir():
        read_tensor_headers(Path(path), where)


def check_decoder_tensors(config: RunConfig) -> None:
    """Refuse a decoder in a folder whose files lack tensors of the causal language model that it is loaded as.

    Raises:
        UserError: with the sentence that loading it would end with.
    """
    settings = config.decoder
    is_stock = settings.miniature is None and settings.kind == "causal" and not settings.trust_remote_code
    if is_stock and not settings.path.startswith(RANDOM) and Path(settings.path).is_dir():
        refuse_incomplete_causal_lm(settings.path)
