"""The sentence and the lists: every case."""

from helpers.runs import folder_results

from uniaudio.report.probe_scores import read_scores
from uniaudio.report.significance import (
    Comparison,
    ScoreChange,
    TaskChange,
    compare_answer_sets,
    compare_probes,
    summarize_changes,
    summarize_loss,
)


def change(task, delta, verdict, what="linear probe"):
    return ScoreChange(task, what, 0.5, 0.5 + delta, Comparison(verdict, "spread", "margin"))


def test_measures_of_a_set_are_put_together():
    cases = {
        ("better", "unclear"): "better",
        ("worse", "worse"): "worse",
        ("better", "worse"): "mixed",
        ("unclear", "unclear"): "unclear",
    }
    for verdicts, expected in cases.items():
        assert TaskChange("t", tuple(change("t", 0.1, v) for v in verdicts)).verdict == expected


def test_the_sentence_names_few_and_counts_many():
    few = summarize_changes("run", "start", [change("esc10", 0.033, "better"), change("asr", -0.1, "worse")])
    assert few.sentence == (
        "Of 2 sets compared with start, run improved on esc10 (linear probe +0.033) and lost on asr "
        "(linear probe -0.100)."
    )
    many = summarize_changes("run", "start", [change(f"s{i}", 0.01 * i, "better") for i in range(1, 9)])
    assert (
        many.sentence
        == "Of 8 sets compared with start, run improved on 8 (most on s8, linear probe +0.080) and lost on none."
    )
    mixed = [
        change("a", 0.1, "better"),
        change("a", -0.2, "worse", "kNN probe"),
        change("b", 0.001, "unclear"),
    ]
    assert summarize_changes("run", "start", mixed).sentence == (
        "Of 2 sets compared with start, run improved on none and lost on none; measures disagree "
        "on a (kNN probe -0.200); 1 changed within chance."
    )
    none = summarize_changes("run", "start", [change("a", 0.001, "unclear")])
    assert none.sentence == "Compared with start, run changed nothing beyond chance on one set."


def test_lists_are_sorted_by_the_largest_change():
    summary = summarize_changes(
        "run", "start", [change("small", 0.1, "better"), change("large", 0.3, "better")]
    )
    assert [task.task for task in summary.tasks["better"]] == ["large", "small"]
    assert summary.comparisons == 2
    assert len(summary.rules) == 1


def test_probes_are_compared_with_the_start_of_the_run():
    table = read_scores(folder_results([f"s{i}" for i in range(6)], ["start", "trained", "third"]), "f", {})
    changes = compare_probes(table, "start", "trained")
    assert len(changes) == 18
    verdicts = {c.task: c.comparison.verdict for c in changes}
    assert verdicts == {
        "s0": "better",
        "s1": "unclear",
        "s2": "better",
        "s3": "unclear",
        "s4": "better",
        "s5": "worse",
    }
    assert compare_probes(table, "start", "nobody") == []


def test_answers_are_compared_where_sets_and_metrics_are_the_same():
    first = {"a": {"metric": "wer", "score": 0.5}, "b": {"metric": "accuracy", "score": 0.5}}
    second = {
        "a": {"metric": "cer", "score": 0.1},
        "b": {"metric": "accuracy", "score": 0.9},
        "c": {"metric": "wer"},
    }
    (changes,) = compare_answer_sets(first, second, {})
    assert (changes.task, changes.what, changes.delta) == ("b", "answers, accuracy", 0.4)


def test_without_scores_only_the_loss_is_reported():
    rows = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.5}]
    assert "from 4.000 to 1.500 over 3 steps, but no result compares it" in summarize_loss("run", rows)
    assert "run has no logged loss yet" in summarize_loss("run", [])


def test_losses_of_several_stages_are_not_compared():
    rows = [
        {"step": step, "loss": 10.0 - step, "stage": "one" if step < 4 else "two"} for step in range(1, 8)
    ]
    sentence = summarize_loss("run", rows, has_matrix=True)
    assert sentence == (
        "The loss of run in its last stage, two, went from 6.000 to 3.000 over steps 4 to 7; its "
        "scores after every stage are in the section Forgetting."
    )
    assert "no result compares it with its start" in summarize_loss("run", rows)
