"""Which wrong answers a page shows, under which heading."""

from uniaudio.report.wrong_answers import choose_wrong_answers


def results_of(*right):
    answers = [
        {"id": str(i), "reference": "a", "answer": "a" if is_right else "b", "right": is_right}
        for i, is_right in enumerate(right)
    ]
    return {"set": {"answers": answers}}


def test_twelve_wrong_answers_are_shown_at_equal_distances():
    chosen = choose_wrong_answers({"run": results_of(*[True] * 2, *[False] * 36)}, {}, None, [])
    assert [answer["id"] for answer, _ in chosen["set"].shown] == [str(2 + 3 * i) for i in range(12)]
    assert chosen["set"].count == 36


def test_all_of_a_few_are_shown_and_the_heading_names_one_of_several_runs():
    answers = {
        "first": results_of(False, True, False),
        "second": results_of(True),
        "third": results_of(False),
    }
    chosen = choose_wrong_answers(answers, {}, None, [])
    assert {heading: [a["id"] for a, _ in wrong.shown] for heading, wrong in chosen.items()} == {
        "first: set": ["0", "2"],
        "third: set": ["0"],
    }
