"""The formats of published audio language models: their classes, configurations and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3EncoderConfig,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder

# of a Whisper-shaped encoder, by the names of WhisperConfig
TOWER_SETTINGS = (
    "num_mel_bins",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "d_model",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "activation_function",
    "max_source_positions",
)
# what later configurations call them
LATER_NAMES = {
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_dim": "intermediate_size",
    "d_model": "hidden_size",
}


@dataclass(frozen=True)
class StockFormat:
    """One format that the stock classes of transformers and serving engines read.

    Args:
        adapter: kind of the adapter whose projector it has.
        model: the class of transformers that loads it.
        audio: text of the token in the place of every audio token. begin, end: those around a clip, "" for none.
        make_config: tower's and decoder's configurations and the id of the audio token to the whole one.
        make_processor: feature extractor, tokenizer and chat template to the processor.
        is_exact: whether an encoder's frames are those of the stock tower for clips of every length.
        exact_setting: the settings of an encoder that make it so.
        notes: what the format does otherwise than the run, for the card.
        decoders: architectures that serving engines put into it; empty: any.
    """

    adapter: str
    model: type[Any]
    audio: str
    begin: str
    end: str
    make_config: Callable[[WhisperAudioEncoder, PretrainedConfig, int], PretrainedConfig]
    make_processor: Callable[[WhisperFeatureExtractor, PreTrainedTokenizerBase, str], Any]
    is_exact: Callable[[AudioEncoder], bool]
    exact_setting: str
    notes: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()

    @property
    def placeholder(self) -> str:
        """The text of a clip in a prompt, which the processor widens."""
        return f"{self.begin}{self.audio}{self.end}"


def read_tower_settings(
    encoder: WhisperAudioEncoder, names: Mapping[str, str] = LATER_NAMES
) -> dict[str, Any]:
    """Return the architecture of an encoder by the names of a stock configuration."""
    config: Any = encoder.whisper.config
    return {names.get(name, name): getattr(config, name) for name in TOWER_SETTINGS}


def make_qwen2_audio_config(
    encoder: WhisperAudioEncoder, text: PretrainedConfig, audio_token: int
) -> Qwen2AudioConfig:
    """Return the configuration of a Qwen2-Audio."""
    tower = Qwen2AudioEncoderConfig(**read_tower_settings(encoder, {}))
    return Qwen2AudioConfig(audio_config=tower, text_config=text, audio_token_index=audio_token)


def make_qwen2_audio_processor(
    extractor: WhisperFeatureExtractor, tokenizer: PreTrainedTokenizerBase, template: str
) -> Qwen2AudioProcessor:
    """Return the processor of a Qwen2-Audio."""
    return Qwen2AudioProcessor(extractor, tokenizer, chat_template=template)


def make_flamingo_config(
    encoder: WhisperAudioEncoder, text: PretrainedConfig, audio_token: int
) -> AudioFlamingo3Config:
    """Return the configuration of an Audio Flamingo 3."""
    tower = AudioFlamingo3EncoderConfig(**read_tower_settings(encoder))
    return AudioFlamingo3Config(audio_config=tower, text_config=text, audio_token_id=audio_token)


def make_flamingo_processor(
    extractor: WhisperFeatureExtractor, tokenizer: PreTrainedTokenizerBase, template: str
) -> AudioFlamingo3Processor:
    """Return the processor of an Audio Flamingo 3."""
    return AudioFlamingo3Processor(extractor, tokenizer, chat_template=template)


def masks_padding(encoder: AudioEncoder) -> bool:
    """Return whether frames are those of a tower that masks the silence behind a clip."""
    return isinstance(encoder, WhisperAudioEncoder) and encoder.masked_padding


STOCK_FORMATS: Mapping[str, StockFormat] = {
    "qwen2-audio": StockFormat(
        adapter="qwen2_audio",
        model=Qwen2AudioForConditionalGeneration,
        audio="<|AUDIO|>",
        begin="<|audio_bos|>",
        end="<|audio_eos|>",
        make_config=make_qwen2_audio_config,
        make_processor=make_qwen2_audio_processor,
        is_exact=masks_padding,
        exact_setting="masked_padding: true",
        notes=(
            "The processor drops what is beyond 30 s of a clip: cut a longer one into pieces of 30 s and write their "
            "places side by side, as in <|audio_bos|><|AUDIO|><|AUDIO|><|audio_eos|>, which is what the run computes.",
        ),
        decoders=("qwen2",),
    ),
    "audio-flamingo3": StockFormat(
        adapter="audio_flamingo3",
        model=AudioFlamingo3ForConditionalGeneration,
        audio="<sound>",
        begin="",
        end="",
        make_config=make_flamingo_config,
        make_processor=make_flamingo_processor,
        is_exact=masks_padding,
        exact_setting="masked_padding: true",
        notes=("The processor takes one clip for each text, of up to 10 minutes.",),
        decoders=("qwen2",),
    ),
}
