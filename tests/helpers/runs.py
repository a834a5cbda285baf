"""Run folders and results files without any training, for the report: of any size, with any names."""

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path

from uniaudio.build.result_fingerprints import fingerprint_checkpoint
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.train.checkpoint.integrity import FileRecord, write_listing

DOMAINS = ("speech", "sound", "music")
PROBES = ("linear", "mlp", "knn")
START = "start/encoder"


def write_rows(file: Path, rows: list, torn: str = "") -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn, encoding="utf-8")


def write_json(file: Path, data) -> Path:
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def training_rows(tasks: list[str], steps: int, every: int, seed: int) -> list[dict]:
    """Losses that fall, each task at its own speed."""
    random.seed(seed)
    rows = [{"event": "stage", "step": 0, "stage": "one", "engine": "ddp", "processes": 2, "trained": 1000}]
    for step in range(every, steps + 1, every):
        losses = {
            task: 4 * math.exp(-(2 + i % 5) * step / steps) + 0.2 + 0.1 * random.random()
            for i, task in enumerate(tasks)
        }
        rows.append(
            {
                "step": step,
                "stage": "one",
                "loss": sum(losses.values()) / len(losses),
                "tasks": losses,
                "accuracy": {},
                "seconds": every * 36.0 / 50.0,
                "audio_seconds": every * 36.0,
                "audio_seconds_per_second": 50.0,
                "data_wait_share": 0.02,
                "memory_gib": 2.5,
            }
        )
        if step % (steps // 4) == 0:
            results = {f"{t}:asked": {"metric": "accuracy", "score": 1 - losses[t] / 5} for t in tasks[:6]}
            rows.append({"event": "evaluation", "step": step, "results": results})
    return rows


def write_run(
    folder: Path,
    tasks: list[str],
    steps: int = 400,
    every: int = 4,
    seed: int = 0,
    finished: bool = True,
    torn: str = "",
) -> Path:
    """A run folder with a config that names no data, a checkpoint's state, and rows of all its tasks."""
    state = folder / "checkpoints" / f"step-{steps:06d}"
    state.mkdir(parents=True)
    rows = training_rows(tasks, steps, every, seed)
    rows.append({"event": "saved", "step": steps, "drawn": {"clips": 40 * steps}})
    if finished:
        rows.append({"event": "finished", "step": steps})
    write_rows(folder / "metrics.jsonl", rows, torn)
    config = {
        "seed": seed,
        "encoders": {"whisper": {"path": START, "lr": 1e-5 * (seed + 1)}},
        "stages": [{"name": "one", "recipe": "nowhere", "steps": steps}],
    }
    (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    message = {
        "step": steps,
        "stage": 0,
        "stage_step": steps,
        "stage_seconds": 36.0 * steps,
        "stage_done": True,
    }
    write_json(state / "state.json", message)
    write_json(state / "bases.json", {"encoder whisper": {"path": START, "sha256": "ab" * 32}})
    write_rows(
        folder / "skipped.jsonl", [{"step": 3, "source": "clips", "key": "7", "reason": "broken audio"}]
    )
    return folder


def probe_scores(sets: list[str], models: list[str], seed: int = 0) -> dict:
    """Scores by set, model and probe: the second model is .05 better on even sets and .06 worse on some odd ones."""
    random.seed(seed)
    scores = {}
    for i, name in enumerate(sets):
        base = 0.5 + 0.4 * random.random()
        moves = [0.0, 0.05 if i % 2 == 0 else -0.06 if i % 5 == 0 else 0.004, -0.3, 0.01]
        scores[name] = {
            model: {probe: {"mean": base + move - 0.03 * p, "std": 0.01} for p, probe in enumerate(PROBES)}
            for model, move in zip(models, moves, strict=False)
        }
    return scores


def write_weights(run: Path, content: bytes) -> str:
    """Give a run's checkpoint made-up weights, so that it is whole; return its fingerprint."""
    (folder,) = (run / "checkpoints").iterdir()
    (folder / "model.safetensors").write_bytes(content)
    for name in ("bases.json", "config.yaml", "optimizer-0-of-1.safetensors"):
        if not (folder / name).exists():
            (folder / name).write_text("{}")
    files = [file for file in folder.iterdir() if file.name != "complete.json"]
    write_listing(folder, {file.name: FileRecord.of(file) for file in files})
    return fingerprint_checkpoint(str(run))


def folder_results(
    sets: list[str], models: list[str], seed: int = 0, fingerprints: Mapping[str, str] = {}
) -> dict:
    """The same as results of labelled folders are stored."""
    facts = {"kind": "clip", "domain": None, "metric": "accuracy", "weight": 1.0, "license": None}
    return {
        "suite": None,
        "protocol": "masked",
        "tasks": dict.fromkeys(sets, facts),
        "scores": probe_scores(sets, models, seed),
        "fingerprints": dict(fingerprints),
    }


def suite_results(sets: list[str], models: list[str], seed: int = 0) -> dict:
    """The same with facts about the sets, as a suite of probes stores them."""
    tasks = {
        name: {
            "kind": "clip",
            "domain": DOMAINS[i % 3],
            "metric": "accuracy",
            "weight": 1.0 + i % 3,
            "license": "CC0-1.0",
            "data_sha256": "cd" * 32,
        }
        for i, name in enumerate(sets)
    }
    return {
        "suite": "made_up",
        "protocol": "masked",
        "tasks": tasks,
        "scores": probe_scores(sets, models, seed),
    }


def answers_of(sets: dict[str, list[str]], count: int = 60, right: float = 0.7, seed: int = 0) -> dict:
    """Answers to sets of labels: so large a share is right, the confidence follows it."""
    random.seed(seed)
    results = {}
    for name, labels in sets.items():
        message = []
        for i in range(count):
            truth = labels[i % len(labels)]
            given = (
                truth
                if random.random() < right
                else random.choice([x for x in labels if x != truth] or labels)
            )
            message.append(
                {
                    "id": f"clips/test/{i}",
                    "reference": truth,
                    "answer": given,
                    "right": given == truth,
                    "label": given,
                    "confidence": 0.9 if given == truth else 0.4,
                }
            )
        share = sum(item["right"] for item in message) / count
        bins = [
            {
                "low": 0.2,
                "high": 0.4,
                "count": round(count * (1 - share)),
                "confidence": 0.4,
                "accuracy": 0.0,
            },
            {"low": 0.8, "high": 1.0, "count": round(count * share), "confidence": 0.9, "accuracy": 1.0},
            {"low": 0.4, "high": 0.6, "count": 0, "confidence": 0.0, "accuracy": 0.0},
        ]
        results[name] = {
            "task": "made_up",
            "metric": "accuracy",
            "score": share,
            "interval": [share - 0.1, min(share + 0.1, 1.0)],
            "right": share,
            "loss": 0.8,
            "examples": count,
            "skipped": [],
            "labels": {"names": labels, "accuracy": share, "map": 0.8, "ece": 0.16, "bins": bins},
            "answers": message,
        }
    return results


def forgetting_results() -> dict:
    """One score matrix, as it is stored."""
    return {
        "probe/linear": {
            "stages": ["start", "speech", "sounds"],
            "sets": ["digits", "esc10", "watched"],
            "scores": [[0.5, 0.8, 0.9], [0.9, 0.75, 0.9], [0.85, 0.88, None]],
            "learned": [1, 2, None],
        }
    }


def with_choices(folder: Path) -> None:
    """Add rows of a fused encoder to a run."""
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if "tasks" in row:
            row["choices"] = {
                task: {"weak/a": 0.25 + 0.5 * (i % 2), "weak/b": 0.75 - 0.5 * (i % 2), "routing entropy": 0.5}
                for i, task in enumerate(row["tasks"])
            }
    write_rows(file, rows)
