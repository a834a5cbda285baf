"""Which class reads which checkpoint: the families of encoders by their ``model_type``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from uniaudio.config.encoders import LISTENING, EncoderConfig, select_given
from uniaudio.config.nearest import suggest_name
from uniaudio.config.trust import NO_TRUST, Trust, require_remote_code
from uniaudio.errors import UserError, convert_to_user_error, prefix_user_errors
from uniaudio.model.encoders.base import AudioEncoder, NoFramesError
from uniaudio.model.encoders.imported import load_imported_encoder
from uniaudio.model.model_files import RANDOM, fetch_model_config, read_model_config, refuse_unusable_files

HERE = "uniaudio.model.encoders"


@dataclass(frozen=True)
class Family:
    """A module of this folder and its loading function, imported when it is needed.

    Args:
        types: the ``model_type`` of its checkpoints. settings: those of a config that it takes.
        pretrained_with: the values of them with which the weights were trained by their authors; an untrained encoder
            is at its best with these.
    """

    module: str
    loader: str
    types: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    pretrained_with: Mapping[str, Any] = field(default_factory=dict)


WHISPER_OPTIONS = ("pad_to", "pad_stride", "tail_frames", "keep_tail", "pool", "masked_padding")
MASKED, TAIL, CHUNKS = ("masked_padding",), ("pad_to", "tail_frames", "keep_tail"), ("chunk_seconds",)
IN_30_SECONDS = {"pad_to": 30.0}
HF_AUTO = Family("hf_auto", "load_remote", settings=("trust_remote_code", "frame_rate"))
LOADED = (
    Family("whisper", "load_whisper", ("whisper",), WHISPER_OPTIONS, IN_30_SECONDS),
    # Qwen2-Audio and Audio Flamingo 3 were trained with a mask over the silence, those of Omni on short pieces without
    Family("whisper", "load_qwen2_audio", ("qwen2_audio", "qwen2_audio_encoder"), MASKED),
    Family(
        "whisper",
        "load_audio_flamingo3",
        ("audioflamingo3", "audioflamingo3_encoder", "musicflamingo"),
        MASKED,
    ),
    Family("whisper", "load_voxtral", ("voxtral", "voxtral_encoder"), WHISPER_OPTIONS, IN_30_SECONDS),
    Family("whisper", "load_whisper", ("ultravox",), WHISPER_OPTIONS),
    Family("glmasr", "load_glmasr", ("glmasr", "glmasr_encoder"), TAIL, IN_30_SECONDS),
    Family(
        "qwen_omni",
        "load_omni",
        (
            *("qwen2_5_omni", "qwen2_5_omni_thinker", "qwen2_5_omni_audio_encoder"),
            *("qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_omni_moe_audio_encoder"),
            *("qwen3_asr", "qwen3_asr_encoder"),
        ),
    ),
    Family(
        "wav2vec2",
        "load_wave",
        ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat"),
        CHUNKS,
    ),
    Family("w2v_bert", "load_w2v_bert", ("wav2vec2-bert",), CHUNKS),
    Family(
        "parakeet",
        "load_parakeet",
        ("parakeet_ctc", "parakeet_encoder", "parakeet_rnnt", "parakeet_tdt", "canary"),
        CHUNKS,
    ),
    Family("conformers", "load_granite_speech", ("granite_speech", "granite_speech_encoder"), CHUNKS),
    Family(
        "conformers",
        "load_granite_speech_plus",
        ("granite_speech_plus", "granite_speech_plus_encoder"),
        CHUNKS,
    ),
    Family("conformers", "load_seamless", ("seamless_m4t",), CHUNKS),
    Family("conformers", "load_seamless_v2", ("seamless_m4t_v2",), CHUNKS),
    Family("conformers", "load_gemma3n", ("gemma3n", "gemma3n_audio"), CHUNKS),
    Family("conformers", "load_gemma4", ("gemma4", "gemma4_audio"), CHUNKS),
    Family("conformers", "load_phi4", ("phi4_multimodal", "phi4_multimodal_audio"), CHUNKS),
    Family("conformers", "load_lasr", ("lasr_ctc", "lasr_encoder"), CHUNKS),
    Family("moonshine_sew_speecht5", "load_moonshine", ("moonshine",), CHUNKS),
    Family(
        "moonshine_sew_speecht5",
        "load_moonshine_streaming",
        ("moonshine_streaming", "moonshine_streaming_encoder"),
        CHUNKS,
    ),
    Family("moonshine_sew_speecht5", "load_wav2vec2_conformer", ("wav2vec2-conformer",), CHUNKS),
    Family("moonshine_sew_speecht5", "load_sew", ("sew",), CHUNKS),
    Family("moonshine_sew_speecht5", "load_sew_d", ("sew-d",), CHUNKS),
    Family("moonshine_sew_speecht5", "load_speecht5", ("speecht5",), CHUNKS),
    Family("moonshine_sew_speecht5", "load_pe_audio", ("pe_audio", "pe_audio_encoder"), CHUNKS),
    Family("ast", "load_ast", ("audio-spectrogram-transformer",)),
    Family("clap", "load_clap", ("clap", "clap_audio_model")),
    Family("codec", "load_codec", ("encodec", "mimi")),
    Family("exported", "load_exported", ("uniaudio", "uniaudio_lm")),
)
FAMILIES: Mapping[str, Family] = {kind: family for family in LOADED for kind in family.types}

# models of transformers with an audio part that is not loaded, by model type, and what to load instead
IS_MIMI = "its audio codec is a Mimi; load a Mimi, such as kyutai/mimi"
IS_ENCODEC = (
    "it generates audio, and its codec is an EnCodec; load an EnCodec, such as facebook/encodec_24khz"
)
GENERATES = "it generates audio and has no encoder to fine-tune; load encodec or mimi for a codec"
IS_CODEC = "the only supported codecs are encodec and mimi"
STREAMS = (
    "its encoder is made for streaming, with caches; the nearest are parakeet_ctc and moonshine_streaming"
)
LEFT_OUT: Mapping[str, str] = {
    "bark": IS_ENCODEC,
    "clvp": "it ranks generated speech; the nearest is whisper",
    "cohere_asr": "its encoder is a Parakeet published under other names; load parakeet_ctc or canary",
    "csm": IS_MIMI,
    "dac": IS_CODEC,
    "dia": GENERATES,
    "dots3_note": "the nearest are qwen3_asr and whisper",
    "embedding_gemma2": "the nearest are gemma4 and gemma3n",
    "fastspeech2_conformer": GENERATES,
    "fun_asr_nano": "the nearest are qwen3_asr and parakeet_ctc",
    "gemma4_unified": "it has no audio encoder: its language model reads pieces of the waveform; load gemma4",
    "granite_speech5_ctc": "its features need torchaudio; the nearest is granite_speech",
    "granite_speech5_encoder": "its features need torchaudio; the nearest is granite_speech",
    "higgs_audio_v2": GENERATES,
    "higgs_audio_v2_tokenizer": IS_CODEC,
    "inkling_mm_model": "it has no audio encoder: its language model reads quantized spectrograms",
    "kyutai_speech_to_text": IS_MIMI,
    "moshi": IS_MIMI,
    "moss_transcribe_diarize": "the nearest is whisper",
    "muse_spark": "the nearest are whisper and qwen3_asr",
    "musicgen": IS_ENCODEC,
    "musicgen_melody": IS_ENCODEC,
    "nemo_speechlm": STREAMS,
    "nemotron3_diarization": STREAMS,
    "nemotron_asr_streaming": STREAMS,
    "nemotron_h_omni": "its audio tower is a Parakeet; load parakeet_ctc",
    "neucodec": IS_CODEC,
    "pe_audio_video": "load its audio part, pe_audio",
    "pocket_tts": GENERATES,
    "pop2piano": "it reads spectrograms with a T5; the nearest are clap and musicflamingo",
    "speech-encoder-decoder": "load its encoder alone, usually a wav2vec2",
    "speech_to_text": "the nearest is whisper",
    "univnet": GENERATES,
    "vibevoice": GENERATES,
    "vibevoice_acoustic_tokenizer": IS_CODEC,
    "vibevoice_asr": "its encoders are its own tokenizers; the nearest are mimi and qwen3_asr",
    "vits": GENERATES,
    "voxtral_realtime": "its encoder is made for streaming, with caches; load voxtral",
    "xcodec": IS_CODEC,
    "xcodec2": IS_CODEC,
}


def load_audio_encoder(
    config: EncoderConfig, where: str, seed: int = 0, trust: Trust = NO_TRUST
) -> AudioEncoder:
    """Load the encoder that a config names, in float32, trainable but for its ``fixed_parameters``.

    Args:
        where: the key of the config, named first in messages. seed: for random weights.
        trust: what may run beside the code of this package and of transformers.

    Raises:
        UserError: for an architecture that is not known, settings that it does not take, or files that do not fit.
    """
    if ":" in config.kind:
        encoder = load_imported_encoder(config, where, seed, trust)
    else:
        encoder = load_known_encoder(config, where, seed, trust)
    encoder.keep_fixed_parameters()
    return encoder


def load_known_encoder(config: EncoderConfig, where: str, seed: int, trust: Trust) -> AudioEncoder:
    """Load an encoder of a family of ``FAMILIES``, or by code of its own, see ``load_audio_encoder``."""
    if config.trust_remote_code:
        require_remote_code(config.path, where, trust)
    kind, family = find_family(config, where)
    settings = choose_settings(config, family, kind, where)
    load = getattr(importlib.import_module(f"{HERE}.{family.module}"), family.loader)
    unfit = f"{config.path} cannot be loaded as a {kind} encoder"
    try:
        with prefix_user_errors(where), convert_to_user_error(unfit, "see its config.json"):
            encoder: AudioEncoder = load(config.path, config.revision, seed=seed, **settings)
    except NoFramesError as problem:
        raise UserError(
            f"{problem}; use another model{explain_left_out(kind)}, or an encoder class of your own (module:Class)"
        ) from problem
    return encoder


def find_family(config: EncoderConfig, where: str) -> tuple[str, Family]:
    """Return the model type of a checkpoint and its family, reading no more than its config.json.

    Raises:
        UserError: when the config says another kind, or nobody knows the architecture.
    """
    if config.kind not in ("auto", "remote") and config.kind not in FAMILIES:
        known = ["auto", "remote", *FAMILIES]
        raise UserError(
            f"{where}.kind: '{config.kind}' is not one of "
            f"{', '.join(known)}{suggest_name(config.kind, known)}; your own class is written "
            "module:Class"
        )
    with prefix_user_errors(where):
        folder = fetch_model_config(config.path, config.revision)
        if not config.path.startswith(RANDOM):
            refuse_unusable_files(config.path, "weights", config.revision)
        values = read_model_config(folder)
    kind = values["model_type"]
    if config.kind == "remote" or (config.kind == "auto" and "auto_map" in values and kind not in FAMILIES):
        return kind, HF_AUTO
    if kind not in FAMILIES:
        raise UserError(
            f"{where}: {config.path} holds a {kind} model, which is not a known audio "
            f"encoder{explain_left_out(kind)}; `uniaudio check-encoder --list` lists the known "
            "ones; `kind: remote` loads a model with its own feature extractor or code, and "
            "module:Class your own class"
        )
    if config.kind != "auto" and FAMILIES[config.kind] is not FAMILIES[kind]:
        raise UserError(f"{where}: {config.path} holds a {kind} model, but kind says {config.kind}")
    return kind, FAMILIES[kind]


def explain_left_out(kind: str) -> str:
    """Return why a model type is not loaded and what to load instead, as the end of a clause."""
    if kind in LEFT_OUT:
        return f": {LEFT_OUT[kind]}"
    near = get_close_matches(kind, FAMILIES, n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(near)}" if near else ""


def choose_settings(config: EncoderConfig, family: Family, kind: str, where: str) -> dict[str, Any]:
    """Return the settings that were given for this family.

    Raises:
        UserError: when one was given that it does not take.
    """
    given = select_given(config, (*LISTENING, "trust_remote_code"))
    for name in given:
        if name not in family.settings and name != "trust_remote_code":
            raise UserError(f"{where}.{name}: a {kind} encoder has no such setting; leave it out")
    return {name: value for name, value in given.items() if name in family.settings}


def is_local_path(path: str) -> bool:
    """Return whether a path names a folder on this machine, ``random:`` aside."""
    return Path(path.removeprefix(RANDOM)).is_dir()
