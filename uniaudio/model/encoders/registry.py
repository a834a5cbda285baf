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


@dataclass(frozen=True)
class Family:
    """A module of this package and its loading function, imported when it is needed.

    Args:
        settings: those of a config that it takes. pretrained_with: the values of them with which the weights were
            trained by their authors; an untrained encoder is at its best with these.
    """

    module: str
    loader: str
    settings: tuple[str, ...] = ()
    pretrained_with: Mapping[str, Any] = field(default_factory=dict)


HERE = "uniaudio.model.encoders"
WHISPER_OPTIONS = ("pad_to", "pad_stride", "tail_frames", "keep_tail", "pool", "masked_padding")
WHISPER = Family(f"{HERE}.whisper", "load_whisper", WHISPER_OPTIONS, {"pad_to": 30.0})
# Qwen2-Audio and Audio Flamingo 3 were trained with a mask over the silence, those of Omni on short pieces without any
QWEN2_AUDIO = Family(f"{HERE}.whisper", "load_qwen2_audio", ("masked_padding",))
AUDIO_FLAMINGO3 = Family(f"{HERE}.whisper", "load_audio_flamingo3", ("masked_padding",))
QWEN_OMNI = Family(f"{HERE}.qwen_omni", "load_omni")
WAV2VEC2 = Family(f"{HERE}.wav2vec2", "load_wave", ("chunk_seconds",))
W2V_BERT = Family(f"{HERE}.w2v_bert", "load_w2v_bert", ("chunk_seconds",))
VOXTRAL = Family(f"{HERE}.whisper", "load_voxtral", WHISPER_OPTIONS, {"pad_to": 30.0})
ULTRAVOX = Family(f"{HERE}.whisper", "load_whisper", WHISPER_OPTIONS)
AST = Family(f"{HERE}.ast", "load_ast")
CLAP = Family(f"{HERE}.clap", "load_clap")
CODEC = Family(f"{HERE}.codec", "load_codec")
EXPORTED = Family(f"{HERE}.exported", "load_exported")
HF_AUTO = Family(f"{HERE}.hf_auto", "load_remote", ("trust_remote_code", "frame_rate"))
GLMASR = Family(f"{HERE}.glmasr", "load_glmasr", ("pad_to", "tail_frames", "keep_tail"), {"pad_to": 30.0})


def make_tower_family(module: str, loader: str) -> Family:
    """Return the family of a stock tower, see ``towers``."""
    return Family(f"{HERE}.{module}", loader, ("chunk_seconds",))


PARAKEET = make_tower_family("parakeet", "load_parakeet")
GRANITE_SPEECH = make_tower_family("conformers", "load_granite_speech")
GRANITE_SPEECH_PLUS = make_tower_family("conformers", "load_granite_speech_plus")
SEAMLESS = make_tower_family("conformers", "load_seamless")
SEAMLESS_V2 = make_tower_family("conformers", "load_seamless_v2")
GEMMA3N = make_tower_family("conformers", "load_gemma3n")
GEMMA4 = make_tower_family("conformers", "load_gemma4")
PHI4 = make_tower_family("conformers", "load_phi4")
LASR = make_tower_family("conformers", "load_lasr")
MOONSHINE = make_tower_family("moonshine_sew_speecht5", "load_moonshine")
MOONSHINE_STREAMING = make_tower_family("moonshine_sew_speecht5", "load_moonshine_streaming")
WAV2VEC2_CONFORMER = make_tower_family("moonshine_sew_speecht5", "load_wav2vec2_conformer")
SEW = make_tower_family("moonshine_sew_speecht5", "load_sew")
SEW_D = make_tower_family("moonshine_sew_speecht5", "load_sew_d")
SPEECHT5 = make_tower_family("moonshine_sew_speecht5", "load_speecht5")
PE_AUDIO = make_tower_family("moonshine_sew_speecht5", "load_pe_audio")

FAMILIES: Mapping[str, Family] = {
    "whisper": WHISPER,
    "qwen2_audio": QWEN2_AUDIO,
    "qwen2_audio_encoder": QWEN2_AUDIO,
    "audioflamingo3": AUDIO_FLAMINGO3,
    "audioflamingo3_encoder": AUDIO_FLAMINGO3,
    "musicflamingo": AUDIO_FLAMINGO3,
    "voxtral": VOXTRAL,
    "voxtral_encoder": VOXTRAL,
    "ultravox": ULTRAVOX,
    "glmasr": GLMASR,
    "glmasr_encoder": GLMASR,
    "qwen2_5_omni": QWEN_OMNI,
    "qwen2_5_omni_thinker": QWEN_OMNI,
    "qwen2_5_omni_audio_encoder": QWEN_OMNI,
    "qwen3_omni_moe": QWEN_OMNI,
    "qwen3_omni_moe_thinker": QWEN_OMNI,
    "qwen3_omni_moe_audio_encoder": QWEN_OMNI,
    "qwen3_asr": QWEN_OMNI,
    "qwen3_asr_encoder": QWEN_OMNI,
    "wav2vec2": WAV2VEC2,
    "hubert": WAV2VEC2,
    "wavlm": WAV2VEC2,
    "data2vec-audio": WAV2VEC2,
    "unispeech": WAV2VEC2,
    "unispeech-sat": WAV2VEC2,
    "wav2vec2-bert": W2V_BERT,
    "parakeet_ctc": PARAKEET,
    "parakeet_encoder": PARAKEET,
    "parakeet_rnnt": PARAKEET,
    "parakeet_tdt": PARAKEET,
    "canary": PARAKEET,
    "granite_speech": GRANITE_SPEECH,
    "granite_speech_encoder": GRANITE_SPEECH,
    "granite_speech_plus": GRANITE_SPEECH_PLUS,
    "granite_speech_plus_encoder": GRANITE_SPEECH_PLUS,
    "seamless_m4t": SEAMLESS,
    "seamless_m4t_v2": SEAMLESS_V2,
    "gemma3n": GEMMA3N,
    "gemma3n_audio": GEMMA3N,
    "gemma4": GEMMA4,
    "gemma4_audio": GEMMA4,
    "phi4_multimodal": PHI4,
    "phi4_multimodal_audio": PHI4,
    "lasr_ctc": LASR,
    "lasr_encoder": LASR,
    "moonshine": MOONSHINE,
    "moonshine_streaming": MOONSHINE_STREAMING,
    "moonshine_streaming_encoder": MOONSHINE_STREAMING,
    "wav2vec2-conformer": WAV2VEC2_CONFORMER,
    "sew": SEW,
    "sew-d": SEW_D,
    "speecht5": SPEECHT5,
    "pe_audio": PE_AUDIO,
    "pe_audio_encoder": PE_AUDIO,
    "audio-spectrogram-transformer": AST,
    "clap": CLAP,
    "clap_audio_model": CLAP,
    "encodec": CODEC,
    "mimi": CODEC,
    "uniaudio": EXPORTED,
    "uniaudio_lm": EXPORTED,
}

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
    load = getattr(importlib.import_module(family.module), family.loader)
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
