"""Retrieval probes: which of all texts belongs to a clip, and the other way; a frozen text model reads the texts."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.evaluate.probing.class_scores import ProbeScores
from uniaudio.evaluate.probing.task_embeddings import Embedded, Protocol
from uniaudio.evaluate.probing.task_rows import Indices, TaskRows
from uniaudio.evaluate.probing.whitened_embeddings import Whitening
from uniaudio.evaluate.probing.xares import score_over_seeds, train_sgd_probe
from uniaudio.model.model_files import read_stock_config
from uniaudio.ragged import Ragged

TEMPERATURE = 0.07  # at the start; learned
WIDTH = 256  # of the space in which ours compares
XARES_WIDTH = 1024  # of everything in X-ARES's
BATCH = 64  # texts read at a time, of similar length


class TextModel:
    """A tokenizer and, where texts become vectors, its model.

    Args:
        path: folder, or name on the Hub. has_weights: whether ``vectors`` is needed.

    Raises:
        UserError: when there is no such folder, tokenizer or weights cannot be read, or the model needs more than text.
    """

    def __init__(self, path: str, has_weights: bool = True) -> None:
        self.path = path
        if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
            raise UserError(f"text_model: there is no folder {path}")
        with convert_to_user_error(f"text_model: {path} holds no tokenizer that can be read"):
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self.known: dict[tuple[str, ...], Tensor] = {}  # the vectors of the texts of every task
        if has_weights:
            self.model = load_text_weights(path)
            self.vectors(["a"])  # what it cannot do shows before any clip is read

    def ids(self, texts: Sequence[str]) -> Ragged:
        """Return the token ids of texts, special tokens of the model included: ``[T_total]`` int64."""
        limit = min(self.tokenizer.model_max_length, 512)
        token_ids = self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        return Ragged.from_rows([torch.tensor(ids, dtype=torch.int64) for ids in token_ids])

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """Return the mean of the last hidden states over the tokens of each text: ``[T, D]`` float32.

        They are computed once: every model, and every layer of it, is probed with the same.

        Raises:
            UserError: when the model needs more than text.
        """
        key = tuple(texts)
        if key not in self.known:
            with convert_to_user_error(
                f"text_model: {self.path} cannot encode texts", "name an encoder of text, such as BERT"
            ):
                self.known[key] = self.encode(texts)
        return self.known[key]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Compute what ``vectors`` returns."""
        ids = self.ids(texts)
        order = ids.lengths.argsort(stable=True)
        vectors: list[Tensor] = []
        for chosen in order.split(BATCH):
            part = ids.select(chosen)
            padded, mask = part.pad()  # what is padded with does not matter: it is masked
            states = self.model(input_ids=padded, attention_mask=mask.long()).last_hidden_state
            vectors.extend((states * mask[..., None]).sum(1) / part.lengths[:, None])
        return torch.stack(vectors)[order.argsort()]


def load_text_weights(path: str) -> nn.Module:
    """Return a frozen text model in float32.

    Raises:
        UserError: when the weights cannot be read, or some that the last hidden states need are missing.
    """
    with convert_to_user_error(f"text_model: {path} cannot be loaded"):
        model, report = AutoModel.from_pretrained(
            path,
            config=read_stock_config(path),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    # the pooler, which many checkpoints lack, stands behind the hidden states
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(f"text_model: {path} lacks weights of {type(model).__name__}, such as {missing[0]}")
    frozen: nn.Module = model.eval().float()
    return frozen


class Pairing(nn.Module):
    """Two towers into one space and a learned scale; texts are given by their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    @abstractmethod
    def audio(self, x: Tensor) -> Tensor:
        """Embeddings ``[N, E]`` to ``[N, W]``."""

    @abstractmethod
    def text(self, numbers: Tensor) -> Tensor:
        """Numbers of texts ``[N]`` to ``[N, W]``."""

    def loss(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Return the mean of the two cross-entropies, clips over texts and texts over clips; pairs lie side by side."""
        return compute_pair_loss(self.audio(x), self.text(numbers), self.scale)


def compute_pair_loss(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss of N pairs ``[N, W]``: ``CE(e^scale a t^T)`` along both axes, halved."""
    similarity = scale.exp() * audio @ text.T
    pairs = torch.arange(len(audio))
    return (F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)) / 2


class LinearPairing(Pairing):
    """Ours: LayerNorm and Linear on either side, unit length; texts are vectors of a frozen text model ``[T, D]``."""

    def __init__(self, width: int, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = vectors
        self.audio_side = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, WIDTH))
        self.text_side = nn.Sequential(nn.LayerNorm(vectors.shape[1]), nn.Linear(vectors.shape[1], WIDTH))

    def audio(self, x: Tensor) -> Tensor:
        return F.normalize(self.audio_side(x), dim=-1)

    def text(self, numbers: Tensor) -> Tensor:
        return F.normalize(self.text_side(self.vectors[numbers]), dim=-1)


class XaresPairing(Pairing):
    """X-ARES's: MLPs on either side, texts as token vectors learned from nothing, not normalised in training.

    Its text model lends the tokenizer alone. Tokens go through the MLP one by one, and their mean is the text. Two
    small terms, ``mean|z| / |Z|`` with the norm over the whole batch, are added to the loss.
    """

    def __init__(self, width: int, tokens: Ragged, vocabulary: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.audio_side = nn.Sequential(nn.LayerNorm(width), *build_two_layers(width))
        self.table = nn.Embedding(vocabulary, XARES_WIDTH)
        self.text_side = build_two_layers(XARES_WIDTH)

    def audio(self, x: Tensor) -> Tensor:
        return self.audio_side(x)

    def text(self, numbers: Tensor) -> Tensor:
        tokens = self.tokens.select(numbers)
        return tokens.with_values(self.text_side(self.table(tokens.values))).mean()

    def loss(self, x: Tensor, numbers: Tensor) -> Tensor:
        audio, text = self.audio(x), self.text(numbers)
        small = sum(
            (side.abs().mean() / side.square().sum().sqrt() for side in (audio, text)), audio.new_zeros(())
        )
        return compute_pair_loss(audio, text, self.scale) + small


def build_two_layers(width: int) -> nn.Sequential:
    """Linear, GELU, Linear to X-ARES's width."""
    return nn.Sequential(nn.Linear(width, XARES_WIDTH), nn.GELU(), nn.Linear(XARES_WIDTH, XARES_WIDTH))


def score_ranking(audio: Tensor, text: Tensor, owner: Tensor, k: int) -> float:
    """Return the mean of two shares: clips with a text of theirs among the k most similar, texts with their clip there.

    Texts that are as similar to a clip as its own are taken for the same text. Of clips that are as similar to a text
    as its own, any may come first: the text counts with the probability that its own is among the k.

    Args:
        audio: ``[C, W]``. text: ``[T, W]``. owner: ``[T]`` int64, the clip of each text; every clip has one.
    """
    similarity = F.normalize(audio, dim=1) @ F.normalize(text, dim=1).T  # [C, T]
    is_pair = owner == torch.arange(len(audio))[:, None]
    best = similarity.masked_fill(~is_pair, -torch.inf).amax(1)  # the best of a clip's own texts
    clips = ((similarity > best[:, None]).sum(1) < k).double().mean()
    right = similarity[owner, torch.arange(len(text))]
    above, equal = (similarity > right).sum(0), (similarity == right).sum(0)
    texts = ((k - above) / equal).clamp(0, 1).double().mean()
    return float((clips + texts) / 2)


class RetrievalTask:
    """The pairs of one task: texts one after another, each with the clip it belongs to."""

    def __init__(self, rows: TaskRows, embedded: Embedded, reader: TextModel, protocol: Protocol) -> None:
        self.rows, self.x, self.protocol = rows, embedded.values, protocol
        self.piece_row = embedded.owner
        self.texts = [text for texts in rows.answers for text in texts]
        self.clip_of = torch.repeat_interleave(torch.tensor([len(texts) for texts in rows.answers]))
        self.vocabulary = len(reader.tokenizer)
        self.read = reader.ids(self.texts) if protocol == "xares" else reader.vectors(self.texts)

    def whiten(self, whitening: Whitening) -> RetrievalTask:
        """Return the task with whitened embeddings of clips; the vectors of texts stay as they are."""
        whitened = copy(self)
        whitened.x = whitening.apply(self.x)
        return whitened

    def pairing(self) -> Pairing:
        """Return an untrained probe; its weights come from torch's own generator."""
        width = self.x.shape[1]
        if isinstance(self.read, Ragged):
            return XaresPairing(width, self.read, self.vocabulary)
        return LinearPairing(width, self.read)

    def pairs(self, rows: Indices) -> tuple[Tensor, Tensor]:
        """Return the pieces ``[P]`` and texts ``[P]`` of some rows, every text with every piece of its clip."""
        wanted = np.isin(self.clip_of.numpy(), rows)
        texts = torch.from_numpy(np.flatnonzero(wanted))
        first = torch.searchsorted(self.piece_row, self.clip_of[texts])
        counts = torch.searchsorted(self.piece_row, self.clip_of[texts], right=True) - first
        return Ragged.index_slices(first, counts), torch.repeat_interleave(texts, counts)

    @torch.no_grad()
    def score(self, probe: Pairing, rows: Indices, k: int = 1) -> float:
        """Return recall@k among some rows; a clip of several pieces is its first."""
        first = torch.searchsorted(self.piece_row, torch.from_numpy(np.sort(rows)))
        numbers = torch.from_numpy(np.flatnonzero(np.isin(self.clip_of.numpy(), rows)))
        owner = torch.searchsorted(self.piece_row[first], self.clip_of[numbers])
        return score_ranking(probe.audio(self.x[first]), probe.text(numbers), owner, k)


def score_retrieval(
    rows: TaskRows,
    embedded: Embedded,
    reader: TextModel,
    protocol: Protocol,
    seeds: int,
    whitenings: Sequence[Whitening] | None = None,
) -> ProbeScores:
    """Train the pairing and return recall@1, the mean over folds: ``{"linear": {"mean", "std"}}``, std over seeds.

    Args:
        whitenings: what is done to the embeddings of clips in every trial; None: nothing.
    """
    data = RetrievalTask(rows, embedded, reader, protocol)
    trials = [data] * len(rows.trials)
    if whitenings is not None:
        trials = [data.whiten(whitening) for whitening in whitenings]
    return score_over_seeds(lambda number: score_retrieval_trial(trials[number], number), len(trials), seeds)


def score_retrieval_trial(data: RetrievalTask, number: int) -> dict[str, float]:
    """Train and test the probe of one trial; random numbers come from torch's own generator."""
    trial, task = data.rows.trials[number], data.rows.task
    probe = data.pairing()
    pieces, texts = data.pairs(trial.train)
    chooses = trial.test if trial.valid is None else trial.valid
    train_sgd_probe(
        probe,
        len(pieces),
        task.epochs,
        task.batch,
        lambda pairs: probe.loss(data.x[pieces[pairs]], texts[pairs]),
        (lambda: data.score(probe, chooses)) if data.protocol == "xares" else None,
    )
    return {task.score_metric: data.score(probe, trial.test)}
