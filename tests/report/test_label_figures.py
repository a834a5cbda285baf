"""Figures of sets with labels: every cell by hand, and the bins that were stored."""

from uniaudio.report.label_figures import build_confusion_table, build_reliability


def confuse(pairs, names=()):
    answers = [{"reference": r, "answer": a} for r, a in pairs]
    return build_confusion_table("set", {"answers": answers, "labels": {"names": names} if names else None})


def test_confusion_counts_every_pair_and_puts_other_answers_together():
    table = confuse([("a", "a"), ("a", "b"), ("a", "x"), ("a", "y"), ("b", "b")])
    assert table.columns == ["a", "b", "(other)"]
    cells = {
        (row, c): cell for row, values in table.rows for c, cell in zip(table.columns, values, strict=True)
    }
    assert {key: cell.text for key, cell in cells.items()} == {
        ("a", "a"): "1",
        ("a", "b"): "1",
        ("a", "(other)"): "2",
        ("b", "a"): "",
        ("b", "b"): "1",
        ("b", "(other)"): "",
    }
    assert (cells["a", "(other)"].shade, cells["b", "b"].shade) == (0.5, 1.0)
    assert [key for key, cell in cells.items() if cell.framed] == [("a", "a"), ("b", "b")]


def test_a_closed_set_has_a_row_and_a_column_for_every_label():
    table = confuse([("a", "c"), ("a", "x")], ["a", "b", "c"])
    assert table.columns == ["a", "b", "c", "(other)"]
    assert [(row, [cell.text for cell in cells]) for row, cells in table.rows] == [
        ("a", ["", "", "1", "1"]),
        ("b", ["", "", "", ""]),
        ("c", ["", "", "", ""]),
    ]
    many = [str(i) for i in range(50)]
    assert len(confuse([("1", "2")], many).rows) == 50
    assert confuse([("1", "2")], list(map(str, range(61)))) is None
    assert confuse([], many) is None
    assert confuse([("1, 2", "2"), ("3", "3")], many).columns == [
        "1, 2",
        "3",
        "(other)",
    ]  # several right labels: the right answers as they are


def test_a_right_answer_in_other_letters_is_the_right_answer():
    answers = [
        {"reference": "dog", "answer": "Dog", "right": True},
        {"reference": "dog", "answer": "Cat", "right": False},
        {"reference": "cat", "answer": "dog", "right": True},  # one of several right answers
    ]
    table = build_confusion_table("set", {"answers": answers, "labels": {"names": ["dog", "cat"]}})
    assert table.columns == ["dog", "cat", "(other)"]
    assert [[cell.text for cell in cells] for _, cells in table.rows] == [["1", "", "1"], ["1", "", ""]]


def test_open_answers_and_one_answer_have_no_confusion_matrix():
    assert confuse([(str(i), "x") for i in range(25)]) is None
    assert confuse([("a", "x")] * 3) is None
    assert build_confusion_table("set", {}) is None
    assert confuse([("a", "a"), ("b", "a")]).columns == ["a", "b"]


def test_reliability_takes_the_stored_bins_without_the_empty_ones():
    bins = [
        {"low": 0.0, "high": 0.5, "count": 0, "confidence": 0.0, "accuracy": 0.0},
        {"low": 0.5, "high": 1.0, "count": 4, "confidence": 0.8, "accuracy": 0.5},
    ]
    diagram = build_reliability("set", {"labels": {"ece": 0.3, "bins": bins}})
    assert (len(diagram.bins), diagram.ece, diagram.count) == (1, 0.3, 4)
    assert build_reliability("set", {"labels": {"ece": 0.3, "bins": bins[:1]}}) is None
    assert build_reliability("set", {}) is None
