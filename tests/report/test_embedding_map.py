"""Maps: PCA against the singular values, groups that stay groups, and which sets have a map."""

from types import SimpleNamespace

import numpy as np
import pytest

from uniaudio.commands.report import map_embeddings
from uniaudio.data.recipe import load_recipe
from uniaudio.report.embedding_map import (
    LabelledClips,
    build_embedding_maps,
    is_closed,
    project_pca,
    project_tsne,
    scale_to_unit,
    select_clips,
)


def groups(count=3, each=20, width=16, seed=0):
    random = np.random.default_rng(seed)
    centres = 10 * random.standard_normal((count, width))
    vectors = np.concatenate([centre + random.standard_normal((each, width)) for centre in centres])
    return vectors.astype(np.float32), [f"g{i}" for i in range(count) for _ in range(each)]


def test_pca_equals_the_singular_value_decomposition():
    vectors, _ = groups()
    places, share = project_pca(vectors)
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(places), np.abs(left[:, :2] * values[:2]), rtol=1e-6, atol=1e-6)
    assert share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())


def test_tsne_keeps_neighbours_and_is_the_same_each_time():
    vectors, labels = groups()
    places = project_tsne(vectors)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(len(places))
    nearest = [labels[i] for i in distances.argmin(1)]
    assert sum(a == b for a, b in zip(nearest, labels, strict=True)) >= 0.95 * len(labels)
    np.testing.assert_array_equal(places, project_tsne(vectors))


def test_equal_vectors_have_a_map_too():
    clips = LabelledClips("set", [], ["a", "b"] * 5, [str(i) for i in range(10)])
    for drawn in build_embedding_maps("run", clips, np.ones((10, 4), np.float32)):
        assert all(np.isfinite([spot.x, spot.y]).all() for spot in drawn.spots)


def test_spots_are_within_the_map_and_keep_proportions():
    places = scale_to_unit(np.array([[0.0, 0.0], [4.0, 1.0], [2.0, 2.0]]))
    assert places.min() >= 0
    assert places.max() <= 1
    np.testing.assert_allclose(places, [[0.0, 0.25], [1.0, 0.5], [0.5, 0.75]])


def test_labels_and_ids_stay_with_their_clips():
    vectors, labels = groups(2, 6)
    clips = LabelledClips("set", [], labels, [f"id{i}" for i in range(12)])
    first, second = build_embedding_maps("run", clips, vectors)
    assert (first.title, second.title) == ("set, PCA, run", "set, t-SNE, run")
    assert [(first.labels[spot.label], spot.id) for spot in first.spots] == list(
        zip(labels, clips.ids, strict=True)
    )


def test_few_answers_are_labels_and_sentences_are_none():
    assert is_closed(["a", "b"] * 5)
    assert not is_closed(["a"] * 9)
    assert not is_closed([f"sentence {i}" for i in range(20)])
    assert not is_closed([f"{i % 30}" for i in range(120)])


def test_an_encoder_that_gives_no_numbers_is_noted(monkeypatch):
    clips = LabelledClips("set", [np.zeros(9, np.int16)] * 10, ["a", "b"] * 5, list(map(str, range(10))))
    vectors, _ = groups(2, 5)
    vectors[3, 1] = np.nan
    monkeypatch.setattr("uniaudio.commands.report.select_clips", lambda entries: [clips])
    monkeypatch.setattr("uniaudio.commands.report.load_encoder", lambda spec: None)
    monkeypatch.setattr("uniaudio.commands.report.embed_clips", lambda encoder, samples: vectors)
    notes = []
    run = SimpleNamespace(name="run", folder="run")
    assert map_embeddings([run], [], None, notes) == ([], {})
    assert notes == ["embedding map of run: its encoder gives NaN or infinite values for set"]


def test_a_closed_set_with_one_clip_a_question_is_mapped(tone_run):
    entry = load_recipe(str(tone_run.with_name("tone_recipe.yaml"))).evaluate[0]
    (clips,) = select_clips([entry, entry])  # the same set twice is one map
    assert clips.name == "tones:tone"
    assert sorted(set(clips.labels)) == ["high", "low"]
    assert len(clips.samples) == len(clips.ids) == 10
