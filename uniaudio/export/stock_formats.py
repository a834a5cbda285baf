"""The formats of published audio language models: their classes, configurations and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    AudioFlamingo3EncoderConfig,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    VoxtralEncoderConfig,
    VoxtralForConditionalGeneration,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from uniaudio.export.hub_processor import UltravoxProcessor, VoxtralProcessor, WindowsProcessor
from uniaudio.model.adapters.stock_projectors import RMSNormSwiGLU, StockProjector
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder

VLLM = """\
from vllm import LLM, SamplingParams

model = LLM("PLACE", trust_remote_code=True)  # the processor is code in the folder
turns = [{"role": "user", "content": "<|audio|>What is this?"}]
text = model.get_tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
request = {"prompt": text, "multi_modal_data": {"audio": [(waveform, 16000)]}}
print(model.generate(request, SamplingParams(temperature=0, max_tokens=64))[0].outputs[0].text)"""
# of a Whisper-shaped encoder, by the names of WhisperConfig, which later configurations know as well
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
# what becomes of the end of a clip, by the settings of an encoder, and their values where nothing is done
NO_PADDING = {"pad_to": None, "tail_frames": 0, "keep_tail": False, "masked_padding": False}


FLOATS = (
    "The processor takes float waveforms in [-1, 1] with one channel; it does not scale int16 "
    "samples and computes wrong spectrograms from them without an error."
)


@dataclass(frozen=True)
class StockFormat:
    """One format that the stock classes of transformers and serving engines read.

    Args:
        adapter: kind of the adapter whose projector it has.
        model: the class of transformers that loads it; None where there is none.
        tower: the class of its encoder's configuration.
        processor: the class of its processor; one of ``hub_processor`` goes into the folder as code.
        audio: text of the token in the place of every audio token. begin, end: those around a clip, "" for none.
        encoder: settings with which an encoder computes what the stock tower does for clips of every length.
        notes: what the format does otherwise than the run, for the card.
        decoders: architectures that serving engines put into it; empty: any.
        explain_misfit: why the format cannot hold an encoder, or an empty text.
        ties_head: whether its class reads a head that is the table of embeddings, which is then stored once. Those of
            transformers 5 have a head of their own.
        arguments: of the processor's call, beside those that all have.
        loading: lines that answer a question where those of transformers do not, with PLACE for the folder.
    """

    adapter: str
    model: type[Any] | None
    tower: type[PretrainedConfig]
    processor: type[Any]
    audio: str
    begin: str = ""
    end: str = ""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()
    explain_misfit: Callable[[WhisperAudioEncoder], str] = lambda _: ""
    ties_head: bool = False
    arguments: str = ""
    loading: str = ""

    @property
    def architecture(self) -> str:
        """The name of the class in a configuration."""
        return "UltravoxModel" if self.model is None else self.model.__name__

    @property
    def model_type(self) -> str:
        """The name of the architecture in a configuration."""
        return str((UltravoxModelConfig if self.model is None else self.model.config_class).model_type)

    @property
    def placeholder(self) -> str:
        """The text of a clip in a prompt, which the processor widens."""
        return f"{self.begin}{self.audio}{self.end}"

    @property
    def has_code(self) -> bool:
        """Whether its processor is code in the folder."""
        return issubclass(self.processor, WindowsProcessor)

    def is_exact(self, encoder: AudioEncoder) -> bool:
        """Return whether an encoder's frames are those of the stock tower for clips of every length."""
        return isinstance(encoder, WhisperAudioEncoder) and all(
            getattr(encoder, name) == self.encoder.get(name, default) for name, default in NO_PADDING.items()
        )

    def describe_encoder_settings(self) -> str:
        """Return the settings that make an encoder exact, as a config has them."""
        written = [f"{name}: {str(value).lower()}" for name, value in self.encoder.items()]
        return " and ".join(written) or f"no {', '.join(NO_PADDING)}"

    def make_config(
        self, encoder: WhisperAudioEncoder, adapter: StockProjector, text: PretrainedConfig, audio_token: int
    ) -> PretrainedConfig:
        """Return the configuration of a whole model.

        Args:
            text: of the decoder. audio_token: the id in the place of every audio token.
        """
        stated: Any = encoder.whisper.config
        tower = self.tower(**{name: getattr(stated, name) for name in TOWER_SETTINGS})
        if self.model is None:
            return make_ultravox_config(tower, adapter, text, audio_token)
        config: PretrainedConfig = self.model.config_class(
            audio_config=tower, text_config=text, audio_token_id=audio_token
        )
        return config

    def make_processor(
        self,
        extractor: WhisperFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        adapter: StockProjector,
    ) -> Any:
        """Return the processor that widens the places of clips for an adapter."""
        given = {"audio_token": self.audio, "stack": adapter.stack} if self.has_code else {}
        return self.processor(extractor, tokenizer, chat_template=template, **given)


def explain_voxtral_misfit(encoder: WhisperAudioEncoder) -> str:
    """Return why the projector of Voxtral cannot follow an encoder: it takes the inner width for four frames."""
    config: Any = encoder.whisper.config
    if config.encoder_ffn_dim == 4 * config.d_model:
        return ""
    return (
        f"its feed-forward layers are {config.encoder_ffn_dim} wide, but the format needs four times "
        f"{config.d_model}"
    )


class UltravoxModelConfig(PretrainedConfig):
    """The configuration of an Ultravox, whose model and processor are no part of transformers."""

    model_type = "ultravox"


def make_ultravox_config(
    tower: PretrainedConfig, adapter: StockProjector, text: PretrainedConfig, audio_token: int
) -> UltravoxModelConfig:
    """Return the configuration of an Ultravox that holds all weights itself."""
    projector = adapter.projector
    assert isinstance(projector, RMSNormSwiGLU)
    text.architectures = [AutoModelForCausalLM._model_mapping[type(text)].__name__]
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


STOCK_FORMATS: Mapping[str, StockFormat] = {
    "qwen2-audio": StockFormat(
        adapter="qwen2_audio",
        model=Qwen2AudioForConditionalGeneration,
        audio="<|AUDIO|>",
        begin="<|audio_bos|>",
        end="<|audio_eos|>",
        tower=Qwen2AudioEncoderConfig,
        processor=Qwen2AudioProcessor,
        encoder={"masked_padding": True},
        notes=(
            FLOATS,
            "The processor drops everything after the first 30 s of a clip: cut a longer clip into "
            "pieces of 30 s and write their placeholders one after another, as in "
            "<|audio_bos|><|AUDIO|><|AUDIO|><|audio_eos|>, as the run does.",
        ),
        decoders=("qwen2",),
        arguments=", padding=True",
    ),
    "audio-flamingo3": StockFormat(
        adapter="audio_flamingo3",
        model=AudioFlamingo3ForConditionalGeneration,
        audio="<sound>",
        tower=AudioFlamingo3EncoderConfig,
        processor=AudioFlamingo3Processor,
        encoder={"masked_padding": True},
        notes=(
            FLOATS,
            "The processor takes one clip per text, of up to 10 minutes.",
            "It pads texts by default; do not pass padding=True, which also shortens the "
            "spectrograms, so that the tower fails with mismatched tensor sizes. "
            "text_kwargs={'padding': ...} applies to texts only.",
        ),
        decoders=("qwen2",),
    ),
    "voxtral": StockFormat(
        adapter="voxtral",
        model=VoxtralForConditionalGeneration,
        audio="[AUDIO]",
        begin="[BEGIN_AUDIO]",
        tower=VoxtralEncoderConfig,
        processor=VoxtralProcessor,
        encoder={"tail_frames": 1500, "keep_tail": True},
        notes=(
            "The Voxtral processor of transformers reads only Mistral's tokenizers; the folder has "
            "its own processor as code, which needs trust_remote_code=True. The model's class does "
            "not need it.",
            "Inference engines that expect Mistral's tokenizer file with this format cannot read the folder.",
            "A clip longer than 30 s is cut before its spectrograms are computed, as in the run.",
        ),
        decoders=("llama",),
        explain_misfit=explain_voxtral_misfit,
    ),
    "ultravox": StockFormat(
        adapter="ultravox",
        model=None,
        audio="<|audio|>",
        tower=WhisperConfig,
        processor=UltravoxProcessor,
        notes=(
            "transformers has no class for this format, so the exported model was not compared "
            "with the run; vLLM's UltravoxModel reads it, with the processor in the folder, which "
            "is code (trust_remote_code=True).",
            "The last token of a window reads frames of padding where the run has zeros, if the "
            "window is not a multiple of the stacked frames and is in a batch with a longer one.",
        ),
        ties_head=True,
        loading=VLLM,
    ),
}
