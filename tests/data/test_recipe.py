import pytest
from helpers.files import write_tar

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError


def write(tone_run, name="mine", **content):
    path = tone_run.with_name(f"{name}.yaml")
    path.write_text(dump_yaml({"recipe": name, **content}))
    return str(path)


def card(tone_run, name, **content):
    """Write a card beside the recipes: the tones under another name."""
    data = {"dataset": name, "load": {"jsonl": "tones"}, "license": "CC0-1.0", "splits": {"train": {}}}
    tone_run.with_name(f"{name}.yaml").write_text(dump_yaml({**data, **content}))


LINE = {"dataset": "tones", "template": "tone"}


def test_weights_and_replay_become_shares(tone_run):
    write(tone_run, "old", train=[{**LINE, "split": "test"}])
    path = write(tone_run, train=[{**LINE, "weight": 3}], replay=[{"recipe": "old", "share": 0.25}])
    recipe = load_recipe(path)
    assert [(entry.name, entry.split) for entry in recipe.train] == [
        ("tones:tone", "train"),
        ("tones:tone:test", "test"),
    ]
    assert recipe.compute_train_shares() == pytest.approx([0.75, 0.25])


def test_a_replayed_pairing_counts_once(tone_run):
    write(tone_run, "old", train=[LINE])
    recipe = load_recipe(write(tone_run, train=[LINE], replay=[{"recipe": "old", "share": 0.25}]))
    assert recipe.compute_train_shares() == pytest.approx([1.0])


def write_older_project(tone_run, keep="split == 'train'"):
    """A recipe in a folder with its own card and template of the same names; return a replay of it."""
    folder = tone_run.parent / "older"
    folder.mkdir()
    template, text = ((tone_run.parent / name).read_text() for name in ("tone.yaml", "tones.yaml"))
    text = text.replace("jsonl: tones", f"jsonl: {tone_run.parent / 'tones'}")
    (folder / "tone.yaml").write_text(template)
    (folder / "tones.yaml").write_text(text.replace("keep: split == 'train'", f"keep: {keep}"))
    (folder / "before.yaml").write_text(dump_yaml({"recipe": "before", "train": [LINE]}))
    return [{"recipe": str(folder / "before.yaml"), "share": 0.25}]


def test_a_copy_of_a_pairing_counts_once_and_another_question_of_its_name_apart(tone_run):
    replay = write_older_project(tone_run)
    assert load_recipe(write(tone_run, train=[LINE], replay=replay)).compute_train_shares() == [1]
    older = tone_run.parent / "older" / "tone.yaml"
    older.write_text(older.read_text().replace("Which tone is it?", "High or low?"))
    new, old = load_recipe(write(tone_run, train=[LINE], replay=replay)).train
    assert [(e.templates[0].prompts[0].source[1:], e.share) for e in (new, old)] == [
        ("Which tone is it?", 0.75),
        ("High or low?", 0.25),
    ]


def test_different_datasets_of_one_name_are_refused(tone_run):
    replay = write_older_project(tone_run, keep="split != 'test'")
    with pytest.raises(
        UserError, match=r"mine\.yaml: draws from two datasets called tones \(.*older/tones\.yaml"
    ):
        load_recipe(write(tone_run, train=[LINE], replay=replay))


def test_a_replayed_pairing_keeps_its_augmentation(tone_run):
    gain, speed = [{"gain": {"db": [3, 6]}}], [{"speed": {"factor": [0.9, 1.1]}}]
    write(tone_run, "old", train=[{**LINE, "augment": gain}])
    replay = [{"recipe": "old", "share": 0.25}]
    same = load_recipe(write(tone_run, "same", train=[{**LINE, "augment": gain}], replay=replay))
    assert same.compute_train_shares() == pytest.approx([1.0])
    other = load_recipe(write(tone_run, train=[{**LINE, "augment": speed}], replay=replay))
    assert other.compute_train_shares() == pytest.approx([0.75, 0.25])
    assert [entry.augmenter.steps[0].gain is not None for entry in other.train] == [False, True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [{**LINE, "dataset": "toness"}]}, "there is no dataset 'toness' (did you mean 'tones'?)"),
        ({"train": [{**LINE, "template": "tonne"}]}, "there is no template 'tonne' (did you mean 'tone'?)"),
        (
            {"train": [{**LINE, "split": "tests"}]},
            "no split 'tests' (did you mean 'test'?); splits: train, test",
        ),
        ({"train": [{**LINE, "constants": {"lable": 1}}]}, "has no input 'lable' (did you mean 'label'?)"),
        ({"train": [LINE], "replay": [{"recipe": "mine", "share": 0.1}]}, "replay each other in a cycle"),
        ({"train": [LINE], "mix": {"by": "hours"}}, "mix by hours needs `hours` in the card of tones"),
        ({"train": []}, "train"),
        ({"train": [LINE, LINE]}, "tones with tone on split train is already in train[0]"),
        (
            {"train": [LINE], "evaluate": [{**LINE, "split": "test"}] * 2},
            "evaluate[1]: tones with tone on split",
        ),
        (  # the same files under other names
            {
                "train": [LINE],
                "evaluate": [LINE, {"dataset": "tones.yaml", "template": "tone.yaml", "split": "test"}],
            },
            "evaluate[1]: tones.yaml with tone.yaml on split test is already in evaluate[0]",
        ),
        (
            {"train": [LINE], "replay": [{"recipe": "mine", "share": 1.5}]},
            "replay.0.share: input should be less",
        ),
        ({"train": [{**LINE, "weight": 0}]}, "train.0.weight: input should be greater than 0"),
        ({"train": [{**LINE, "wieght": 1}]}, "train.0.wieght: unknown key (did you mean 'weight'?)"),
        (
            {"train": [{**LINE, "dataset": "pairs"}]},
            "asks about 1 clip(s), but dataset pairs has 2 audio column(s)",
        ),
    ],
)
def test_mistakes_are_found_before_any_data(tone_run, content, message):
    card(tone_run, "pairs", audio=["first", "second"])
    with pytest.raises(UserError) as mistake:
        load_recipe(write(tone_run, **content))
    assert message in str(mistake.value)


def test_a_replayed_recipe_replays_its_replays(tone_run):
    card(tone_run, "first")
    card(tone_run, "second")
    write(tone_run, "oldest", train=[{**LINE, "dataset": "first"}])
    replay = [{"recipe": "oldest", "share": 0.5}]
    write(tone_run, "old", train=[{**LINE, "dataset": "second"}], replay=replay)
    recipe = load_recipe(write(tone_run, train=[LINE], replay=[{"recipe": "old", "share": 0.4}]))
    shares = {entry.dataset.name: entry.share for entry in recipe.train}
    assert shares == pytest.approx({"tones": 0.6, "second": 0.2, "first": 0.2})


def test_mixing_by_hours_is_evened_out_by_the_temperature(tone_run):
    card(tone_run, "small", hours=1)
    card(tone_run, "large", hours=16)
    lines = [{**LINE, "dataset": "small"}, {**LINE, "dataset": "large"}]
    plain = load_recipe(write(tone_run, train=lines, mix={"by": "hours"}))
    assert plain.compute_train_shares() == pytest.approx([1 / 17, 16 / 17])
    even = load_recipe(write(tone_run, train=lines, mix={"by": "hours", "temperature": 4}))
    assert even.compute_train_shares() == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize(("weight", "temperature"), [(1e5, 0.01), (1e-5, 0.01), (float("inf"), 1)])
def test_weights_beyond_what_a_number_can_hold_are_refused(tone_run, weight, temperature):
    path = write(tone_run, train=[{**LINE, "weight": weight}], mix={"temperature": temperature})
    with pytest.raises(UserError, match=r"mine\.yaml: .*weight"):
        load_recipe(path)


def test_a_recipe_inherits_and_takes_constants(tone_run):
    write(tone_run, "parent", train=[LINE], evaluate=[{**LINE, "max_examples": 3}])
    child = write(tone_run, base="parent.yaml", train=[{**LINE, "constants": {"label": "low"}}])
    recipe = load_recipe(child)
    assert dict(recipe.train[0].constants) == {"label": "low"}
    assert [(entry.name, entry.max_examples) for entry in recipe.evaluate] == [("tones:tone", 3)]
    assert recipe.list_tasks() == ("tone",)


def test_two_splits_of_one_dataset_have_different_names(tone_run):
    lines = [{**LINE, "split": "test"}, {**LINE, "split": "train"}]
    recipe = load_recipe(write(tone_run, train=[LINE], evaluate=lines))
    assert [entry.name for entry in recipe.evaluate] == ["tones:tone", "tones:tone:train"]


def test_a_mistake_in_a_card_names_recipe_line_and_card(tone_run):
    card(tone_run, "broken", lisence="x")
    with pytest.raises(UserError, match=r"mine\.yaml: train\[0\]: .*broken\.yaml: lisence: unknown key"):
        load_recipe(write(tone_run, train=[{**LINE, "dataset": "broken"}]))


def test_weights_by_rows_with_a_temperature(tone_run):
    card(tone_run, "all_tones")
    lines = [
        LINE,
        {"dataset": "all_tones", "template": "tone", "weight": 2},
    ]  # 30 rows, and 40 with twice the weight
    plain = load_recipe(write(tone_run, train=lines, mix={"by": "rows"}))
    assert plain.compute_train_shares() == pytest.approx([30 / 110, 80 / 110])
    flat = load_recipe(write(tone_run, "flat", train=lines, mix={"by": "rows", "temperature": 5}))
    first, second = 30**0.2, 2 * 40**0.2
    assert flat.compute_train_shares() == pytest.approx([first / (first + second), second / (first + second)])


def test_rows_that_nobody_can_count_are_stated_on_the_card(tone_run, tmp_path):
    write_tar(tmp_path / "far.tar", range(3))
    card(tone_run, "far", load={"webdataset": "far.tar"})
    line = {"dataset": "far", "template": "tone"}
    with pytest.raises(UserError, match=r"mix by rows needs `splits\.train\.rows` in the card of far"):
        load_recipe(write(tone_run, train=[LINE, line], mix={"by": "rows"}))
    card(tone_run, "far", load={"webdataset": "far.tar"}, splits={"train": {"rows": 90}})
    recipe = load_recipe(write(tone_run, train=[LINE, line], mix={"by": "rows"}))
    assert recipe.compute_train_shares() == pytest.approx([0.25, 0.75])


def test_augmentation_and_conditions_are_read_and_checked(tone_run):
    content = {
        "train": [{**LINE, "augment": [{"gain": {"db": [-3, 3]}}]}],
        "evaluate": [{**LINE, "split": "test"}, {**LINE, "split": "test", "condition": "telephone"}],
    }
    recipe = load_recipe(write(tone_run, **content))
    assert recipe.train[0].augmenter.steps[0].gain.db == (-3, 3)
    assert [entry.name for entry in recipe.evaluate] == ["tones:tone", "tones:tone@telephone"]
    content["evaluate"][1]["condition"] = "telefone"
    with pytest.raises(UserError, match=r"there is no 'telefone' \(did you mean 'telephone'\?\)"):
        load_recipe(write(tone_run, **content))
    with pytest.raises(UserError, match=r"train\.0\.augment\.0.*(did you mean 'gain'\?)"):
        load_recipe(write(tone_run, train=[{**LINE, "augment": [{"gian": {"db": [-3, 3]}}]}]))
