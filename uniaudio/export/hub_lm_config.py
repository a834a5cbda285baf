"""The configuration of an exported whole model, as transformers reads it."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class UniaudioLMConfig(PretrainedConfig):
    """What an exported model is made of and where it is from.

    Args:
        encoder, adapter: the descriptions from which their modules are made.
        text: values of the decoder's configuration, with its ``model_type``.
        decoder_path: folder or Hub name of a decoder that is not in the folder, None for one inside.
        decoder_revision: its branch, tag or commit.
        audio_token_id: the id in the places of audio tokens.
        sampling_rate: of the waveforms, in Hz.
        provenance: what it was trained on and how, in plain values.
    """

    model_type = "uniaudio_lm"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        adapter: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        decoder_path: str | None = None,
        decoder_revision: str | None = None,
        audio_token_id: int = 0,
        sampling_rate: int = 16_000,
        provenance: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder = encoder
        self.adapter = adapter
        self.text = text or {}
        self.decoder_path = decoder_path
        self.decoder_revision = decoder_revision
        self.audio_token_id = audio_token_id
        self.sampling_rate = sampling_rate
        self.provenance = provenance or {}
        self.vocab_size = max(self.text.get("vocab_size", 0), audio_token_id + 1)
        self.hidden_size = self.text.get("hidden_size", 0)
        self.num_hidden_layers = self.text.get("num_hidden_layers", 0)
        super().__init__(**kwargs)
