"""What `check` says of a decoder with the rows of a run, before any weights are read."""

import pytest

from uniaudio.checks.decoder import check_questions
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError


def check(tone_run, tokenizer, positions, **line):
    """Questions about the clips of 0.3 to 0.7 s, with 100 audio tokens for a second."""
    lines = [{"dataset": "tones", "template": "tone", **line}]
    recipe = {"recipe": "tone_recipe", "train": lines, "evaluate": lines}
    (tone_run.parent / "tone_recipe.yaml").write_text(dump_yaml(recipe))
    format = ChatFormat(tokenizer, max_positions=positions)
    loaded = load_recipe(str(tone_run.parent / "tone_recipe.yaml"))
    return check_questions(format, loaded, lambda seconds: 100 * seconds, 10.0, 30.0)


def count_text_tokens(tone_run, tokenizer):
    """The most tokens of a question without its clip."""
    format = ChatFormat(tokenizer)
    template = load_recipe(str(tone_run.parent / "tone_recipe.yaml")).train[0].templates[0]
    rendered = [template.render({"label": label}, None) for label in ("low", "high")]
    return max(
        sum(map(len, format.encode_prompt(one.prompt))) + len(format.answer(one.answer)) for one in rendered
    )


@pytest.mark.parametrize(("factor", "positions", "skips"), [(0.5, 71, True), (2.0, 36, False)])
def test_clips_count_with_their_length_after_a_change_of_speed(
    tone_run, chat_tokenizer, factor, positions, skips
):
    """Clips of 0.7 s at most have 140 or 35 audio tokens."""
    text = count_text_tokens(tone_run, chat_tokenizer)
    line = {"dataset": "tones", "template": "tone", "augment": [{"speed": {"factor": [factor, factor]}}]}
    (tone_run.parent / "fast.yaml").write_text(dump_yaml({"recipe": "fast", "train": [line]}))
    format = ChatFormat(chat_tokenizer, max_positions=text + positions)
    recipe = load_recipe(str(tone_run.parent / "fast.yaml"))
    notes = check_questions(format, recipe, lambda seconds: 100 * seconds, 10.0, 30.0)
    assert len(notes) == skips
    assert all("text too long" in note for note in notes)


def test_limits_are_those_of_crops_and_windows(tone_run, chat_tokenizer):
    text = count_text_tokens(tone_run, chat_tokenizer)
    assert check(tone_run, chat_tokenizer, text + 71) == []
    train, test = check(tone_run, chat_tokenizer, text + 50)
    assert train.startswith("tones:tone: of the first 20 questions are skipped: ")
    assert "text too long" in test
    with pytest.raises(UserError, match="the decoder cannot use any of the first 20 rows"):
        check(tone_run, chat_tokenizer, text + 20)
    for how in ("windows", "crop"):  # windows of up to 0.3 s, with what is left at the end of a clip
        assert check(tone_run, chat_tokenizer, text + 31, long_clips={"how": how, "seconds": 0.2}) == []
    # clips that training skips for their length are not the decoder's
    assert check(tone_run, chat_tokenizer, text + 51, long_clips={"how": "skip", "seconds": 0.5}) == []
