"""From a run config or a checkpoint to encoder, adapter and decoder together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, WhisperConfig

from uniaudio.build.adapter import fill_time_markers, make_adapter
from uniaudio.build.encoders import (
    add_hashes_of_built,
    apply_options,
    build_encoder,
    choose_device,
    identify_encoder_bases,
    open_checkpoint,
    read_stored_config,
)
from uniaudio.config.decoder import DecoderConfig
from uniaudio.config.model_spec import parse_model_spec
from uniaudio.config.path_variables import allow_environment
from uniaudio.config.run import RunConfig
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import announce
from uniaudio.data.chat_markup import TRANSCRIPT, ChatMarkup, read_chat_markup
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.distributed import gather_objects, is_main
from uniaudio.errors import UserError, convert_to_user_error, mask_values, prefix_user_errors
from uniaudio.hub_client import convert_hub_errors
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.base_identity import CODE
from uniaudio.model.cached_encoder import keep_features
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoder_limits import refuse_unusable_class
from uniaudio.model.decoder_loading import load_decoder
from uniaudio.model.model_files import (
    RANDOM,
    fetch_model_config,
    pin_revision,
    read_stock_config,
    refuse_unusable_files,
)
from uniaudio.model.model_hash import hash_source_code
from uniaudio.model.whisper_decoder import (
    CrossAttentionLM,
    LinearBridge,
    WhisperTextDecoder,
    load_whisper_decoder,
)
from uniaudio.outputs import apply_umask
from uniaudio.tiny.text_lm import build_miniature_decoder, make_qwen_config
from uniaudio.train.activation_checkpointing import get_part, list_parts
from uniaudio.train.checkpoint.reading import Checkpoint, check_bases
from uniaudio.train.trainable import go_through_stages, put_tensors


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to talk to it."""

    model: AudioLM
    format: ChatFormat
    config: RunConfig
    bases: dict[str, dict[str, str]]


def load_stage_recipes(config: RunConfig) -> list[Recipe]:
    """Read the recipe of every stage."""
    with allow_environment(config.reads_environment):
        return [load_recipe(stage.recipe, near=config.folder) for stage in config.stages]


def find_decoder(config: RunConfig, kept: Path) -> str:
    """Return folder or name of the decoder of a run that has begun.

    Args:
        kept: where the run folder keeps its miniature decoder, so that a checkpoint stays usable wherever it goes.

    Raises:
        UserError: when it is a miniature one and not there.
    """
    if config.decoder.miniature is None:
        return config.decoder.path
    if not kept.is_dir():
        raise UserError(f"{kept} is missing: the run's miniature decoder must be next to its checkpoints")
    return str(kept)


def train_miniature(config: RunConfig, recipes: Sequence[Recipe]) -> Path:
    """Train the miniature decoder of a run that begins, in the main process alone, and return its folder in the cache.

    Raises:
        UserError: when it cannot be trained, or another machine does not see it.
    """
    assert config.decoder.miniature is not None
    folder = gather_objects(
        build_miniature_decoder(config.decoder.miniature, recipes) if is_main() else None
    )[0]
    assert folder is not None
    if not all(gather_objects(folder.is_dir())):
        raise UserError(
            f"not every process sees {folder}; set UNIAUDIO_CACHE to a folder that all machines share"
        )
    return folder


def keep_miniature(folder: Path, kept: Path) -> None:
    """Copy a miniature decoder into a run folder, in place of one of a run that never came to a checkpoint."""
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept)
    apply_umask(kept)


def build_model(
    config: RunConfig, path: str, device: torch.device, markup: ChatMarkup | None = None
) -> LoadedModel:
    """Load the encoder and the decoder at ``path`` and put a new adapter between them; every rank must.

    Args:
        markup: of the prompts that the model was trained with; None: what the chat template says today.

    Raises:
        UserError: before anything is loaded, when a part needs code that was not allowed; when a part cannot be
            loaded, or tokenizer and decoder do not belong together.
    """
    config.require_trust()
    parts = [f"{name} ({each.path or each.kind})" for name, each in config.encoders.items()]
    announce(mask_values(f"loading {', '.join([*parts, f'the decoder ({path})'])} ..."))
    whisper = config.decoder.kind == "whisper"
    tokenizer = load_tokenizer(config.decoder, path)
    # ranks that read a template around midnight would disagree
    markup = markup or gather_objects(read_chat_markup(tokenizer, TRANSCRIPT if whisper else None))[0]
    decoder = open_decoder(config, path, device)
    format = ChatFormat(
        tokenizer,
        max_text_tokens=config.data.max_text_tokens,
        max_positions=decoder.positions,
        markup=markup,
        vocabulary=decoder.vocabulary,
    )
    encoder = build_encoder(config, decoder.dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the adapter's weights are a function of the seed
        if isinstance(decoder, WhisperTextDecoder):
            adapter: Adapter = LinearBridge(encoder.dim, decoder.dim)
        else:
            adapter = make_adapter(config.adapter, encoder, decoder.dim)
            fill_time_markers(adapter, decoder, tokenizer)
    kind = CrossAttentionLM if whisper else AudioLM
    model = kind(encoder, adapter, decoder, config.train.label_chunk).to(device)
    for part in list_parts(config, True):
        get_part(model, config, part).recompute()
    identity = {**decoder.identity, "path": config.restore_written_path(decoder.identity["path"])}
    if code := hash_source_code(decoder, tokenizer):
        identity[CODE] = code
    encoders = add_hashes_of_built(identify_encoder_bases(config), config, encoder)
    bases = {**encoders, "decoder": {**identity, **markup.to_base()}}
    return LoadedModel(model, format, config, bases)


def read_stored_markup(checkpoint: Checkpoint) -> ChatMarkup | None:
    """Return what stood around the questions that a checkpoint was trained with; None where it does not say."""
    return ChatMarkup.from_base(checkpoint.bases.get("decoder", {}))


def load_tokenizer(settings: DecoderConfig, path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the decoder at ``path``.

    Raises:
        UserError: when there is none that can be read.
    """
    what = f"decoder.path: the tokenizer of {path} cannot be loaded"
    name = path.removeprefix(RANDOM)
    with prefix_user_errors("decoder.path"):
        commit = pin_revision(name, settings.revision)
    refusals = convert_hub_errors(what, name, settings.revision, refusals_only=True)
    with convert_to_user_error(what, "add its tokenizer files to the folder"), refusals:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=commit, trust_remote_code=settings.trust_remote_code
        )
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # made of the config.json alone
        raise UserError(f"decoder.path: {path} has no tokenizer; add its tokenizer files to the folder")
    return tokenizer


def open_decoder(config: RunConfig, path: str, device: torch.device) -> TextDecoder | WhisperTextDecoder:
    """Load the decoder at ``path``, of the kind and trained as the config says."""
    settings = config.decoder
    training = (settings.train, settings.lora, config.seed)
    if settings.kind == "whisper":
        return load_whisper_decoder(path, settings.revision, settings.dtype, device, *training)
    return load_decoder(
        path,
        settings.revision,
        settings.dtype,
        settings.trust_remote_code,
        settings.attention,
        device,
        *training,
    )


def load_model(
    spec: str, device: torch.device | None = None, trust: Trust = NO_TRUST, keep_frames: bool = False
) -> LoadedModel:
    """Load a trained model from a run folder or a checkpoint folder (``:ema`` behind it: its moving averages).

    Or a whole model that was exported, by folder or Hub name, see ``load_exported_model``.

    Args:
        trust: code that the model may run. keep_frames: see ``load_encoder``.

    Raises:
        UserError: when it needs code that was not allowed, there is no whole checkpoint, or its encoder or decoder is
            not the one it was trained with.
    """
    from uniaudio.build.exported_model import find_format, load_exported_model  # which imports this module

    chosen = parse_model_spec(spec)
    checkpoint = open_checkpoint(chosen.path)
    if checkpoint is None and find_format(chosen.path) is not None:
        return load_exported_model(chosen, device or choose_device())
    if checkpoint is None:
        if Path(chosen.path).is_dir():
            refuse_unusable_files(chosen.path, "model")
        raise UserError(
            f"{spec} is neither a checkpoint nor a run folder with a complete checkpoint, nor an "
            "exported whole model"
        )
    config = apply_options(read_stored_config(checkpoint, trust), chosen)
    config.require_trust()
    path = find_decoder(config, checkpoint.path.parent.parent / "decoder")
    loaded = build_model(config, path, device or choose_device(), read_stored_markup(checkpoint))
    check_bases(checkpoint, loaded.bases)
    structure = go_through_stages(loaded.model, config, checkpoint.state["stage"])
    put_tensors(loaded.model, structure, checkpoint.model, checkpoint.path)
    loaded.model.eval()
    if keep_frames:
        keep_features([loaded.model], config, None, device or choose_device(), in_training=False)
    return loaded


def read_decoder_config(config: RunConfig) -> PretrainedConfig:
    """Return the decoder's configuration; of a decoder on the Hub its config.json is fetched.

    Raises:
        UserError: when it is neither miniature nor a folder or repository with a model that can be used.
    """
    from uniaudio.build.exported_model import HF_LM  # which imports this module

    if config.decoder.miniature is not None:
        small = config.decoder.miniature
        return make_qwen_config(small, small.vocabulary, 0, 0)
    settings = config.decoder
    trusted = settings.trust_remote_code and config.trust.remote_code
    owner, slash, _ = settings.folder.partition("/")
    beside = any(near is not None and (near / owner).is_dir() for near in (config.folder, Path()))
    if slash and beside and not Path(settings.folder).exists():  # no name of the Hub, then
        raise UserError(f"decoder.path: there is no folder {settings.folder}")
    if Path(settings.folder).is_file():
        refuse_unusable_files(settings.folder, "decoder.path")
    with prefix_user_errors("decoder.path"):
        folder = fetch_model_config(settings.folder, settings.revision)
    if not settings.path.startswith(RANDOM):
        refuse_unusable_files(settings.folder, "decoder.path", settings.revision)
    with convert_to_user_error(f"decoder.path: the config.json of {settings.folder} cannot be read"):
        if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == HF_LM:
            raise UserError(
                f"decoder.path: {settings.folder} is an exported whole model; save its language "
                "model separately and name that folder"
            )
        # code is fetched from the repository, beside which the folder has the config alone
        place = settings.folder if trusted else folder
        architecture = read_stock_config(place, settings.revision if trusted else None, trusted)
    if isinstance(architecture, WhisperConfig):
        return architecture
    refuse_unusable_class(architecture)
    return architecture.get_text_config()
