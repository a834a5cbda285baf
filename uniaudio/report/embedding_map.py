"""The embeddings of test clips in two dimensions: PCA, and t-SNE for neighbourhoods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from uniaudio.data.recipe_entries import EvalEntry
from uniaudio.report.clip_players import spread_examples

MOST_CLIPS = 400  # of all sets of a page together
MOST_SETS = 3
MOST_SECONDS = 30.0  # longer clips are left out of the map
MOST_LABELS = 24  # signs that can be distinguished
FEWEST = 8  # clips of a map
PERPLEXITY = 30.0


@dataclass(frozen=True)
class LabelledClips:
    """Test clips of one set: ``[S]`` int16 at 16 kHz each, with label and id."""

    name: str
    samples: Sequence[NDArray[np.int16]]
    labels: Sequence[str]
    ids: Sequence[str]


@dataclass(frozen=True)
class Spot:
    """A clip on a map; x and y are within 0 and 1, ``label`` is its index among the labels."""

    x: float
    y: float
    label: int
    id: str


@dataclass(frozen=True)
class EmbeddingMap:
    """One set under one method, as one run's encoder hears it."""

    title: str
    note: str
    labels: Sequence[str]
    spots: Sequence[Spot]


def select_clips(entries: Sequence[EvalEntry]) -> list[LabelledClips]:
    """Read test clips of the first few evaluation sets with one clip a question and few different answers.

    Raises:
        UserError: when a source cannot be opened.
    """
    sets: list[LabelledClips] = []
    seen: set[str] = set()
    for entry in entries:
        if len(sets) == MOST_SETS:
            break
        if entry.condition is not None or entry.template.num_clips != 1 or entry.name in seen:
            continue
        seen.add(entry.name)
        pairs = list(spread_examples(entry, MOST_CLIPS // MOST_SETS, MOST_SECONDS))
        labels = [answer for _, answer in pairs]
        if len(pairs) >= FEWEST and is_closed(labels):
            clips = [example.clips[0] for example, _ in pairs]
            sets.append(LabelledClips(entry.name, clips, labels, [example.id for example, _ in pairs]))
    return sets


def is_closed(labels: Sequence[str]) -> bool:
    """Return whether answers are labels: a few different ones, most of them more than once."""
    counts = Counter(labels)
    repeated = sum(count for count in counts.values() if count > 1)
    return 2 <= len(counts) <= MOST_LABELS and repeated >= 0.8 * len(labels)


def build_embedding_maps(run: str, clips: LabelledClips, vectors: NDArray[np.float32]) -> list[EmbeddingMap]:
    """Lay out the clips of a set by PCA and by t-SNE.

    Args:
        run: whose encoder made the vectors. vectors: ``[C, E]``, one a clip.
    """
    labels = sorted(set(clips.labels))
    principal, explained = project_pca(vectors)
    projections = [
        ("PCA", f"the two axes explain {explained:.0%} of the variance", principal),
        ("t-SNE", "distances between groups have little meaning", project_tsne(vectors)),
    ]
    return [
        EmbeddingMap(
            f"{clips.name}, {method}, {run}",
            note,
            labels,
            [
                Spot(float(x), float(y), labels.index(label), name)
                for (x, y), label, name in zip(scale_to_unit(places), clips.labels, clips.ids, strict=True)
            ],
        )
        for method, note, places in projections
    ]


def project_pca(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Return ``[C, 2]``, the first two principal components, and the share of the variance that they hold."""
    if not vectors.std(axis=0).any():  # equal vectors have no axes
        return np.zeros((len(vectors), 2)), 0.0
    pca = PCA(n_components=2, svd_solver="full")
    places = pca.fit_transform(vectors.astype(np.float64))
    return places, float(pca.explained_variance_ratio_.sum())


def project_tsne(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ``[C, 2]`` by t-SNE (van der Maaten & Hinton 2008) from the principal components, with a fixed seed.

    Every dimension is brought to unit variance first, so that one large dimension does not decide alone.
    """
    spread = vectors.std(axis=0)
    even = (vectors - vectors.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    # without any variance there are no principal components to begin with
    start = "pca" if spread.any() else "random"
    return TSNE(n_components=2, perplexity=perplexity, init=start, random_state=0).fit_transform(even)


def scale_to_unit(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring ``[C, 2]`` into 0 to 1 with one scale for both axes, so that distances stay comparable."""
    low, high = places.min(axis=0), places.max(axis=0)
    span = max(float((high - low).max()), 1e-12)
    return (places - (low + high) / 2) / span + 0.5
