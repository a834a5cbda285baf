"""What reads the texts of retrieval tasks: a model of ``transformers`` and its tokenizer, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from uniaudio.errors import UserError
from uniaudio.model.encoders.weights import read_stock_config
from uniaudio.ragged import Ragged

BATCH = 64  # texts read at a time, of similar length


class TextModel:
    """A tokenizer and, when vectors are asked for, its model.

    Args:
        path: folder, or name on the Hub.

    Raises:
        UserError: when there is no such folder, or no tokenizer in it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
            raise UserError(f"text_model: there is no folder {path}")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError) as problem:
            raise UserError(
                f"text_model: {path} holds no tokenizer that can be read ({problem})"
            ) from problem

    def ids(self, texts: Sequence[str]) -> Ragged:
        """Return the token ids of texts, special tokens of the model included: ``[T_total]`` int64."""
        limit = min(self.tokenizer.model_max_length, 512)
        token_ids = self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        return Ragged.from_rows([torch.tensor(ids, dtype=torch.int64) for ids in token_ids])

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """Return the mean of the last hidden states over the tokens of each text: ``[T, D]`` float32.

        Raises:
            UserError: when the weights cannot be read.
        """
        try:
            model = AutoModel.from_pretrained(
                self.path, config=read_stock_config(self.path), trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError) as problem:
            raise UserError(f"text_model: {self.path} cannot be loaded ({problem})") from problem
        model = model.eval().float()
        ids = self.ids(texts)
        order = ids.lengths.argsort(stable=True)
        vectors: list[Tensor] = []
        for chosen in order.split(BATCH):
            part = ids.select(chosen)
            padded, mask = part.pad()  # what is padded with does not matter: it is masked
            states = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state
            vectors.extend((states * mask[..., None]).sum(1) / part.lengths[:, None])
        return torch.stack(vectors)[order.argsort()]
