"""An exported whole model of transformers: text with places for clips and padded waveforms in, logits or text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
)

from uniaudio.export.hub_base import (
    RebuiltModel,
    construct_plainly,
    copy_constants,
    find_decoder_places,
    find_graph_tool,
)
from uniaudio.export.hub_lm_config import UniaudioLMConfig
from uniaudio.export.hub_processor import ClipsProcessor
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.depth_injection import DepthInjection, widen_rows
from uniaudio.model.rebuild import rebuild
from uniaudio.ragged import Ragged

# The classes that a description may name, by ``module:Class``; an exported folder has those of its model here.
PARTS: Mapping[str, type[nn.Module]] = {}
AUDIO = "<|audio|>"  # stands for a clip in a prompt
# settings of loading that also hold for a decoder that is not in the folder
OF_DECODER = (
    *("attn_implementation", "max_memory", "offload_folder"),
    *("token", "cache_dir", "local_files_only", "force_download", "proxies"),
)


class UniaudioForCausalLM(RebuiltModel, GenerationMixin):
    """Encoder, adapter and language model as they were trained; a clip's tokens do not depend on its batch.

    Attributes:
        adapter: frames to audio tokens. language_model: of transformers.
    """

    config_class = UniaudioLMConfig
    main_input_name = "input_ids"
    base_model_prefix = "uniaudio"
    supports_gradient_checkpointing = True
    parts = PARTS
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: UniaudioLMConfig) -> None:
        super().__init__(config)
        with construct_plainly():
            self.encoder = rebuild(config.encoder, PARTS.__getitem__)
            self.adapter: Adapter = rebuild(config.adapter, PARTS.__getitem__)
        self.constants = copy_constants(self)
        for part in (self.encoder, self.adapter):
            part.to(torch.get_default_dtype())
        self.language_model: Any = None
        self._injection: DepthInjection | None = None  # not pickled: its hooks are on layers of this model
        if config.decoder_path is None:
            self.make_missing_parts()
        self.tensor_names = frozenset(self.state_dict())
        # what must not be divided over devices: parts of an encoder read each other's weights
        whole = (type(part).__name__ for part in (self.encoder, self.adapter))
        self._no_split_modules = [*whole, *(getattr(self.language_model, "_no_split_modules", None) or ())]
        self.post_init()

    def make_missing_parts(self) -> None:
        """Make the language model, without its weights, as the configuration says."""
        if self.language_model is None:
            self.language_model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**self.config.text),
                attn_implementation=self.config._attn_implementation,
                dtype=torch.get_default_dtype(),  # of the call that loads, not that of its own configuration
            )

    def _set_gradient_checkpointing(self, enable: bool = True, **settings: Any) -> None:
        """Let the layers of language model and encoder make their activations again in the backward.

        An encoder whose layers are not called one by one keeps its activations.
        """
        self.language_model._set_gradient_checkpointing(enable, **settings)
        if self.encoder.can_recompute():
            self.recompute_encoder(enable)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as every model of transformers is loaded, a decoder that is not in the folder after it.

        The loaded model always contains its decoder, and so has what ``save_pretrained`` writes.

        Raises:
            ValueError: when the tensors in the file are not those of the model.
        """
        given = {name: kwargs[name] for name in OF_DECODER if name in kwargs}
        if "device_map" in kwargs:
            given["device_map"] = find_decoder_places(kwargs["device_map"])
        with_info = kwargs.pop("output_loading_info", False)
        loaded, loading = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        config = loaded.config
        if config.decoder_path is not None:
            lm = AutoModelForCausalLM.from_pretrained(
                config.decoder_path, revision=config.decoder_revision, dtype=loaded.dtype, **given
            )
            loaded.language_model = lm.eval()
            config.decoder_path = config.decoder_revision = None  # saved again, the model holds it
            loaded.tensor_names = frozenset(loaded.state_dict())
        return (loaded, loading) if with_info else loaded

    def get_input_embeddings(self) -> Any:
        """Return the table of the language model."""
        return None if self.language_model is None else self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Return the head of the language model."""
        return None if self.language_model is None else self.language_model.get_output_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Set the table of the language model."""
        self.language_model.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Give the language model a table and a head of so many rows, and say so in the configuration."""
        table = self.language_model.resize_token_embeddings(*args, **kwargs)
        self.config.text = {**self.config.text, **self.language_model.config.to_dict()}
        self.config.vocab_size = max(table.num_embeddings, self.config.audio_token_id + 1)
        return table

    def count_tokens(self, samples: int) -> int:
        """Return the audio tokens of a clip of so many samples at 16 kHz."""
        return self.adapter.num_tokens(self.encoder.num_frames(samples))

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        input_values: Tensor | None,
        audio_lengths: Tensor | None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the rows ``[B, T, D]`` that the language model reads, audio tokens in their places.

        Args:
            labels: see ``forward``; what is to be answered is no part of a question, for routers that read it.

        Raises:
            ValueError: when there are other places for audio than audio tokens.
        """
        places = input_ids == self.config.audio_token_id
        text = self.get_input_embeddings()(input_ids.masked_fill(places, 0))
        if input_values is None:
            if bool(places.any()):
                raise ValueError(
                    "input_ids contain audio placeholders, but there are no input_values; give the clips, too"
                )
            return text
        if audio_lengths is None:
            audio_lengths = torch.full((len(input_values),), input_values.shape[1])
        audio = Ragged.from_padded(input_values, torch.as_tensor(audio_lengths).to("cpu", torch.int64))
        counts = [self.count_tokens(samples) for samples in audio.lengths.tolist()]
        if sum(counts) != int(places.sum()):
            raise ValueError(
                f"{int(places.sum())} audio placeholders but {sum(counts)} audio tokens; create the "
                "inputs with the processor"
            )
        given = {}
        if getattr(self.encoder, "takes_prompts", False):
            is_text = ~places if attention_mask is None else ~places & attention_mask.bool()
            if labels is not None:  # all of them where somebody learns the questions, too
                is_question = is_text & (labels == -100)
                is_text = torch.where(is_question.any(1, keepdim=True), is_question, is_text)
            given["prompts"] = self.average_texts(text, is_text, places, counts)
        numbers = self.adapter.encoder_layers
        encoded = self.encoder(audio, layers=True, **given) if numbers else self.encoder(audio, **given)
        states = [[encoded.layers[number] for number in numbers]] if numbers else []
        tokens = self.adapter(encoded.frames, *states).values
        text = widen_rows(text, tokens.shape[1])
        # a device_map may put every part on another device; hooks move what a part is called with, and nothing else
        return text.masked_scatter(places[..., None].to(text.device), tokens.to(text))

    def split_rows(self, rows: Tensor, once: bool = False) -> Tensor:
        """Return the embeddings of rows and hand their features to the layers, see ``DepthInjection``."""
        if not self.adapter.decoder_layers:
            return rows
        if self._injection is None:
            self._injection = DepthInjection(self.language_model, self.adapter.decoder_layers)
        return self._injection.split(rows, once)

    def average_texts(self, text: Tensor, is_text: Tensor, places: Tensor, counts: Sequence[int]) -> Tensor:
        """Return for every clip, of so many audio tokens, the mean embedding ``[C, D]`` of the text in its row."""
        weights = is_text[..., None].to(text.device)
        means = (text.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
        rows, row, room = [], 0, places.sum(1).tolist()
        for tokens in counts:
            while room[row] < tokens:
                row += 1
            room[row] -= tokens
            rows.append(row)
        return means.index_select(0, torch.tensor(rows).to(means.device))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **settings: Any,
    ) -> Any:
        """Return what the language model returns: logits, and the loss where there are labels.

        Args:
            input_ids: ``[B, T]``, ``audio_token_id`` in the places of audio tokens, from the processor.
            input_values: ``[C, S]`` padded waveforms at 16 kHz, in the order of their places. audio_lengths: ``[C]``.
            labels: ``[B, T]``, -100 where nothing is learned; places of audio are none.

        Raises:
            ValueError: when there are other places for audio than audio tokens, and where a graph is made of it.
        """
        if (tool := find_graph_tool()) is not None:
            raise ValueError(
                f"{tool}: the model reads the lengths of clips on the host, and a graph would keep those of its "
                "example; call the model itself"
            )
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, attention_mask, input_values, audio_lengths, labels)
        if attention_mask is not None and "position_ids" not in settings:
            positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
            positions = positions[:, -inputs_embeds.shape[1] :]  # behind those in the cache
            settings["position_ids"] = positions.to(inputs_embeds.device)
        if labels is not None:
            labels = labels.masked_fill(labels == self.config.audio_token_id, -100)
        return self.language_model(
            inputs_embeds=self.split_rows(inputs_embeds),
            attention_mask=attention_mask,
            labels=labels,
            **settings,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        **settings: Any,
    ) -> Any:
        """Continue the prompts, as ``generate`` of transformers does; the ids begin with those of the prompts.

        Args:
            settings: those of the language model's ``generate``, such as ``max_new_tokens``.

        Raises:
            ValueError: when there are other places for audio than audio tokens, and for ``prefill_chunk_size``.
        """
        stated = settings.get("generation_config") or self.generation_config
        if settings.get("prefill_chunk_size") or getattr(stated, "prefill_chunk_size", None):
            raise ValueError(
                "prefill_chunk_size: prompts reach the language model as embeddings of text and audio, and "
                "transformers divides only token ids; leave it out"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        embeds = self.embed(input_ids, attention_mask, input_values, audio_lengths)
        # also where settings have a generation_config: what that leaves open is taken from the model's
        self.language_model.generation_config = self.generation_config
        embeds, mask = self.split_rows(embeds, once=True), attention_mask.to(embeds.device)
        output = self.language_model.generate(inputs_embeds=embeds, attention_mask=mask, **settings)
        new = (output if isinstance(output, Tensor) else output.sequences).to(input_ids.device)
        ids = torch.cat([input_ids.repeat_interleave(len(new) // len(input_ids), 0), new], 1)
        if isinstance(output, Tensor):
            return ids
        output.sequences = ids
        return output


class UniaudioProcessor(ClipsProcessor):
    """Texts with ``<|audio|>`` for every clip and waveforms at 16 kHz to the inputs of the model.

    Args:
        encoder, adapter: their descriptions, from which the number of a clip's tokens follows.
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        encoder: dict[str, Any] | None = None,
        adapter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.encoder, self.adapter = encoder, adapter
        self.audio_token = AUDIO
        with torch.device("meta"):  # what is needed of them are their lengths
            self._parts = [rebuild(described, PARTS.__getitem__) for described in (encoder, adapter)]

    def count_tokens(self, samples: int) -> int:
        """Return the audio tokens of a clip of so many samples at 16 kHz."""
        encoder, adapter = self._parts
        return adapter.num_tokens(encoder.num_frames(samples))

    def make_audio_inputs(self, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return ``input_values``, padded, and ``audio_lengths``."""
        return {
            "input_values": nn.utils.rnn.pad_sequence(list(clips), batch_first=True),
            "audio_lengths": torch.tensor([len(clip) for clip in clips]),
        }

    @property
    def model_input_names(self) -> list[str]:
        """The names of what a call returns."""
        return ["input_ids", "attention_mask", "input_values", "audio_lengths"]
