"""Runs in Python on a miniature that is really trained: what the docstrings and docs/python.md show, and more."""

import doctest
import importlib
import json
import os
import re
import sys
from pathlib import Path

import numpy
import pytest
import torch
from helpers.bird_folder import README, in_folder, make_bird_folder

import uniaudio
from uniaudio.config.run import RunConfig

DOCUMENTED = (
    "uniaudio.api.runs",
    "uniaudio.api.models",
    "uniaudio.build.embedder",
    "uniaudio.train.callbacks",
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, chat_tokenizer):
    """The folder of somebody who follows the README, with a run in it that was trained from Python."""
    folder = tmp_path_factory.mktemp("reader")
    make_bird_folder(folder, chat_tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("UNIAUDIO_CACHE", str(folder / "cache"))
        run = uniaudio.train("configs/birds.yaml", {"train.log_every": 2, "data.workers": 0})
        assert run.is_finished
        yield folder


def test_every_process_of_a_launch_sees_the_run_that_the_main_one_has_written(reader, monkeypatch):
    order = []
    module = importlib.import_module("uniaudio.api.runs")
    monkeypatch.setattr(module, "run_training", lambda *parts, **options: order.append("trained"))
    monkeypatch.setattr(module, "barrier", lambda: order.append("waited for all"))
    uniaudio.train("configs/birds.yaml")
    assert order == ["trained", "waited for all"]


def test_a_check_may_be_allowed_to_run_code_as_a_training_may(reader, monkeypatch):
    given = []
    monkeypatch.setattr(
        importlib.import_module("uniaudio.api.runs"), "check_run", lambda config: given.append(config.trust)
    )
    uniaudio.check("configs/birds.yaml")
    uniaudio.check("configs/birds.yaml", allow_code=True)
    uniaudio.check("configs/birds.yaml", trust_remote_code=True)
    assert [(trust.remote_code, trust.code) for trust in given] == [
        (False, False),
        (False, True),
        (True, False),
    ]


def test_a_run_knows_its_metrics_and_checkpoints(reader):
    run = uniaudio.Run("runs/birds")
    assert repr(run) == "Run('runs/birds', step 6, finished)"
    assert list(run.metrics["step"]) == [2, 4, 6]
    assert {"loss", "tasks/bird_call", "lr/whisper", "grad_norm"} <= set(run.metrics)
    assert run.metrics["loss"].notna().all()
    assert [path.name for path in run.checkpoints] == ["step-000006"]
    assert isinstance(run.config, RunConfig)
    assert run.evaluations.empty


class PrintsMayVary(doctest.OutputChecker):
    """Compares what an example shows; one that shows nothing may print its progress."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.parametrize("module", DOCUMENTED)
def test_the_examples_of_docstrings_run(reader, module):
    names = {"uniaudio": uniaudio, "torch": torch, "numpy": numpy}
    runner = doctest.DocTestRunner(PrintsMayVary(), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    for test in doctest.DocTestFinder().find(importlib.import_module(module), extraglobs=names):
        runner.run(test)
    assert runner.tries > 2
    assert not runner.failures


def test_what_the_commands_do_runs_from_python_with_the_same_results(reader, capsys):
    run = uniaudio.Run("runs/birds")
    scores = run.evaluate(Path("data_recipes/birds.yaml"), out="runs/birds/answers.json", max_examples=4)
    assert json.loads(Path("runs/birds/answers.json").read_text()) == scores
    assert scores["my_birds:bird_call"]["examples"] == 4
    probes = run.probe({"birds": "data/birds"}, seeds=1, references=False)
    assert set(probes["scores"]["birds"]["runs/birds"]) == {"linear", "mlp", "knn"}
    assert (run.export("exported") / "model.safetensors").is_file()
    assert run.report("report.html").read_text().startswith("<!doctype html>")
    model = run.load_model("cpu")
    alone = [model.ask(clip, "Which bird is calling?", max_new_tokens=4) for clip in ("dog.flac", "rain.wav")]
    assert model.ask(["dog.flac", "rain.wav"], "Which bird is calling?", max_new_tokens=4) == alone
    assert run.ask("dog.flac", "Which bird is calling?", max_new_tokens=4) == alone[0]


def test_a_config_may_be_a_mapping_or_a_record_with_paths_and_numbers_of_numpy(reader):
    values = {
        "base": "configs/birds.yaml",
        "output_dir": Path("runs/mapping"),
        "train": {"max_steps": numpy.int64(1), "betas": (0.9, 0.95)},
        "data": {"workers": 0},
    }
    run = uniaudio.train(values)
    assert run.step == 1
    again = uniaudio.train(run.config, {"train.max_steps": 2}, resume="auto")
    assert (again.folder, again.step) == (Path("runs/mapping").resolve(), 2) or again.step == 2
    assert again.config.train.betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniaudio.train("nothing"), "there is no config 'nothing'"),
        (lambda: uniaudio.train("configs/birds.yaml"), "already holds a run"),
        (lambda: uniaudio.train("configs/birds.yaml", resume="maybe"), "not one of True, False and 'auto'"),
        (lambda: uniaudio.train({"encoders": {}}), "config: output_dir: is required"),
        (lambda: uniaudio.train("configs/birds.yaml", "train.max_steps=1"), "give a list"),
        (lambda: uniaudio.train("configs/birds.yaml", {"trian.max_steps": 1}), "did you mean 'train'"),
        (lambda: uniaudio.train("configs/birds.yaml", None), "a list of texts or a mapping, not None"),
        (lambda: uniaudio.train("runs/birds"), "is a run folder; its config is runs/birds/config.yaml"),
        (
            lambda: uniaudio.train(
                "configs/birds.yaml", ["output_dir=runs/x"], callbacks=uniaudio.Callback()
            ),
            "give a list of objects",
        ),
        (lambda: uniaudio.Run("data"), "data is not a run folder"),
        (lambda: uniaudio.load_encoder(""), "a model is missing"),
        (lambda: uniaudio.load_encoder("dog.flac"), "^dog.flac is a file; give the folder of a model$"),
        (lambda: uniaudio.load_encoder("data"), "^data contains no model: it has no config.json$"),
        (
            lambda: uniaudio.Run("runs/birds").ask("dog.flac", "What?", max_new_tokens=0),
            "max_new_tokens: give",
        ),
        (
            lambda: uniaudio.load_model("runs/birds").ask(["dog.flac"], None),
            "text: give one question, or a list with one for each clip, not None",
        ),
        (
            lambda: uniaudio.load_model("runs/birds").ask(["dog.flac"], [3]),
            r"text: give one question, or a list with one for each clip, not \[3\]",
        ),
        (lambda: uniaudio.Run("runs/birds").ask("dog.flac", "What?" * 5000), r"text too long.*'What\?What"),
        (lambda: uniaudio.Run("runs/birds").evaluate(max_examples=-1), "max_examples: give"),
        (lambda: uniaudio.Run("runs/birds").evaluate(batch_seconds=0), "batch_seconds: give"),
        (lambda: uniaudio.Run("runs/birds").probe({"birds": "data/birds"}, seeds=0), "seeds: give"),
        (lambda: uniaudio.Run("runs/birds").probe(["data/birds"]), "data: give names and folders"),
        (lambda: uniaudio.load_model("data"), "neither a checkpoint nor a run folder"),
        (lambda: uniaudio.Run("runs/birds").ask("no.wav", "What?"), "missing file"),
        (lambda: uniaudio.Run("runs/birds").export("data"), "data"),
        (lambda: uniaudio.Run("runs/birds").probe(), "give either"),
        (lambda: uniaudio.Run("runs/birds").evaluate("nothing"), "there is no recipe"),
        (lambda: uniaudio.check("configs/birds.yaml", ["stages.0.budget.audio_seconds=0.1"]), "less than"),
    ],
)
def test_mistakes_are_exceptions_with_one_sentence(reader, call, message):
    with pytest.raises(uniaudio.UserError, match=message):
        call()


def test_the_package_of_the_loop_and_the_function_share_a_name(reader):
    from uniaudio.train.stages import train_stages

    assert callable(uniaudio.train)
    assert uniaudio.train.stages.train_stages is train_stages
    assert {"Run", "train", "check", "load_model", "load_encoder"} <= set(dir(uniaudio))
    with pytest.raises(AttributeError, match="no attribute 'lode_encoder'"):
        uniaudio.lode_encoder  # noqa: B018


def test_the_page_of_the_python_api_runs_block_by_block(reader, monkeypatch, tmp_path):
    page = README.parent / "docs" / "python.md"
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", page.read_text())
    assert len(blocks) > 5
    monkeypatch.setattr(sys, "path", [os.getcwd(), *sys.path])
    names = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(in_folder(block, reader), str(page), "exec"), names)
