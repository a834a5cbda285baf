import pytest

from uniaudio.config.files import find_file
from uniaudio.config.run import load_run
from uniaudio.errors import UserError


def test_overrides_go_through_the_same_checks(tone_run):
    config = load_run(tone_run, ["train.max_steps=3", "stages.0.budget.audio_seconds=7", "encoders.whisper.lr=1e-4"])
    assert (config.total_steps, config.stages[0].budget.audio_seconds, config.encoder.lr) == (3, 7, 1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_stepz=3", "train.max_stepz: unknown key (did you mean 'max_steps'?)"),
        ("trian.max_steps=3", "unknown key (did you mean 'train'?)"),
        ("train.max_steps=many", "train.max_steps: input should be a valid integer"),
        ("train.max_steps=0", "train.max_steps: input should be greater than 0"),
        ("stages.4.steps=3", "4 is not one of the positions 0 to 0"),
        ("stages.0.warmup=300", "warmup 300 is longer than the stage's 8 steps"),
        ("seed", "write key.sub=value"),
        ("encoders.second={path: x}", "exactly one encoder"),
        ("decoder.miniature.layerz=3", "decoder.miniature.layerz: unknown key (did you mean 'layers'?)"),
    ],
)
def test_mistakes_name_the_key_and_the_nearest_one(tone_run, override, message):
    with pytest.raises(UserError) as mistake:
        load_run(tone_run, [override])
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_config_inherits(tone_run):
    child = tone_run.with_name("child.yaml")
    child.write_text("base: run.yaml\ntrain: {clip: 0.5}\n")
    config = load_run(child)
    assert (config.train.clip, config.train.micro_batches) == (0.5, 2)
    child.write_text("base: child.yaml\n")
    with pytest.raises(UserError, match="goes round in a circle"):
        load_run(child)


def test_the_resolved_config_reads_back(tone_run, tmp_path):
    config = load_run(tone_run, ["train.max_steps=3"])
    config.save(tmp_path / "again.yaml")
    assert load_run(tmp_path / "again.yaml").resolved() == config.resolved()


def test_unknown_names_get_the_nearest_one():
    with pytest.raises(UserError, match=r"there is no template 'asrr' \(did you mean 'asr'\?\)"):
        find_file("template", "asrr")
    with pytest.raises(UserError, match=r"there is no config file nowhere/x\.yaml"):
        find_file("config", "nowhere/x.yaml")
