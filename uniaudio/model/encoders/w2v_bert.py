"""w2v-BERT 2.0: a conformer over a filter bank."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertRotaryPositionalEmbedding

from uniaudio.errors import UserError
from uniaudio.model.encoders.chunking import CHUNK_SECONDS
from uniaudio.model.encoders.feature_extractor import ChunkedAudioEncoder
from uniaudio.model.encoders.weights import load_pretrained
from uniaudio.model.model_files import (
    RANDOM,
    disable_random_skips,
    find_model_folder,
    read_extractor_settings,
    use_stock_attention,
)
from uniaudio.types import SAMPLE_RATE

HOP, WINDOW = 160, 400  # samples of the filter bank
PAIR = 2  # filter-bank frames of one frame, where the folder has no feature extractor that says it


class W2vBertAudioEncoder(ChunkedAudioEncoder):
    """w2v-BERT 2.0 (Seamless, 2023) at 50 frames per second.

    Two filter-bank frames make one; a last one without a partner is masked, as in the stock extractor, which also
    normalises every band over the chunk. Chunks are padded to the longest and masked in the model.
    """

    calls_by_clip = False

    def __init__(
        self, model: Wav2Vec2BertModel, extractor: SeamlessM4TFeatureExtractor, chunk_seconds: float
    ) -> None:
        stride = extractor.stride
        # a band's variance needs two filter-bank frames
        super().__init__(model, round(chunk_seconds * SAMPLE_RATE), WINDOW + HOP * (max(stride, 2) - 1))
        self.extractor = extractor
        self.dim = model.config.hidden_size
        self.layer_dims = (self.dim,) * (model.config.num_hidden_layers + 1)
        self.frame_rate = SAMPLE_RATE / HOP / stride
        if getattr(model, "masked_spec_embed", None) is not None:
            model.masked_spec_embed.requires_grad_(False)

    def count_frames(self, samples: int) -> int:
        """Return whole groups of filter-bank frames, of which there are ``floor((samples - 400) / 160) + 1``."""
        bands = (max(samples, self.least) - WINDOW) // HOP + 1
        return max(1, bands // self.extractor.stride)

    def encode_chunks(self, waves: list[NDArray[np.float32]]) -> list[list[Tensor]]:
        features = self.extractor(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        mask = self.move_to_device(features.attention_mask)
        self.renew_rotary(mask.device)
        output = self.model(
            self.move_to_device(features.input_features), attention_mask=mask, output_hidden_states=True
        )
        return [list(state) for state in (*output.hidden_states[:-1], output.last_hidden_state)]

    def renew_rotary(self, device: torch.device) -> None:
        """Compute rotary frequencies in float32 again, where there are any.

        The stock module keeps angles by length alone, whatever dtype they had, and a cast rounds its frequencies.
        """
        positions = self.model.encoder.embed_positions
        if isinstance(positions, Wav2Vec2BertRotaryPositionalEmbedding):
            config = self.model.config
            width = config.hidden_size // config.num_attention_heads
            exponents = torch.arange(0, width, 2, device=device) / width
            positions.inv_freq = config.rotary_embedding_base**-exponents
            positions.cached_sequence_length = None


def load_w2v_bert(
    path: str, revision: str | None = None, seed: int = 0, chunk_seconds: float = CHUNK_SECONDS
) -> W2vBertAudioEncoder:
    """Load a w2v-BERT in float32 by folder or Hub name; heads are left out.

    Raises:
        UserError: when there is no such folder, a tensor is missing, or it has an adapter.
    """
    folder = find_model_folder(path, revision)
    config = disable_random_skips(use_stock_attention(Wav2Vec2BertConfig.from_pretrained(folder)))
    if config.add_adapter:
        raise UserError(f"{folder}: add_adapter is set in its config.json, which is not supported")
    model = load_pretrained(Wav2Vec2BertModel, folder, seed if path.startswith(RANDOM) else None, config)
    bands = config.feature_projection_input_dim // PAIR
    usual = {"feature_size": bands, "num_mel_bins": bands, "stride": PAIR}
    extractor = SeamlessM4TFeatureExtractor.from_dict(read_extractor_settings(folder) or usual)
    return W2vBertAudioEncoder(model, extractor, chunk_seconds)
