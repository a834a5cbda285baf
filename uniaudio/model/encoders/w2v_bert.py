"""w2v-BERT 2.0: a conformer over a filter bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertRotaryPositionalEmbedding

from uniaudio.errors import UserError
from uniaudio.model.encoders.base import find_device, freeze_mask_embedding
from uniaudio.model.encoders.chunking import CHUNK_SECONDS
from uniaudio.model.encoders.towers import TowerAudioEncoder, load_tower
from uniaudio.model.model_files import find_model_folder, read_model_config

HOP, WINDOW = 160, 400  # samples of the filter bank
STOCK = "wav2vec2_bert:Wav2Vec2BertModel"
EXTRACTOR = "seamless_m4t:SeamlessM4TFeatureExtractor"


class W2vBertAudioEncoder(TowerAudioEncoder):
    """w2v-BERT 2.0 (Seamless, 2023) at 50 frames per second.

    Two filter-bank frames make one; a last one without a partner is masked, as in the stock extractor, which also
    normalises every band over the chunk. Chunks are padded to the longest and masked in the model.
    """

    calls_by_clip = False
    reads_mask = True

    def __init__(self, model: Any, extractor: Any, chunk_seconds: float) -> None:
        # a band's variance needs two filter-bank frames
        self.shortest = WINDOW + HOP * (max(extractor.stride, 2) - 1)
        super().__init__(model, extractor, chunk_seconds)
        freeze_mask_embedding(model)

    def list_layers(self) -> list[nn.Module]:
        return list(self.model.encoder.layers)

    def count_stride(self) -> int:
        return int(HOP * self.extractor.stride)

    def count_frames(self, samples: int) -> int:
        """Return whole groups of filter-bank frames, of which there are ``floor((samples - 400) / 160) + 1``."""
        bands = (max(samples, self.least) - WINDOW) // HOP + 1
        return max(1, bands // self.extractor.stride)

    def run_model(self, waves: list[NDArray[np.float32]]) -> Tensor:
        self.renew_rotary(find_device(self))
        return super().run_model(waves)

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
        UserError: when there is no such folder, a tensor is missing or unknown, or it has an adapter.
    """
    folder = find_model_folder(path, revision)
    if read_model_config(folder).get("add_adapter"):
        raise UserError(f"{folder}: add_adapter is set in its config.json, which is not supported")
    prefixes = ("wav2vec2_bert.",)
    return load_tower(
        W2vBertAudioEncoder, STOCK, EXTRACTOR, path, revision, seed, chunk_seconds, prefixes=prefixes
    )
