"""The whole demo with a few steps: every part of it, and the folder it may write to."""

import json
import shutil

import pytest

from uniaudio.build.model import load_model
from uniaudio.commands.demo import run_demo
from uniaudio.demo.project_files import MADE_HERE
from uniaudio.errors import UserError

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.mark.slow
def test_the_demo_in_a_few_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "demo"
    page = run_demo(out, quick=True).read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert {path.name for path in out.iterdir()} <= set(MADE_HERE)  # all of it is replaced by the next demo
    answers = json.loads((out / "answers.json").read_text())
    assert {"demo_sounds:environmental_sound", "demo_instruments:instrument"} <= set(answers)
    probes = json.loads((out / "probes.json").read_text())
    assert {"sounds", "instruments"} <= set(probes["scores"])
    assert all(set(models) == {"before", "after"} for models in probes["scores"].values())
    assert set(probes["fingerprints"]) == {"before", "after"}
    shutil.rmtree(tmp_path / "cache")  # the text model lies in the run folder
    assert load_model(str(out)).model.decoder.identity["path"] == str(out / "decoder")
    shutil.rmtree(out / "decoder")
    with pytest.raises(UserError, match="the run's miniature decoder must be next to its checkpoints"):
        load_model(str(out))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and contains no demo"):
        run_demo(tmp_path, quick=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
