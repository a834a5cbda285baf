"""Score matrices: every measure against a loop, known examples, holes, tables, the picture."""

import io
import json
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from rich.console import Console

from uniaudio.evaluate.forgetting import (
    ScoreMatrix,
    build_forgetting_table,
    build_summary_table,
    summarize_matrix,
)
from uniaudio.evaluate.heat_maps import draw_matrices


def example():
    """Two sets learned one after the other, one that is only watched, one with holes."""
    return ScoreMatrix(
        ("start", "speech", "music"),
        ("digits", "genres", "events", "pitch"),
        ((0.50, 0.40, 0.80, None), (0.90, 0.45, 0.85, 0.3), (0.82, 0.75, 0.70, None)),
        (1, 2, None, 2),
    )


def text(table, width=160):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@st.composite
def matrices(draw):
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    score = st.none() | st.floats(0, 1)
    scores = tuple(tuple(draw(score) for _ in range(columns)) for _ in range(rows))
    learned = tuple(draw(st.none() | st.integers(0, rows - 1)) for _ in range(columns))
    stages = ("start", *(f"stage {i}" for i in range(1, rows)))
    return ScoreMatrix(stages, tuple(f"set {j}" for j in range(columns)), scores, learned)


def looped(matrix):
    """The three equations, cell by cell."""
    R, S = matrix.scores, len(matrix.stages) - 1
    sums = {"accuracy": [0.0, 0], "backward": [0.0, 0], "forgetting": [0.0, 0]}

    def add(name, value):
        sums[name][0] += value
        sums[name][1] += 1

    for j in range(len(matrix.sets)):
        if R[S][j] is not None:
            add("accuracy", R[S][j])
        known = 0 if matrix.learned[j] is None else matrix.learned[j]
        if known < S and R[known][j] is not None and R[S][j] is not None:
            add("backward", R[S][j] - R[known][j])
            best = R[known][j]
            for i in range(known, S + 1):
                if R[i][j] is not None and R[i][j] > best:
                    best = R[i][j]
            add("forgetting", best - R[S][j])
    return {name: total / count if count else None for name, (total, count) in sums.items()}


@given(matrices())
def test_every_measure_equals_its_loop(matrix):
    summary, wanted = summarize_matrix(matrix), looped(matrix)
    assert summary.average_accuracy == pytest.approx(wanted["accuracy"])
    assert summary.backward_transfer == pytest.approx(wanted["backward"])
    assert summary.forgetting == pytest.approx(wanted["forgetting"])


@given(matrices())
def test_forgetting_is_at_least_the_loss_and_never_negative(matrix):
    summary = summarize_matrix(matrix)
    if summary.forgetting is not None:
        assert summary.forgetting >= 0
        assert summary.forgetting >= -summary.backward_transfer - 1e-12
    for scores in summary.per_set.values():
        assert scores["forgetting"] is None or scores["forgetting"] >= 0


@given(matrices())
def test_json_round_trip(matrix):
    assert ScoreMatrix.from_json(json.loads(json.dumps(matrix.to_json()))) == matrix


def test_the_example_by_hand():
    summary = summarize_matrix(example())
    assert summary.average_accuracy == pytest.approx((0.82 + 0.75 + 0.70) / 3)
    # digits 0.82 - 0.90, events (watched) 0.70 - 0.80; genres came last, pitch has no last score
    assert summary.backward_transfer == pytest.approx((-0.08 - 0.10) / 2)
    assert summary.forgetting == pytest.approx((0.08 + 0.15) / 2)  # events were best after speech
    assert summary.per_set["events"] == pytest.approx(
        {"start": 0.80, "final": 0.70, "best": 0.85, "change": -0.10, "forgetting": 0.15}
    )
    assert summary.per_set["pitch"] == {
        "start": None,
        "final": None,
        "best": 0.3,
        "change": None,
        "forgetting": None,
    }


def test_rows_before_a_set_was_learned_do_not_count_in_the_mean_forgetting():
    matrix = ScoreMatrix(("start", "a", "b"), ("x",), ((0.9,), (0.5,), (0.6,)), (1,))
    summary = summarize_matrix(matrix)
    assert summary.forgetting == 0.0
    assert summary.backward_transfer == pytest.approx(0.1)
    assert summary.per_set["x"]["forgetting"] == pytest.approx(0.3)


def test_a_set_without_a_score_when_it_was_learned_is_left_out():
    matrix = ScoreMatrix(("start", "a", "b"), ("x", "y"), ((0.1, 0.5), (None, 0.5), (0.6, 0.4)), (1, None))
    summary = summarize_matrix(matrix)
    assert summary.backward_transfer == pytest.approx(-0.1)
    assert summary.forgetting == pytest.approx(0.1)


def test_a_model_without_training_has_forgotten_nothing():
    summary = summarize_matrix(ScoreMatrix(("start",), ("x",), ((0.5,),), (None,)))
    assert summary.average_accuracy == 0.5
    assert (summary.backward_transfer, summary.forgetting) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ("a", "speech", "music")}, "first stage"),
        ({"stages": ()}, "first stage"),
        ({"stages": ("start", "speech", "speech")}, "stages .* twice"),
        ({"sets": ("x", "x", "y", "z")}, "sets .* twice"),
        ({"sets": ()}, "at least one set"),
        ({"scores": ((0.5,) * 4,) * 2}, "3 rows"),
        ({"scores": ((0.5,) * 4, (0.5,) * 4, (0.5,) * 3)}, r"of 4 \(sets\)"),
        ({"scores": ((0.5,) * 4, (0.5,) * 4, (0.5, float("nan"), 0.5, 0.5))}, "genres after music is nan"),
        ({"learned": (1, 2)}, "2 entries for 4 sets"),
        ({"learned": (1, 3, None, 2)}, "genres was learned in row 3"),
        ({"learned": (-1, 2, None, 2)}, "digits was learned in row -1"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ScoreMatrix.from_json(example().to_json() | change)


def test_json_without_a_part_is_refused():
    with pytest.raises(ValueError, match="no scores, learned"):
        ScoreMatrix.from_json({"stages": ["start"], "sets": ["x"]})


def test_the_matrix_table_tells_scores_and_changes():
    printed = text(build_forgetting_table("probe/linear", example()).lay_out())
    lines = {line.split()[1]: line for line in printed.splitlines() if line.startswith("│")}
    assert "0.500" in lines["start"]
    assert "(" not in lines["start"]
    assert "–" in lines["start"]
    assert "0.900 (+40.0)" in lines["speech"]
    assert "0.300 " in lines["speech"]  # no start, no change
    assert "0.700 (-10.0)" in lines["music"]
    assert printed.startswith("probe/linear")


def test_the_summary_table_has_one_row_a_matrix():
    empty = ScoreMatrix(("start",), ("x",), ((None,),), (None,))
    summaries = {
        "probe/linear": summarize_matrix(example()),
        "probe/knn": summarize_matrix(empty),
    }
    rows = [line.replace("│", " ").split() for line in text(build_summary_table(summaries)).splitlines()]
    assert ["probe/linear", "0.757", "-9.0", "11.5"] in rows
    assert ["probe/knn", "–", "–", "–"] in rows


def test_the_picture_is_written(tmp_path):
    small = ScoreMatrix(("start",), ("x",), ((None,),), (None,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_matrices({"probe/linear": example(), "probe/knn": small}, tmp_path / "new" / "forgetting.png")
        draw_matrices({"probe/knn": small}, tmp_path / "small.png")
    picture = imread(tmp_path / "new" / "forgetting.png")
    assert picture.shape[0] > 500
    assert picture.shape[1] > 700
    assert imread(tmp_path / "small.png").shape[1] > 700
    red, blue = picture[..., 0], picture[..., 2]
    assert (red - blue > 0.2).mean() > 0.02  # losses
    assert (blue - red > 0.2).mean() > 0.02  # gains
    with pytest.raises(ValueError, match="no score matrix"):
        draw_matrices({}, tmp_path / "none.png")
