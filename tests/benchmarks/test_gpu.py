"""The GPU table on a CPU: every section runs, with what a bare machine with torch and transformers has."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu
import gpu_parity
import gpu_results
import gpu_timing
import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[2]
# what a machine with a GPU, torch and transformers may lack
ABSENT = (
    "deepspeed",
    "flash_attn",
    "datasets",
    "pydantic",
    "soundfile",
    "soxr",
    "jiwer",
    "nltk",
    "orjson",
    "sacrebleu",
)


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment}
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)


@pytest.mark.slow
def test_every_section_runs_on_a_cpu(tmp_path):
    out, plot, store = tmp_path / "gpu.json", tmp_path / "gpu.png", tmp_path / "results"
    small = ("--device", "cpu", "--size", "miniature", "--quick")
    done = run("benchmarks/gpu.sh", *small, "--out", out, "--plot", plot, "--store", store)
    assert done.returncode == 0, done.stdout + done.stderr
    sections = json.loads(out.read_text())["sections"]
    assert len(sections) == done.stdout.count("\n## ") - 1  # the last heading is that of the aims
    for title, rows in sections.items():
        assert rows, title
        for row in rows:
            verdict = row.get("verdict", "same")
            assert verdict in ("same", "needs CUDA"), (title, row)
    (waits,) = sections["waiting for data"]
    assert 0 < waits["wait share"] < 1
    assert waits["audio-h/GPU-h"] > 0
    (mix,) = sections["full step on the mix"]
    assert mix["times"] == pytest.approx(mix["ours"]["hours"] / mix["stock"]["hours"])
    assert plot.stat().st_size > 1000
    (file,) = store.glob("*_quick.json")
    result = json.loads(file.read_text())["benchmarks"]["gpu"]
    assert "nothing stored to compare with" in done.stdout
    assert len(result["cases"]) >= 10
    ours = result["cases"][mix["name"]]["ours"]
    assert ours["times_faster"]["value"] == pytest.approx(mix["times"])
    assert ours["audio_seconds_per_second"]["value"] == mix["ours"]["hours"]
    (embedded,) = sections["embedding"]
    assert result["cases"][embedded["name"]]["on"]["times_faster"]["value"] == pytest.approx(
        embedded["times"]
    )


@pytest.fixture(scope="module")
def pretended_gpu(tmp_path_factory) -> Path:
    """The library without which torch for CPUs refuses tensors of a GPU."""
    if shutil.which("g++") is None:
        pytest.skip("a pretended GPU is compiled with g++")
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU: run benchmarks/gpu.sh")
    library = tmp_path_factory.mktemp("gpu") / "pretended_gpu.so"
    source, (places,) = ROOT / "tests" / "pretended_gpu.cpp", library_paths()
    linked = [f"-L{places}", f"-Wl,-rpath,{places}", "-ltorch_cpu", "-lc10"]
    included = [f"-I{path}" for path in include_paths()]
    done = run("g++", "-std=c++20", "-shared", "-fPIC", *included, source, "-o", library, *linked)
    assert done.returncode == 0, done.stderr
    return library


@pytest.mark.slow
def test_sections_run_on_a_pretended_gpu(pretended_gpu, tmp_path):
    """Devices, dtypes and shapes alone: the step mixes nothing of host and GPU, and waits once, for the norm."""
    out = tmp_path / "gpu.json"
    titles = (
        "same numbers",
        "waiting",
        "on the mix",
        "sharing",
        "recomputation",
        "FP8",
        "closed",
        "embedding",
    )
    words = ("--size", "miniature", "--quick", "--out", out, "--only", *titles)
    done = pretending(pretended_gpu, "tests/pretended_gpu.py", *words)
    assert out.is_file(), done.stderr
    sections = json.loads(out.read_text())["sections"]
    assert len(sections) == len(titles) + 1  # for the device, and for data
    for title, rows in sections.items():
        assert rows, title
        for row in rows:
            assert not row.get("verdict", "").startswith(("failed", "left out", "needs")), (title, row)
    waits = {row["name"]: row["waits"] for row in sections["waiting for the device"]}
    assert waits == {
        "waits in forward, transfer included": 0,
        "waits in backward": 0,
        "waits in update": 1,
    }


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("torch.ones(2, device='cuda') + torch.ones(2)", "found at least two devices, cuda:0 and cpu"),
        ("torch.ones(2, device='cuda') @ torch.ones(2).double().cuda()", "same dtype"),
        ("print(waits(lambda: torch.ones(2, device='cuda').sum().item()))", "<string>:1"),
    ],
)
def test_a_pretended_gpu_finds_mistakes(pretended_gpu, mistake, message):
    start = "import sys; sys.path[:0] = ['tests', 'benchmarks']; import torch; from gpu_parity import waits; "
    start += "from pretended_gpu import PretendedGpu, pretend; gpu = PretendedGpu(); pretend(gpu); gpu.__enter__(); "
    done = pretending(pretended_gpu, "-c", start + mistake)
    assert message in done.stdout + done.stderr


def pretending(library: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, *words, LD_PRELOAD=str(library), PYTHONPATH=".")


def stored(hours: float, when: str) -> dict[str, Any]:
    side = {"hours": hours, "peak_gib": 80.0, "clips": 40, "audio_seconds": 640.0}
    row = {"name": "a step", "ours": side, "stock": {**side, "hours": 500.0}}
    machine = {"processor": "x", "cores": 16, "threads": 16, "torch": "2.13.0", "budget": 640.0}
    message = {**machine, "gpu": "NVIDIA H200", "when": when, "commit": None}
    return gpu_results.as_result({"full step on the mix": [row]}, message, False)


def test_what_moved_since_the_last_time_is_reported(tmp_path, capsys):
    gpu.store(stored(1000.0, "2026-11-20T10:00:00"), tmp_path)
    gpu.store(stored(1500.0, "2026-11-21T10:00:00"), tmp_path)
    message = capsys.readouterr().out
    assert "+50%" in message
    assert {path.name for path in tmp_path.iterdir()} == {
        f"nvidia_h200_16_cores_torch_2.13_2026-11-{day}.json" for day in (20, 21)
    }


def test_it_needs_no_package_beside_torch_and_transformers():
    absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); sys.path.insert(0, 'benchmarks'); import gpu"
    done = run(sys.executable, "-c", absent, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_it_says_what_to_do():
    done = run(sys.executable, "benchmarks/gpu.py", PYTHONPATH=".", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "--device cpu" in done.stderr


def test_a_wrong_number_is_reported_and_nan_is_wrong():
    assert gpu_parity.judged("x", 0.1, None, 0.2)["verdict"] == "same"
    assert gpu_parity.judged("x", 0.3, 0.1, 0.2)["verdict"] == "DIFFERENT"
    largest = gpu_parity.largest([0.1, float("nan"), 0.2])
    assert gpu_parity.judged("x", largest, None, 0.2)["verdict"] == "DIFFERENT"
    assert gpu_parity.largest([0.1, 0.3, 0.2]) == pytest.approx(0.3)
    one = torch.tensor([3.0, 4.0])
    assert gpu_parity.error(one + torch.tensor([0.0, 0.5]), one) == pytest.approx(0.1)


def test_packed_attention_of_rows_that_mix_would_be_found(monkeypatch):
    setting = gpu.setting_of(arguments())

    def mixing(q, k, v, segments, causal, key_segments):
        return gpu_parity.plain_attention(q, k, v, causal)

    monkeypatch.setattr(gpu_parity, "packed_attention", mixing)
    rows = list(gpu_parity.attention_rows(setting))
    assert len(rows) == 8
    assert all(row["verdict"] == "DIFFERENT" for row in rows)


def test_a_section_that_fails_is_one_line_and_a_late_one_is_left_out(capsys):
    def broken(setting):
        yield {"name": "first", "times": 2.0}
        raise ValueError("no such\nthing")

    setting = gpu.setting_of(arguments())
    rows = gpu.run(gpu.Section("broken", broken, 1), setting)
    assert [row.get("verdict") for row in rows] == [None, "failed: ValueError: no such"]
    assert len(capsys.readouterr().out.splitlines()) == 2
    late = gpu.setting_of(arguments(minutes=0.0))
    assert gpu.run(gpu.Section("broken", broken, 1), late)[0]["verdict"] == "left out: no time is left"


def arguments(minutes: float = 1.0):
    return SimpleNamespace(device="cpu", size="miniature", quick=True, minutes=minutes, budget=None)


def test_the_first_size_that_fits():

    def action(count):
        if count > 3:
            raise torch.OutOfMemoryError("no memory")
        return f"{count} fit"

    assert gpu_timing.first_that_fits((8, 4, 2, 1), action, torch.device("cpu")) == (2, "2 fit")
    with pytest.raises(torch.OutOfMemoryError):
        gpu_timing.first_that_fits((8, 4), action, torch.device("cpu"))


def test_a_machine_without_git_is_reported_of_too(monkeypatch):
    monkeypatch.setenv("PATH", "")
    message = gpu.facts(gpu.setting_of(arguments()))
    assert message["torch"] == torch.__version__
    assert message["dtype"] == "float32"
