"""Probe scores from files, means against a loop, and which model is which."""

import copy

import pytest
from helpers.runs import folder_results, suite_results
from hypothesis import given
from hypothesis import strategies as st

from uniaudio.errors import UserError
from uniaudio.evaluate.probing.suite_table import Reference
from uniaudio.report.probe_scores import (
    Score,
    ScoreTable,
    assign_roles,
    find_disagreements,
    find_run_models,
    merge_tables,
    read_scores,
    rename_models,
)
from uniaudio.report.significance import compare_probes


def test_sets_without_a_domain_take_that_of_the_recipes():
    table = read_scores(folder_results(["digits", "esc10"], ["a", "b"]), "f.json", {"digits": "speech"})
    assert {name: task.domain for name, task in table.tasks.items()} == {"digits": "speech", "esc10": "other"}
    assert table.models == ["a", "b"]
    assert table.probes == ["linear", "mlp", "knn"]
    assert table.get("digits", "b", "linear").mean == pytest.approx(
        table.get("digits", "a", "linear").mean + 0.05
    )
    assert table.get("digits", "c", "linear") is None
    assert table.get("digits", None, "linear") is None


def test_a_suite_states_facts_of_its_sets():
    table = read_scores(suite_results(["digits", "esc10"], ["a"]), "f.json", {"digits": "music"})
    task = table.tasks["esc10"]
    assert (task.domain, task.weight, task.license, task.data) == ("sound", 2.0, "CC0-1.0", "cd" * 32)
    assert table.tasks["digits"].domain == "speech"


def test_uar_is_read_and_does_not_tell_scores_apart():
    plain = suite_results(["digits"], ["a"])
    with_uar = copy.deepcopy(plain)
    for score in with_uar["scores"]["digits"]["a"].values():
        score["metrics"] = {"uar": {"mean": 0.25, "std": 0.0}}
    older, newer = (read_scores(data, "f.json", {}) for data in (plain, with_uar))
    assert older.get("digits", "a", "linear").uar is None
    assert newer.get("digits", "a", "linear").uar == 0.25
    assert find_disagreements(older, newer) == []


def probed_otherwise(seed=0, **facts):
    return read_scores({**suite_results(["digits"], ["a", "b"], seed), **facts}, "f.json", {})


@pytest.mark.parametrize(
    ("facts", "probes"),
    [
        ({"whitened": True}, ["whitened linear", "whitened MLP", "whitened kNN"]),
        ({"protocol": "xares"}, ["xares linear", "xares MLP", "xares kNN"]),
    ],
)
def test_scores_of_whitened_embeddings_and_of_another_protocol_are_never_mixed_with_others(facts, probes):
    plain, other = probed_otherwise(whitened=False), probed_otherwise(1, **facts)
    assert (plain.probes, other.probes) == (["linear", "mlp", "knn"], probes)
    assert find_disagreements(plain, other) == find_disagreements(other, plain) == []
    for table in (merge_tables([plain, other]), merge_tables([other, plain])):
        assert table.probes == [*plain.probes, *probes]
        for model in ("a", "b"):
            assert table.get("digits", model, "knn") == plain.get("digits", model, "knn")
            assert table.get("digits", model, probes[2]) == other.get("digits", model, probes[2])
        changes = compare_probes(table, "a", "b")
        shown = [f"{probe} probe" for probe in ("linear", "MLP", "kNN", *probes)]
        assert [change.what for change in changes] == shown
        assert len({change.before for change in changes}) == 6
    assert find_disagreements(other, probed_otherwise(2, **facts)) == ["a", "b"]


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"set": {"model": {"linear": {"mean": 0.5, "std": 0.1}}}},
        {"scores": {}},
        {"tasks": {}, "scores": {"set": 3}},
        {"tasks": {}, "scores": {"set": {"model": {"linear": 0.5}}}},
        {"tasks": {}, "scores": {"set": {"m": {"linear": {}}}}},
    ],
)
def test_something_else_is_refused(data):
    with pytest.raises(UserError, match=r"f\.json.*uniaudio probe --out"):
        read_scores(data, "f.json", {})


@given(st.data())
def test_means_equal_a_loop(data):
    sets = [f"s{i}" for i in range(data.draw(st.integers(1, 6)))]
    results = suite_results(sets, ["a", "b"], data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        del results["scores"][sets[0]]["b"]
    averages = read_scores(results, "f", {}).compute_averages(["a", "b"], "knn")
    sums = {}
    for name in sets:
        if set(results["scores"][name]) == {"a", "b"}:
            facts = results["tasks"][name]
            for domain in (facts["domain"], "all sets"):
                for model in ("a", "b"):
                    sums_of_model = sums.setdefault(domain, {}).setdefault(model, [0.0, 0.0])
                    sums_of_model[0] += facts["weight"] * results["scores"][name][model]["knn"]["mean"]
                    sums_of_model[1] += facts["weight"]
    if len(sums) == 2:  # one domain alone is the mean of all
        sums = {"all sets": sums["all sets"]}
    assert set(averages) == set(sums)
    for domain, models in sums.items():
        for model, (total, weight) in models.items():
            assert averages[domain][model] == pytest.approx(total / weight)


def test_later_tables_win_and_disagreement_is_seen():
    first = ScoreTable({}, {"s": {"m": {"linear": Score(0.5, 0.1)}, "same": {"linear": Score(0.1, 0.0)}}})
    second = ScoreTable({}, {"s": {"m": {"linear": Score(0.6, 0.1)}, "same": {"linear": Score(0.1, 0.0)}}})
    assert merge_tables([first, second]).get("s", "m", "linear").mean == 0.6
    assert find_disagreements(first, second) == ["m"]
    assert rename_models(first, {"m": "n"}).models == ["n", "same"]


def test_a_run_is_known_by_its_folder_and_its_start_by_the_config(tmp_path):
    models = [
        f"random:{tmp_path}/w",
        f"{tmp_path}/w",
        str(tmp_path / "run" / "checkpoints" / "step-8"),
        "other",
    ]
    members = find_run_models(table_of(models), tmp_path / "run", no_match)
    assert members == [models[2]]
    roles = assign_roles(models, {"run": members}, {"run": [f"{tmp_path}/w"]})
    assert roles.runs == {"run": models[2]}
    assert roles.starts == {"run": models[1]}
    assert roles.others == [models[0], "other"]
    assert roles.columns == [models[1], models[2], models[0], "other"]
    assert roles.list_baselines(models[2]) == [models[1]]
    assert roles.list_baselines("other") == [models[1]]
    assert roles.list_baselines(models[1]) == []
    assert [roles.describe(model) for model in models] == ["", "", "", ""]


def table_of(models, **fingerprints):
    return ScoreTable({}, {"s": {model: {"knn": Score(0.5, 0.0)} for model in models}}, fingerprints)


def no_match(folder, fingerprints):
    return ()


def test_a_fingerprint_tells_which_model_is_the_runs_whatever_it_is_called(tmp_path):
    run = str(tmp_path / "run")

    def match(folder, fingerprints):
        assert folder == tmp_path / "run"
        return {"f1"} & set(fingerprints)

    table = table_of(["before", "after", run], before="f0", after="f1", **{run: "f2"})
    members = find_run_models(table, tmp_path / "run", match)
    assert members == ["after"]  # the model with the path of the run had other weights
    roles = assign_roles(table.models, {"run": members}, {})
    assert (roles.starts, roles.runs, roles.others) == ({"run": "before"}, {"run": "after"}, [run])


def test_a_run_without_its_trained_model_has_no_part_in_the_table(tmp_path):
    models = ["before", "after"]
    assert find_run_models(table_of(models), tmp_path, no_match) == []
    roles = assign_roles(models, {"run": []}, {})
    assert (roles.starts, roles.runs, roles.others) == ({}, {}, models)


def test_fingerprints_are_read_and_follow_a_model():
    table = read_scores(folder_results(["s"], ["a", "b"], fingerprints={"a": "f1"}), "f.json", {})
    assert (list(table.tasks), table.fingerprints) == (["s"], {"a": "f1"})
    assert merge_tables([table, rename_models(table, {"a": "c"})]).fingerprints == {"a": "f1", "c": "f1"}


def test_two_runs_have_a_start_each(tmp_path):
    models = ["w1", "w2", str(tmp_path / "a"), f"{tmp_path}/b:ema"]
    members = {name: find_run_models(table_of(models), tmp_path / name, no_match) for name in ("a", "b")}
    roles = assign_roles(models, members, {"a": ["w1"], "b": ["w2"]})
    assert roles.starts == {"a": "w1", "b": "w2"}
    assert roles.runs == {"a": models[2], "b": models[3]}
    assert roles.list_baselines(models[3]) == ["w2"]


def test_a_run_is_compared_with_its_encoder_at_its_best_first():
    models = ["w?pad_to=30", "w?tail_frames=5", "run", "other"]
    references = {"run": {"start": "w?tail_frames=5", "best": "w?pad_to=30"}}
    table = read_scores({**folder_results(["s"], models), "references": references}, "f.json", {})
    table = merge_tables([rename_models(table, {"run": "after", "w?pad_to=30": "padded"})])
    assert table.references == {"after": Reference("w?tail_frames=5", "padded")}
    roles = assign_roles(table.models, {"mine": ["after"]}, {"mine": ["w"]}, table.references)
    assert (roles.starts, roles.best) == ({"mine": "w?tail_frames=5"}, {"mine": "padded"})
    assert roles.columns == ["padded", "w?tail_frames=5", "after", "other"]
    assert roles.list_baselines("after") == ["padded", "w?tail_frames=5"]
    assert roles.list_baselines("other") == ["padded"]
    assert roles.list_baselines("padded") == roles.list_baselines("w?tail_frames=5") == []
    assert roles.describe("padded") == "untrained, at its best"
    assert roles.describe("w?tail_frames=5") == "untrained, with the run's settings"
    alike = {"run": Reference("w", "w")}  # trained with the silence that it knows
    roles = assign_roles(["w", "run"], {"mine": ["run"]}, {}, alike)
    assert (roles.starts, roles.best, roles.describe("w")) == ({"mine": "w"}, {}, "")
    with pytest.raises(UserError, match=r"f\.json: 'references' must hold start and best by run"):
        read_scores({"scores": {}, "tasks": {}, "references": {"run": "w"}}, "f.json", {})
