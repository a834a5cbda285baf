"""Paths of YAML files are absolute, and the same wherever a command runs."""

from uniaudio.config.path_variables import expand_path, make_absolute


def test_steps_up_are_resolved(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "models" / "whisper").mkdir(parents=True)
    assert make_absolute(tmp_path / "configs" / ".." / "models") == tmp_path / "models"
    expanded = expand_path("../models/whisper", tmp_path / "configs", "encoders.whisper.path")
    assert expanded == str(tmp_path / "models" / "whisper")


def test_steps_up_from_a_link_stay_where_they_lead_elsewhere(tmp_path):
    (tmp_path / "disk" / "project").mkdir(parents=True)
    (tmp_path / "disk" / "models").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "project")
    path = tmp_path / "link" / ".." / "models"
    assert make_absolute(path) == path  # tmp_path / "models" is not there
    (tmp_path / "models").mkdir()
    assert make_absolute(path) == path


def test_paths_that_are_not_there_stay(tmp_path):
    path = tmp_path / "nowhere" / ".." / "models"
    assert make_absolute(path) == path
