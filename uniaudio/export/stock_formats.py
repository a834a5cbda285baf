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
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    VoxtralConfig,
    VoxtralEncoderConfig,
    VoxtralForConditionalGeneration,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from uniaudio.export.hub_processor import UltravoxProcessor, VoxtralProcessor
from uniaudio.model.adapters.stock_projectors import RMSNormSwiGLU, StockProjector
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder

WINDOW_FRAMES = 1500  # of 30 s
VLLM = """\
from vllm import LLM, SamplingParams

model = LLM("PLACE", trust_remote_code=True)  # the processor is code of the folder
turns = [{"role": "user", "content": "<|audio|>What is this?"}]
text = model.get_tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
request = {"prompt": text, "multi_modal_data": {"audio": [(waveform, 16000)]}}
print(model.generate(request, SamplingParams(temperature=0, max_tokens=64))[0].outputs[0].text)"""
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
        model: the class of transformers that loads it; None where there is none.
        audio: text of the token in the place of every audio token. begin, end: those around a clip, "" for none.
        make_config: encoder, adapter, the decoder's configuration and the id of the audio token to the whole one.
        make_processor: feature extractor, tokenizer, chat template and adapter to the processor.
        is_exact: whether an encoder's frames are those of the stock tower for clips of every length.
        exact_setting: the settings of an encoder that make it so.
        notes: what the format does otherwise than the run, for the card.
        decoders: architectures that serving engines put into it; empty: any.
        explain_misfit: why the format cannot hold an encoder, or an empty text.
        has_code: whether the processor is one of ``hub_processor``, which goes into the folder as code.
        loading: lines that answer a question where those of transformers do not, with PLACE for the folder.
    """

    adapter: str
    model: type[Any] | None
    audio: str
    begin: str
    end: str
    make_config: Callable[[WhisperAudioEncoder, StockProjector, PretrainedConfig, int], PretrainedConfig]
    make_processor: Callable[[WhisperFeatureExtractor, PreTrainedTokenizerBase, str, StockProjector], Any]
    is_exact: Callable[[AudioEncoder], bool]
    exact_setting: str
    notes: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()
    explain_misfit: Callable[[WhisperAudioEncoder], str] = lambda _: ""
    has_code: bool = False
    loading: str = ""

    @property
    def architecture(self) -> str:
        """The name of the class in a configuration."""
        return "UltravoxModel" if self.model is None else self.model.__name__

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
    encoder: WhisperAudioEncoder, adapter: StockProjector, text: PretrainedConfig, audio_token: int
) -> Qwen2AudioConfig:
    """Return the configuration of a Qwen2-Audio."""
    tower = Qwen2AudioEncoderConfig(**read_tower_settings(encoder, {}))
    return Qwen2AudioConfig(audio_config=tower, text_config=text, audio_token_index=audio_token)


def make_qwen2_audio_processor(
    extractor: WhisperFeatureExtractor,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    adapter: StockProjector,
) -> Qwen2AudioProcessor:
    """Return the processor of a Qwen2-Audio."""
    return Qwen2AudioProcessor(extractor, tokenizer, chat_template=template)


def make_flamingo_config(
    encoder: WhisperAudioEncoder, adapter: StockProjector, text: PretrainedConfig, audio_token: int
) -> AudioFlamingo3Config:
    """Return the configuration of an Audio Flamingo 3."""
    tower = AudioFlamingo3EncoderConfig(**read_tower_settings(encoder))
    return AudioFlamingo3Config(audio_config=tower, text_config=text, audio_token_id=audio_token)


def make_flamingo_processor(
    extractor: WhisperFeatureExtractor,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    adapter: StockProjector,
) -> AudioFlamingo3Processor:
    """Return the processor of an Audio Flamingo 3."""
    return AudioFlamingo3Processor(extractor, tokenizer, chat_template=template)


def make_voxtral_config(
    encoder: WhisperAudioEncoder, adapter: StockProjector, text: PretrainedConfig, audio_token: int
) -> VoxtralConfig:
    """Return the configuration of a Voxtral."""
    tower = VoxtralEncoderConfig(**read_tower_settings(encoder))
    return VoxtralConfig(audio_config=tower, text_config=text, audio_token_id=audio_token)


def make_voxtral_processor(
    extractor: WhisperFeatureExtractor,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    adapter: StockProjector,
) -> VoxtralProcessor:
    """Return a processor for Voxtral's model with any tokenizer."""
    audio = STOCK_FORMATS["voxtral"].audio
    return VoxtralProcessor(
        extractor, tokenizer, chat_template=template, audio_token=audio, stack=adapter.stack
    )


def explain_voxtral_misfit(encoder: WhisperAudioEncoder) -> str:
    """Return why the projector of Voxtral cannot follow an encoder: it takes the inner width for four frames."""
    config: Any = encoder.whisper.config
    if config.encoder_ffn_dim == 4 * config.d_model:
        return ""
    return f"its layers are {config.encoder_ffn_dim} wide inside, and the format wants four times {config.d_model}"


class UltravoxModelConfig(PretrainedConfig):
    """The configuration of an Ultravox, whose model and processor are no part of transformers."""

    model_type = "ultravox"


def make_ultravox_config(
    encoder: WhisperAudioEncoder, adapter: StockProjector, text: PretrainedConfig, audio_token: int
) -> UltravoxModelConfig:
    """Return the configuration of an Ultravox that holds all weights itself."""
    projector = adapter.projector
    assert isinstance(projector, RMSNormSwiGLU)
    text.architectures = [AutoModelForCausalLM._model_mapping[type(text)].__name__]
    tower = WhisperConfig(**read_tower_settings(encoder, {}))
    return UltravoxModelConfig(
        audio_config=tower.to_dict(),
        text_config=text.to_dict(),
        audio_model_id=None,
        text_model_id=None,
        audio_token_index=audio_token,
        vocab_size=text.vocab_size,
        hidden_size=projector.linear_1.out_features,
        stack_factor=adapter.stack,
        projector_act="swiglu",
        projector_ln_mid=True,
        num_projector_layers=0,
        ignore_index=-100,
    )


def make_ultravox_processor(
    extractor: WhisperFeatureExtractor,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    adapter: StockProjector,
) -> UltravoxProcessor:
    """Return the processor of an Ultravox."""
    audio = STOCK_FORMATS["ultravox"].audio
    return UltravoxProcessor(
        extractor, tokenizer, chat_template=template, audio_token=audio, stack=adapter.stack
    )


def gives_whole_windows(encoder: AudioEncoder) -> bool:
    """Return whether the frames of every clip are those of windows of 30 s with silence in them."""
    return (
        isinstance(encoder, WhisperAudioEncoder)
        and encoder.keep_tail
        and encoder.tail_frames >= WINDOW_FRAMES
    )


def sees_no_silence(encoder: AudioEncoder) -> bool:
    """Return whether a clip is encoded as it is, with zeros around it in the convolutions."""
    return (
        isinstance(encoder, WhisperAudioEncoder)
        and not encoder.masked_padding
        and encoder.pad_to is None
        and not encoder.tail_frames
    )


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
    "voxtral": StockFormat(
        adapter="voxtral",
        model=VoxtralForConditionalGeneration,
        audio="[AUDIO]",
        begin="[BEGIN_AUDIO]",
        end="",
        make_config=make_voxtral_config,
        make_processor=make_voxtral_processor,
        is_exact=gives_whole_windows,
        exact_setting="tail_frames: 1500 and keep_tail: true",
        notes=(
            "The processor of transformers for Voxtral reads tokenizers of Mistral alone; the folder has one of its "
            "own as code, which needs trust_remote_code=True. The model's class needs none.",
            "Engines that want Mistral's tokenizer file with this format do not read the folder.",
            "A clip beyond 30 s is cut before its spectrograms are made, as the run did.",
        ),
        decoders=("llama",),
        explain_misfit=explain_voxtral_misfit,
        has_code=True,
    ),
    "ultravox": StockFormat(
        adapter="ultravox",
        model=None,
        audio="<|audio|>",
        begin="",
        end="",
        make_config=make_ultravox_config,
        make_processor=make_ultravox_processor,
        is_exact=sees_no_silence,
        exact_setting="no pad_to, tail_frames or masked_padding",
        notes=(
            "transformers has no class of this format, so the written model was not compared with the run; vLLM's "
            "UltravoxModel reads it, with the processor in the folder, which is code (trust_remote_code=True).",
            "The last token of a window reads frames of padding where the run has zeros, if the window is no multiple "
            "of the stacked frames and stands beside a longer one in a batch.",
        ),
        has_code=True,
        loading=VLLM,
    ),
}
