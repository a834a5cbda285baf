"""``uniaudio eval`` as a user types it, alone and in two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.figures import assert_same_figures

from uniaudio.build.model import load_model
from uniaudio.build.result_fingerprints import fingerprint_checkpoint, match_checkpoints
from uniaudio.commands import evaluate as evaluating
from uniaudio.commands.evaluate import run_evaluation, write_answer_files
from uniaudio.commands.probe import run_probe
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.sources import source_kinds
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.suite_table import build_suite_tables
from uniaudio.run_records import read_metrics
from uniaudio.train.checkpoint.integrity import FileRecord, read_listing, write_listing

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}


@pytest.fixture
def trained(tone_run, fresh_accelerate):
    """A run of two steps, and one test clip that cannot be read."""
    (tone_run.parent / "tones" / "34.wav").write_bytes(b"no sound")
    assert run_training(load_run(tone_run, ["train.max_steps=2"]), None) == 0
    return tone_run.parent / "out"


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def test_every_set_is_opened_once(trained, monkeypatch):
    """Though all are opened before any is asked: a large manifest takes seconds to read."""
    opened, plain = [], source_kinds.open_new_source
    monkeypatch.setattr(
        source_kinds, "open_new_source", lambda card, split: opened.append(split) or plain(card, split)
    )
    for times in (1, 2):  # what a later command asks may have changed in the meantime
        assert run_evaluation(str(trained), None, None, 2)["tones:tone"]["answers"]
        assert opened == ["test"] * times


@pytest.mark.slow
def test_two_processes_give_what_one_gives(trained, tmp_path):
    whole = run_evaluation(str(trained), None, tmp_path / "one.json", None)
    assert json.loads((tmp_path / "one.json").read_text()) == whole
    result = whole["tones:tone"]
    assert (result["examples"], len(result["skipped"])) == (9, 1)
    launch = [Path(sys.prefix) / "bin" / "accelerate", "launch", "--num_processes", "2"]
    launch += [
        "--config_file",
        ROOT / "configs" / "accelerate" / "ddp.yaml",
        "--main_process_port",
        free_port(),
    ]
    requests = [
        "eval",
        trained,
        "--out",
        tmp_path / "two.json",
        "--protocol",
        "xares-llm",
        "--batch-seconds",
        2,
    ]
    done = subprocess.run(
        [str(part) for part in (*launch, "-m", "uniaudio", *requests)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    message = json.loads((tmp_path / "two.json").read_text())
    assert_same_figures(message["entries"], whole)
    assert message["overall"] == message["scores"]["tones:tone"]["score"] == result["score"]
    assert done.stdout.count("tones:tone: 5 rows") == 1  # the main process alone tells, and asked its share
    assert "xares-llm" in done.stdout


def test_a_run_answers_with_other_settings_of_its_encoder(trained, tmp_path):
    spec = f"{trained}?pad_to=3"
    assert load_model(spec).model.encoder.pad_to == 3
    (result,) = run_evaluation(spec, None, None, 2, labels=False).values()
    assert (result["model"], result["examples"]) == (spec, 2)
    assert match_checkpoints(trained, [result["fingerprint"]]) == {}
    with pytest.raises(UserError, match=r"out\?pad=3: a model has no option 'pad'"):
        load_model(f"{trained}?pad=3")


def test_a_set_of_which_no_row_can_be_used_does_not_cost_the_others(trained, tmp_path):
    folder = trained.parent
    (folder / "gone").mkdir()
    (folder / "gone" / "manifest.jsonl").write_text('{"audio": "a.wav", "label": "low"}\n')
    gone = {
        "dataset": "gone",
        "load": {"jsonl": "gone"},
        "license": "CC0-1.0",
        "splits": {"test": {"name": "train"}},
    }
    (folder / "gone.yaml").write_text(dump_yaml(gone))
    lines = [{"dataset": name, "template": "tone"} for name in ("gone", "tones")]
    recipe = {"recipe": "both", "train": lines[1:], "evaluate": lines}
    (folder / "both.yaml").write_text(dump_yaml(recipe))
    out = tmp_path / "answers.json"
    with pytest.raises(UserError, match=r"^gone:tone: no row of split 'test' can be used \(missing file\)$"):
        run_evaluation(str(trained), str(folder / "both.yaml"), out, None)
    results = json.loads(out.read_text())
    assert (results["gone:tone"]["score"], results["gone:tone"]["examples"]) == (None, 0)
    assert (results["tones:tone"]["examples"], results["tones:tone"]["rows"]) == (9, 10)


def test_a_set_that_keeps_no_rows_is_refused_before_any_is_answered(trained, monkeypatch):
    folder = trained.parent
    card = (folder / "tones.yaml").read_text().replace("dataset: tones", "dataset: none")
    (folder / "none.yaml").write_text(card.replace("split == 'test'", "split == 'x'"))
    lines = [{"dataset": name, "template": "tone"} for name in ("tones", "none")]
    (folder / "both.yaml").write_text(dump_yaml({"recipe": "both", "train": lines[:1], "evaluate": lines}))
    monkeypatch.setattr(evaluating, "evaluate_entry", None)
    with pytest.raises(UserError, match=r"none\.yaml: split 'test' keeps no rows of"):
        run_evaluation(str(trained), str(folder / "both.yaml"), None, None)


def test_training_goes_on_where_no_row_of_an_evaluation_set_can_be_used(tone_run, fresh_accelerate, capsys):
    for index in range(30, 40):
        samples = np.full(4800, np.nan)  # the header alone is read before a run begins
        soundfile.write(tone_run.parent / "tones" / f"{index}.wav", samples, 16000, subtype="FLOAT")
    assert run_training(load_run(tone_run, ["train.max_steps=2", "train.evaluate_every=1"]), None) == 0
    printed = "".join(capsys.readouterr())
    reason = "tones:tone: accuracy is undefined: no row of split 'test' can be used (non-finite samples)"
    assert printed.count(reason) == 2
    rows, _ = read_metrics(tone_run.parent / "out" / "metrics.jsonl")
    results = [row["results"]["tones:tone"] for row in rows if row.get("event") == "evaluation"]
    assert [(result["score"], result["examples"]) for result in results] == [(None, 0), (None, 0)]
    assert rows[-1]["event"] == "finished"


def test_without_labels_and_what_is_refused(trained, tmp_path):
    answers = tmp_path / "answers"
    result = run_evaluation(str(trained), None, None, 4, labels=False, answers=answers)["tones:tone"]
    lines = [json.loads(line) for line in (answers / "tones_tone.jsonl").read_text().splitlines()]
    assert lines == [
        {"id": record["id"], "prediction": record["answer"], "references": [record["reference"]]}
        for record in result["answers"]
    ]
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"--answers .*a\.txt: the folder cannot be made"):
        run_evaluation(str(trained), None, None, None, answers=tmp_path / "a.txt")
    assert result["examples"] == 4
    assert "labels" not in result
    assert (result["model"], result["fingerprint"]) == (str(trained), fingerprint_checkpoint(str(trained)))
    with pytest.raises(UserError, match="--protocol xares: give own or xares-llm"):
        run_evaluation(str(trained), None, None, None, protocol="xares")
    template = trained.parent / "tone.yaml"
    template.write_text(template.read_text() + "scoring: {metric: spider}\n")
    with pytest.raises(UserError, match=r"scoring\.metric"):
        run_evaluation(str(trained), None, None, None)


def test_answers_of_every_set_are_written_whatever_sets_and_clips_are_called(tmp_path):
    names = ("clotho:aqa_en", "clotho_aqa:en", "clotho:aqa_en_2")
    results = {
        name: {"answers": [{"id": f"{name}/\udcff.wav", "answer": "é", "reference": name}]} for name in names
    }
    write_answer_files(tmp_path, results)
    lines = [json.loads(file.read_text("utf-8")) for file in tmp_path.iterdir()]
    assert sorted(line["references"] for line in lines) == sorted([name] for name in names)
    assert {line["id"] for line in lines} == {f"{name}/\udcff.wav" for name in names}
    assert (tmp_path / "clotho_aqa_en.jsonl").is_file()


def test_a_run_is_probed_beside_its_untrained_encoder_as_trained_from_and_at_its_best(trained, tmp_path):
    start, run = str(trained.parent / "whisper"), str(trained)
    best = f"{start}?pad_to=30"
    data = [f"tones={trained.parent / 'tones'}"]
    result = run_probe([run, f"{run}?pad_to=3"], data, out=tmp_path / "p.json", seeds=1, references=True)
    assert result["models"] == [best, start, run, f"{run}?pad_to=3"]
    roles = {"start": start, "best": best}
    stored = json.loads((tmp_path / "p.json").read_text())
    assert stored["references"] == {run: roles, f"{run}?pad_to=3": roles}
    assert len(set(stored["fingerprints"].values())) == 4  # a run that reads clips otherwise is another model
    assert match_checkpoints(trained, stored["fingerprints"].values()).keys() == {stored["fingerprints"][run]}
    with pytest.raises(UserError, match=r"whisper\.chunk_seconds: a whisper encoder has no such setting"):
        run_probe([f"{run}?chunk_seconds=3"], ["tones=nowhere"])
    shown = build_suite_tables(result)[0]
    assert list(shown.columns[3].cells)[:4] == [  # below them, the rows of UAR
        "whisper\n?pad_to=30 (untrained, at its best)",
        "whisper (untrained, with the run's settings)",
        "out",
        "out\n?pad_to=3",
    ]
    knn = {model: scores["knn"]["mean"] for model, scores in result["scores"]["tones"].items()}
    gains = f"({knn[run] - knn[best]:+.3f}; {knn[run] - knn[start]:+.3f})"
    assert list(shown.columns[6].cells)[2].endswith(gains)
    assert shown.caption.startswith("differences of runs from the encoder untrained, at its best; ")


def test_probes_state_which_weights_they_are_of(trained, tmp_path):
    (trained.parent / "tones" / "34.wav").write_bytes((trained.parent / "tones" / "32.wav").read_bytes())
    start = str(trained.parent / "whisper")
    run_probe([start, str(trained)], [f"tones={trained.parent / 'tones'}"], out=tmp_path / "p.json", seeds=1)
    result = json.loads((tmp_path / "p.json").read_text())
    assert list(result["scores"]) == ["tones"]
    fingerprints = result["fingerprints"]
    assert list(fingerprints) == [start, str(trained)]
    moved = trained.rename(tmp_path / "elsewhere")
    assert match_checkpoints(moved, fingerprints.values()) == {fingerprints[str(trained)]: "step-000002"}
    weights = moved / "checkpoints" / "step-000002" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    with pytest.raises(UserError, match="has no moving averages"):
        fingerprint_checkpoint(f"{moved}:ema")
    weights.write_bytes(content)
    write_listing(
        weights.parent, {f: FileRecord.of(weights.parent / f) for f in read_listing(weights.parent)}
    )
    assert match_checkpoints(moved, fingerprints.values()) == {}  # another weight, and not a damaged one
