import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniaudio.evaluate.probing.suite_averages import TaskWeight, average_scores, average_with_weights

STANDINGS = {
    "digits": TaskWeight(300, "speech"),
    "emotion": TaskWeight(100, "speech", private=True),
    "sounds": TaskWeight(400, "sound"),
}


def scored(**means):
    return {task: {"m": {"linear": {"mean": mean, "std": 0.0}}} for task, mean in means.items()}


def test_the_average_is_weighted_over_all_and_by_domain():
    averages = average_scores(scored(digits=0.9, emotion=0.5, sounds=0.2), STANDINGS)
    linear = averages["m"]["linear"]
    assert linear["all"] == pytest.approx((300 * 0.9 + 100 * 0.5 + 400 * 0.2) / 800)
    assert linear["speech"] == pytest.approx((300 * 0.9 + 100 * 0.5) / 400)
    assert linear["sound"] == pytest.approx(0.2)
    assert "music" not in linear


def test_public_is_what_is_not_private():
    before = average_scores(scored(digits=0.9, emotion=0.5, sounds=0.2), STANDINGS)["m"]["linear"]["public"]
    after = average_scores(scored(digits=0.9, emotion=1.0, sounds=0.2), STANDINGS)["m"]["linear"]["public"]
    assert before == after == pytest.approx((300 * 0.9 + 400 * 0.2) / 700)
    public = {name: TaskWeight(standing.weight, standing.domain) for name, standing in STANDINGS.items()}
    assert "public" not in average_scores(scored(digits=0.9, emotion=0.5), public)["m"]["linear"]


def test_unseen_sets_are_averaged_apart():
    weights = {"digits": TaskWeight(1, "speech"), "sounds": TaskWeight(3, "sound", unseen=True)}
    linear = average_scores(scored(digits=0.9, sounds=0.2), weights)["m"]["linear"]
    assert (linear["trained"], linear["unseen"]) == (0.9, pytest.approx(0.2))
    assert "unseen" not in average_scores(scored(digits=0.9, emotion=0.5), STANDINGS)["m"]["linear"]


def test_a_probe_is_averaged_over_the_tasks_that_have_it():
    scores = scored(digits=0.9, sounds=0.2)
    scores["digits"]["m"]["knn"] = {"mean": 0.4, "std": 0.0}
    assert average_scores(scores, STANDINGS)["m"]["knn"] == {"all": 0.4, "speech": 0.4, "public": 0.4}


def test_a_model_without_scores_of_a_task_has_no_averages():
    scores = scored(digits=0.9, sounds=0.2)
    scores["digits"]["other"] = {"linear": {"mean": 0.8, "std": 0.0}}
    assert average_scores(scores, STANDINGS) == average_scores(scored(digits=0.9, sounds=0.2), STANDINGS)


def test_scores_outside_of_zero_to_one_are_refused():
    with pytest.raises(ValueError, match="must lie in"):
        average_with_weights([-0.1], [1])
    with pytest.raises(ValueError, match="no scores"):
        average_with_weights([], [])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 1e4)), min_size=1, max_size=20))
def test_the_average_is_bounded_by_the_scores_and_ignores_the_scale_of_weights(pairs):
    scores, weights = zip(*pairs, strict=True)
    average = average_with_weights(scores, weights)
    assert min(scores) - 1e-9 <= average <= max(scores) + 1e-9
    assert average == pytest.approx(
        average_with_weights(scores, [7 * weight for weight in weights]), abs=1e-9
    )
