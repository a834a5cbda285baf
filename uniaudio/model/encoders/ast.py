"""The Audio Spectrogram Transformer: patches of a spectrogram of ten seconds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel
from transformers.models.audio_spectrogram_transformer import modeling_audio_spectrogram_transformer

from uniaudio.model.activation_checkpointing import run_layer
from uniaudio.model.encoders.feature_extractor import ChunkedAudioEncoder
from uniaudio.model.encoders.weights import load_pretrained
from uniaudio.model.model_files import RANDOM, find_model_folder, read_extractor_settings

HOP = 160  # samples of a spectrogram frame
SPECIAL = 2  # class and distillation token before the patches
WINDOW = 400  # samples of the shortest clip that has a spectrogram frame
# tensors of a layer in this release of transformers -> in releases with a class ``ASTEncoder`` that holds the layers
OLDER_NAMES = {
    rf"model\.layers\.(\d+)\.{new}": rf"model.encoder.layer.\1.{older}"
    for new, older in (
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        ("layernorm_before", "layernorm_before"),
        ("layernorm_after", "layernorm_after"),
    )
}


class AstAudioEncoder(ChunkedAudioEncoder):
    """AST (Gong et al. 2021): a frame is the mean of the patches at one time over all frequencies.

    The stock model hears ``max_length`` spectrogram frames (10.24 s), silence after shorter clips; its positions are
    fixed. Clips are cut so that all times of a window stand for their own sound (10.1 s), and frames of silence are
    dropped. With the usual stride of 10 that gives 10 frames per second.
    """

    calls_by_clip = False

    def __init__(self, model: ASTModel, extractor: ASTFeatureExtractor) -> None:
        config = model.config
        self.times = (config.max_length - config.patch_size) // config.time_stride + 1
        self.step = config.time_stride * HOP  # samples
        super().__init__(model, chunk=self.times * self.step, least=WINDOW)
        self.extractor = extractor
        self.dim = config.hidden_size
        self.layer_dims = (self.dim,) * (config.num_hidden_layers + 1)
        self.frame_rate = extractor.sampling_rate / self.step

    @classmethod
    def map_older_names(cls) -> dict[str, str]:
        return OLDER_NAMES if hasattr(modeling_audio_spectrogram_transformer, "ASTEncoder") else {}

    def can_recompute(self) -> bool:
        return True

    def recompute(self) -> None:
        self.recomputes = True

    def count_frames(self, samples: int) -> int:
        """Return the times at which a patch begins within the sound, at least one."""
        return max(1, math.ceil(samples / self.step))

    def encode_chunks(self, waves: list[NDArray[np.float32]], layers: bool) -> list[list[Tensor]]:
        features = self.extractor(waves, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        hidden = self.model.embeddings(self.move_to_device(features.input_values))
        states = []
        for layer in self.model.layers if hasattr(self.model, "layers") else self.model.encoder.layer:
            if layers:
                states.append(self.unfold_over_time(hidden))
            hidden = run_layer(self.recomputes, layer, hidden, None)
        return [*states, self.unfold_over_time(self.model.layernorm(hidden))]

    def unfold_over_time(self, hidden: Tensor) -> list[Tensor]:
        """Average patches ``[W, 2 + frequencies * times, E]``, which stand frequency by frequency."""
        return list(hidden[:, SPECIAL:].unflatten(1, (-1, self.times)).mean(1))


def load_ast(path: str, revision: str | None = None, seed: int = 0) -> AstAudioEncoder:
    """Load an AST in float32 by folder or Hub name; a head for classes is left out.

    Raises:
        UserError: when there is no such folder or a tensor is missing.
    """
    folder = find_model_folder(path, revision)
    config = ASTConfig.from_pretrained(folder)
    config._attn_implementation = "sdpa"
    model = load_pretrained(ASTModel, folder, seed if path.startswith(RANDOM) else None, config)
    usual = {"num_mel_bins": config.num_mel_bins, "max_length": config.max_length}
    return AstAudioEncoder(model, ASTFeatureExtractor.from_dict(read_extractor_settings(folder) or usual))
