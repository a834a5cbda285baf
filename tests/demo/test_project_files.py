"""The folder of a demo: what an earlier one left goes, and nothing else."""

import pytest

from uniaudio.demo.project_files import CONFIG, prepare_folder
from uniaudio.errors import UserError


def test_what_an_earlier_demo_left_is_removed(tmp_path):
    out = tmp_path / "demo"
    prepare_folder(out)  # interrupted before it wrote more
    for folder in ("corpus", "checkpoints", "decoder"):
        (out / folder / "inside").mkdir(parents=True)
    for file in (CONFIG, "metrics.jsonl", "report.html", "probes.json"):
        (out / file).write_text("earlier")
    prepare_folder(out)
    assert [path.name for path in out.iterdir()] == [CONFIG]
    assert (out / CONFIG).read_text() == ""


@pytest.mark.parametrize("name", ["thesis.txt", "clips/dog.wav"])
def test_files_that_no_demo_makes_are_not_removed(tmp_path, name):
    (tmp_path / CONFIG).write_text("a config of this name")
    (tmp_path / "metrics.jsonl").write_text("{}")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"contains {name.split('/')[0]}, which is not part of a demo"):
        prepare_folder(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert (tmp_path / "metrics.jsonl").read_text() == "{}"
