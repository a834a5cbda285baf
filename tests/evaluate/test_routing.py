"""What was chosen, by task: averages over the last steps, JSON and a picture."""

import json

import pytest
from matplotlib.image import imread

from uniaudio.commands.routes import show_routes
from uniaudio.errors import UserError
from uniaudio.evaluate.routing import read_choices


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def row(step, **choices):
    return {"step": step, "loss": 1.0, "choices": choices}


def test_the_last_steps_are_averaged_by_task(tmp_path):
    speech = [
        {"weak/a": 1.0, "weak/b": 0.0, "routing entropy": 0.5},
        {"weak/a": 0.8, "weak/b": 0.2, "routing entropy": 0.3},
    ]
    music = {"weak/a": 0.1, "weak/b": 0.9, "routing entropy": 0.1}
    early = {"weak/a": 0.0, "weak/b": 1.0, "routing entropy": 9.0}
    run = write(
        tmp_path / "run", [row(10, asr=early), row(80, asr=speech[0]), row(100, asr=speech[1], pitch=music)]
    )
    routes = read_choices(run, 0.5)
    assert (routes["from_step"], routes["to_step"]) == (80, 100)
    assert routes["groups"] == {
        "weak": {"asr": {"a": pytest.approx(0.9), "b": pytest.approx(0.1)}, "pitch": {"a": 0.1, "b": 0.9}}
    }
    assert routes["values"]["asr"] == {"routing entropy": pytest.approx(0.4)}
    assert read_choices(run, 1.0)["from_step"] == 10


def test_json_and_picture_are_written(tmp_path, capsys):
    shares = {f"expert/{i}": 1 / 8 for i in range(8)} | {"gate/whisper": 0.7, "gate/dasheng": 0.3}
    run = write(tmp_path / "run", [row(1, tagging=shares, asr=shares)])
    show_routes(run, None, 0.25)
    assert json.loads((run / "routes.json").read_text())["groups"]["gate"]["asr"]["whisper"] == 0.7
    picture = imread(run / "routes.png")
    assert picture.shape[0] > 300
    assert picture.shape[1] > 600
    assert picture[..., :3].std() > 0.05  # not an empty page
    text = capsys.readouterr().out
    assert "0.70" in text
    assert "0.12" in text


def test_a_run_without_choices_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        read_choices(tmp_path, 0.25)
    with pytest.raises(UserError, match="has no routing decisions: its encoder does not choose"):
        read_choices(write(tmp_path / "run", [{"step": 1, "loss": 2.0}]), 0.25)


def test_torn_and_odd_lines_hold_no_choices(tmp_path):
    run = write(tmp_path / "run", [row(10, asr={"weak/a": 1.0})])
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('[1]\n\n{"step": 20, "choi')
    assert read_choices(run, 1.0)["groups"] == {"weak": {"asr": {"a": 1.0}}}
