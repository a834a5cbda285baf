"""The README's commands run as they stand, one after the other, and so do those of every page that shows some."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from helpers.bird_folder import README, in_folder, make_bird_folder
from local_hub.clients import connect_clients
from local_hub.server import LocalHub

from uniaudio.cli import main
from uniaudio.data.recipe import load_recipe

DOCS = README.parent / "docs"
# has its own test
PAGES = [page for page in sorted(DOCS.glob("*.md")) if page.name != "tutorial-add-a-task.md"]
BLOCK = re.compile(r"(?ms)^```(\w*)[^\n]*\n(.*?)^```$")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "COLUMNS": "150",
}
# what a page shows and another test runs, or this machine cannot: each with its reason
ELSEWHERE = {
    "make ": "the Makefile is what runs these tests; `make demo` is tests/demo",
    "pip install": "needs a registry",
    "sbatch ": "needs a scheduler",
    "accelerate launch": "tests/train/test_engines.py starts every file of configs/accelerate",
    "uniaudio launch": "tests/commands/test_launch.py",
    "python benchmarks/": "tests/benchmarks",
    "UNIAUDIO_REALDATA=": "needs recordings",
    "uniaudio demo": "tests/demo",
    "uniaudio train papers/": "tests/e2e/test_papers.py",
    "uniaudio train CONFIG train.compile=true": "tests/train/test_compiled_runs.py",
    "uniaudio probe runs/birds random:openai/whisper-small --suite realdata": "needs recordings",
    "uniaudio probe runs/birds --suite xares": "needs recordings",
    "python entry/": "runs where mteb is installed",
    "uniaudio export runs/birds exported --to qwen2-audio": "wants its adapter; tests/export/test_stock_model.py",
    "uniaudio serve": "test_the_page_opens",
    "uniaudio train configs/real.yaml": "needs pretrained models",
    "uniaudio eval runs/real ": "needs pretrained models",
    'uniaudio probe "$UNIAUDIO_REALMODELS': "needs pretrained models",
    'uniaudio probe "$W"': "needs pretrained models",
    "W=$UNIAUDIO_REALMODELS": "needs pretrained models",
    "LD_PRELOAD=": "needs pretrained models",
    "python -m venv": "needs a registry",
    "UNIAUDIO_TRANSFORMERS_457=": "needs another version of transformers",
    "UNIAUDIO_VLLM=": "needs vLLM",
    "UNIAUDIO_XARES=": "needs the package of X-ARES",
    "python -m xares": "needs the package of X-ARES; tests/export runs what is written for it",
}


def shown_commands(page):
    """Every command line of a page's blocks, without its comment."""
    for kind, block in BLOCK.findall(page.read_text()):
        if kind not in ("", "bash"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if (
                words
                and re.match(r"[\w/]", words[0])
                and re.match(r"(uniaudio|accelerate|make|python|pip|sbatch) |\w+=", line)
            ):
                yield re.sub(r"\s+#.*", "", line).strip()


def commands_to_run(page):
    return [line for line in shown_commands(page) if not line.startswith(tuple(ELSEWHERE))]


@pytest.fixture(scope="module")
def bird_folder(tmp_path_factory, chat_tokenizer):
    folder = tmp_path_factory.mktemp("reader")
    make_bird_folder(folder, chat_tokenizer, folder / "hub" / "models")
    return folder


@pytest.fixture(scope="module")
def reader_hub(bird_folder):
    """A Hub with the models that the README names."""
    with LocalHub(bird_folder / "hub", tokens={"hf_me": "me"}) as serving:
        yield serving


def name_hub(hub, folder):
    """Return the environment of commands that find the models of the README on a Hub."""
    named = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "hf"),
        "UNIAUDIO_CACHE": str(folder / "cache"),
    }
    return {**os.environ, **ENVIRONMENT, **named}


@pytest.fixture(scope="module")
def after_readme(bird_folder, reader_hub):
    """The reader's folder when all commands of the README were typed, in their order, with nothing between."""
    environment = name_hub(reader_hub, bird_folder)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = {}
    for line in commands_to_run(README):
        done = subprocess.run(
            in_folder(line, bird_folder),
            shell=True,
            cwd=bird_folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, line
        printed[line] = done.stdout
    return bird_folder, printed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_readme_in_its_order(after_readme, reader_hub):
    folder, printed = after_readme
    assert len(reader_hub.list_requests(host="cdn")) == 2  # the weights of both models, once
    assert not any((folder / owner).exists() for owner in ("openai", "Qwen"))
    commands = [line.split()[1] for line in printed]
    assert commands.pop(0) == "new"
    assert load_recipe(str(folder / "data_recipes/my_task.yaml")).evaluate[0].template.labels == (
        "rook",
        "wren",
    )
    assert commands[:8] == ["check", "preview", "train", "eval", "probe", "ask", "report", "export"]
    assert commands[8:] == ["add-task", "train", "forgetting"]
    assert "20 rows" in next(text for line, text in printed.items() if line.startswith("uniaudio eval"))
    assert {"config.json", "README.md", "model.safetensors"} <= {
        file.name for file in (folder / "birds_encoder").iterdir()
    }
    assert "wren" in (folder / "runs/birds/report.html").read_text()
    events = (folder / "runs/birds_and_frogs/metrics.jsonl").read_text().splitlines()
    assert json.loads(events[-1])["event"] == "finished"
    forgetting = json.loads((folder / "runs/birds_and_frogs/forgetting.json").read_text())
    assert forgetting["probe/knn"]["sets"] == ["birds", "frogs"]
    assert forgetting["answers"]["sets"] == ["my_birds:bird_call", "my_frogs:frog_call"]


def forget_accelerate():
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def clear_the_way(words, page):
    """Name the page's own config, and remove what an earlier command wrote where this one writes."""
    if "CONFIG" in words:
        config = Path("configs", f"{page.stem}.yaml")
        config.write_text(Path("configs/birds.yaml").read_text())
        words[words.index("CONFIG")] = str(config)
    written = [words[i + 1] for i, word in enumerate(words) if word in ("-o", "--out")]
    if words[0] == "train" and "--resume" not in words:
        written.append(f"runs/{Path(words[1]).stem}")
    if words[0] == "export":
        written.append(words[2])
    if words[0] == "new":
        words.append("--force")
    for path in map(Path, written):
        if path.is_dir():
            shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_page_of_the_documentation(page, after_readme, reader_hub, monkeypatch, tmp_path, capsys):
    """On a copy of the folder that the README leaves."""
    folder, _ = after_readme
    connect_clients(monkeypatch, reader_hub, folder / "hf", token="hf_me")
    lines = commands_to_run(page)
    if not lines:
        pytest.skip("shows no command that is tried here")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    for line in lines:
        words = shlex.split(in_folder(line, folder))[1:]
        clear_the_way(words, page)
        with pytest.raises(SystemExit) as end:
            main(words)
        forget_accelerate()
        captured = capsys.readouterr()
        assert (end.value.code or 0) == 0, f"$ {line}\n{captured.out}{captured.err}"


@pytest.mark.slow
def test_the_page_opens(after_readme, reader_hub):
    """``uniaudio serve``, as docs/serve.md has it, on a free port."""
    folder, _ = after_readme
    command = [sys.executable, "-m", "uniaudio", "serve", "runs/birds", "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**name_hub(reader_hub, folder), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            address = next(
                m[0] for line in server.stdout if (m := re.search(r"http://127\.0\.0\.1:\d+", line))
            )
            with urllib.request.urlopen(address, timeout=30) as page:
                assert "birds" in page.read().decode()
        finally:
            server.terminate()
