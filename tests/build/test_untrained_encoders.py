"""The untrained encoders that a run is compared with are derived from its config."""

import pytest
from conftest import tiny_whisper
from helpers.checkpoints import save_miniature
from helpers.runs import write_run, write_weights

from uniaudio.build.untrained_encoders import add_references, find_reference
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.evaluate.probing.suite_table import Reference
from uniaudio.tiny.checkpoints import save_miniature_whisper


@pytest.fixture
def make_run(tmp_path):
    def make(name, **encoder):
        run = write_run(tmp_path / name, ["task"])
        (checkpoint,) = (run / "checkpoints").iterdir()
        stages = [{"name": "one", "recipe": "nowhere", "steps": 1, "budget": {"audio_seconds": 9}}]
        config = {"output_dir": str(run), "encoders": {"base": encoder}, "stages": stages}
        (checkpoint / "config.yaml").write_text(dump_yaml(config))
        write_weights(run, name.encode())
        return str(run)

    return make


def test_whisper_is_at_its_best_with_the_silence_it_was_trained_with(make_run, tmp_path):
    path = str(tmp_path / "w")
    tiny_whisper().save_pretrained(path)
    plain = make_run("plain", path=path)
    tail = make_run("tail", path=path, tail_frames=10, lr=1e-3)
    padded = make_run("padded", path=path, pad_to=30)
    assert find_reference(plain) == Reference(path, f"{path}?pad_to=30")
    assert find_reference(f"{tail}?pad_to=3") == Reference(f"{path}?tail_frames=10", f"{path}?pad_to=30")
    assert find_reference(padded) == Reference(f"{path}?pad_to=30", f"{path}?pad_to=30")
    assert find_reference(path) is None
    assert find_reference(make_run("later", path=plain)) == Reference(plain, None)
    assert find_reference(make_run("drawn", path=f"random:{path}")) == Reference(f"random:{path}", None)
    assert find_reference(make_run("own", kind="my:Encoder")) is None


def test_nothing_is_better_for_other_families_and_for_weights_that_nobody_trained(make_run, tmp_path):
    save_miniature("wav2vec2", tmp_path / "wav")
    small = str(save_miniature_whisper(tmp_path / "small", d_model=16, layers=1))
    assert find_reference(make_run("wave", path=f"{tmp_path}/wav")) == Reference(f"{tmp_path}/wav", None)
    assert find_reference(make_run("mini", path=small)) == Reference(small, None)


def test_references_stand_in_front_once_and_keep_the_name_they_have(make_run, tmp_path, monkeypatch):
    path = str(tmp_path / "w")
    tiny_whisper().save_pretrained(path)
    first, second = make_run("first", path=path), make_run("second", path=path)
    best = f"{path}?pad_to=30"
    models, references = add_references(["other", first, second])
    assert models == [best, path, "other", first, second]
    assert references == {first: Reference(path, best), second: Reference(path, best)}
    monkeypatch.chdir(tmp_path)
    models, references = add_references(["w", "w?pad_to=30.0", first])
    assert (models, references[first]) == (["w", "w?pad_to=30.0", first], Reference("w", "w?pad_to=30.0"))
    later = make_run("later", path=first)
    assert add_references([first, later]) == ([first, later], {later: Reference(first, None)})
    models, references = add_references([first, best], add=False)
    assert (models, references) == ([first, best], {first: Reference(path, best)})
