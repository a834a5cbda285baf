"""From a description in plain values to the encoder it describes, without its weights.

A description comes with a folder that somebody else may have written, so it chooses among classes that are listed
here or by the caller, and nothing is imported because a file names it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from transformers import __version__

STOCK = "transformers."
MODELS = "transformers.models"
STOCK_MODELS = (  # each is built from its configuration alone, and neither fetches nor imports anything for it
    f"{MODELS}.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer:ASTModel",
    f"{MODELS}.audioflamingo3.modeling_audioflamingo3:AudioFlamingo3Encoder",
    f"{MODELS}.clap.modeling_clap:ClapAudioModel",
    f"{MODELS}.clap.modeling_clap:ClapAudioModelWithProjection",
    f"{MODELS}.data2vec.modeling_data2vec_audio:Data2VecAudioModel",
    f"{MODELS}.encodec.modeling_encodec:EncodecModel",
    f"{MODELS}.gemma3n.modeling_gemma3n:Gemma3nAudioEncoder",
    f"{MODELS}.gemma4.modeling_gemma4:Gemma4AudioModel",
    f"{MODELS}.glmasr.modeling_glmasr:GlmAsrEncoder",
    f"{MODELS}.granite_speech.modeling_granite_speech:GraniteSpeechCTCEncoder",
    f"{MODELS}.granite_speech_plus.modeling_granite_speech_plus:GraniteSpeechPlusCTCEncoder",
    f"{MODELS}.hubert.modeling_hubert:HubertModel",
    f"{MODELS}.lasr.modeling_lasr:LasrEncoder",
    f"{MODELS}.mimi.modeling_mimi:MimiModel",
    f"{MODELS}.moonshine.modeling_moonshine:MoonshineEncoder",
    f"{MODELS}.moonshine_streaming.modeling_moonshine_streaming:MoonshineStreamingEncoder",
    f"{MODELS}.parakeet.modeling_parakeet:ParakeetEncoder",
    f"{MODELS}.pe_audio.modeling_pe_audio:PeAudioEncoder",
    f"{MODELS}.phi4_multimodal.modeling_phi4_multimodal:Phi4MultimodalAudioModel",
    f"{MODELS}.qwen2_5_omni.modeling_qwen2_5_omni:Qwen2_5OmniAudioEncoder",
    f"{MODELS}.qwen2_audio.modeling_qwen2_audio:Qwen2AudioEncoder",
    f"{MODELS}.qwen3_asr.modeling_qwen3_asr:Qwen3ASREncoder",
    f"{MODELS}.qwen3_omni_moe.modeling_qwen3_omni_moe:Qwen3OmniMoeAudioEncoder",
    f"{MODELS}.seamless_m4t.modeling_seamless_m4t:SeamlessM4TSpeechEncoder",
    f"{MODELS}.seamless_m4t_v2.modeling_seamless_m4t_v2:SeamlessM4Tv2SpeechEncoder",
    f"{MODELS}.sew.modeling_sew:SEWModel",
    f"{MODELS}.sew_d.modeling_sew_d:SEWDModel",
    f"{MODELS}.speecht5.modeling_speecht5:SpeechT5EncoderWithSpeechPrenet",
    f"{MODELS}.unispeech.modeling_unispeech:UniSpeechModel",
    f"{MODELS}.unispeech_sat.modeling_unispeech_sat:UniSpeechSatModel",
    f"{MODELS}.voxtral.modeling_voxtral:VoxtralEncoder",
    f"{MODELS}.wav2vec2.modeling_wav2vec2:Wav2Vec2Model",
    f"{MODELS}.wav2vec2_bert.modeling_wav2vec2_bert:Wav2Vec2BertModel",
    f"{MODELS}.wav2vec2_conformer.modeling_wav2vec2_conformer:Wav2Vec2ConformerModel",
    f"{MODELS}.wavlm.modeling_wavlm:WavLMModel",
    f"{MODELS}.whisper.modeling_whisper:WhisperEncoder",
)
STOCK_EXTRACTORS = (
    f"{MODELS}.audio_spectrogram_transformer.feature_extraction_audio_spectrogram_transformer:ASTFeatureExtractor",
    f"{MODELS}.clap.feature_extraction_clap:ClapFeatureExtractor",
    f"{MODELS}.encodec.feature_extraction_encodec:EncodecFeatureExtractor",
    f"{MODELS}.gemma3n.feature_extraction_gemma3n:Gemma3nAudioFeatureExtractor",
    f"{MODELS}.gemma4.feature_extraction_gemma4:Gemma4AudioFeatureExtractor",
    f"{MODELS}.lasr.feature_extraction_lasr:LasrFeatureExtractor",
    f"{MODELS}.parakeet.feature_extraction_parakeet:ParakeetFeatureExtractor",
    f"{MODELS}.pe_audio.feature_extraction_pe_audio:PeAudioFeatureExtractor",
    f"{MODELS}.phi4_multimodal.feature_extraction_phi4_multimodal:Phi4MultimodalFeatureExtractor",
    f"{MODELS}.seamless_m4t.feature_extraction_seamless_m4t:SeamlessM4TFeatureExtractor",
    f"{MODELS}.wav2vec2.feature_extraction_wav2vec2:Wav2Vec2FeatureExtractor",
    f"{MODELS}.whisper.feature_extraction_whisper:WhisperFeatureExtractor",
)
CHANGED = (
    "Gemma3nAudioEncoder",
    "GraniteSpeechCTCEncoder",
)  # they give or take something else in transformers 4
ATTENTION = ("eager", "sdpa", None)  # other names lead to packages and to kernels of the Hub


def rebuild(described: Any, find: Callable[[str], type]) -> Any:
    """Make the object that ``export.describe`` described: the inverse, weights aside.

    Args:
        described: plain values; a mapping with ``part``, ``stock``, ``extractor`` or ``mapping`` stands for an object.
        find: the class of a ``part`` by its written name, ``module:Class``; refuses names that are not on its list.

    Raises:
        ValueError: when a stock class or its attention is not listed here, or something is not installed.
    """
    if isinstance(described, list):
        return [rebuild(item, find) for item in described]
    if not isinstance(described, dict):
        return described
    if "part" in described:
        given = {name: rebuild(value, find) for name, value in described["given"].items()}
        return find(described["part"])(**given)
    if "stock" in described:
        kind = find_stock_class(described["stock"], STOCK_MODELS)
        config = kind.config_class.from_dict(described["values"])
        if described["attention"] not in ATTENTION:
            raise ValueError(f"attention {described['attention']} is none of eager, sdpa")
        # "sdpa" is what transformers chooses itself, from the release on in which the class has it
        config._attn_implementation = "eager" if described["attention"] == "eager" else None
        return kind(config)
    if "extractor" in described:
        extractor = find_stock_class(described["extractor"], STOCK_EXTRACTORS)
        try:
            return extractor.from_dict(described["values"])
        except NameError as problem:  # of a package that its module would have imported
            raise ValueError(
                f"{extractor.__name__} of transformers {__version__} needs {problem.name}"
            ) from problem
    return {name: rebuild(value, find) for name, value in described["mapping"]}


def find_stock_class(place: str, listed: tuple[str, ...]) -> Any:
    """Return a class of transformers by ``module:Class``.

    Raises:
        ValueError: when it is not listed, or the installed transformers has no such class or an older form of it.
    """
    if place not in listed:
        raise ValueError(f"{place} is not a class of transformers that encoders consist of")
    module, _, name = place.partition(":")
    if name in CHANGED and __version__.startswith("4."):
        raise ValueError(f"transformers {__version__} has an older {name}; install a newer release")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise ValueError(f"transformers {__version__} has no {name}; install a newer release") from problem
