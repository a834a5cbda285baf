import pytest

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.card import load_card
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import RowError, UserError


def write(tone_run, name="mine", **content):
    path = tone_run.with_name(f"{name}.yaml")
    path.write_text(dump_yaml({"recipe": name, **content}))
    return str(path)


LINE = {"dataset": "tones", "template": "tone"}


def test_weights_and_replay_become_shares(tone_run):
    write(tone_run, "old", train=[{**LINE, "split": "test"}])
    path = write(tone_run, train=[{**LINE, "weight": 3}], replay=[{"recipe": "old", "share": 0.25}])
    recipe = load_recipe(path)
    assert [(entry.name, entry.split) for entry in recipe.train] == [("tones:tone", "train"), ("tones:tone", "test")]
    assert recipe.train_shares() == pytest.approx([0.75, 0.25])


def test_a_replayed_pairing_is_counted_once(tone_run):
    write(tone_run, "old", train=[LINE])
    recipe = load_recipe(write(tone_run, train=[LINE], replay=[{"recipe": "old", "share": 0.25}]))
    assert recipe.train_shares() == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [{**LINE, "dataset": "toness"}]}, "there is no dataset 'toness' (did you mean 'tones'?)"),
        ({"train": [{**LINE, "template": "tonne"}]}, "there is no template 'tonne' (did you mean 'tone'?)"),
        ({"train": [{**LINE, "split": "tests"}]}, "no split 'tests' (did you mean 'test'?); splits: train, test"),
        ({"train": [{**LINE, "constants": {"lable": 1}}]}, "has no input 'lable' (did you mean 'label'?)"),
        ({"train": [LINE], "replay": [{"recipe": "mine", "share": 0.1}]}, "replay each other in a circle"),
        ({"train": [LINE], "mix": {"by": "hours"}}, "mix by hours needs `hours` on the card of tones"),
        ({"train": []}, "train"),
    ],
)
def test_mistakes_are_found_before_any_data(tone_run, content, message):
    with pytest.raises(UserError) as mistake:
        load_recipe(write(tone_run, **content))
    assert message in str(mistake.value)


def test_card_columns_and_keep(tone_run):
    path = tone_run.with_name("my.yaml")
    path.write_text(
        dump_yaml(
            {
                "dataset": "my",
                "load": {"jsonl": "tones"},
                "license": "CC0-1.0",
                "columns": {"word": "{{ label | upper }}"},
                "splits": {"train": {"keep": "fold != 5"}},
            }
        )
    )
    card = load_card(str(path))
    assert card.fields({"label": "low"})["word"] == "LOW"
    assert card.keeps({"fold": 1}, "train")
    assert not card.keeps({"fold": 5}, "train")
    with pytest.raises(UserError, match="the rows have no column 'fold'; they have label"):
        card.keeps({"label": "low"}, "train")
    with pytest.raises(RowError, match="missing column"):
        card.fields({})
