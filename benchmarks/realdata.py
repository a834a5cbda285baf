"""The first real run: train on real recordings, ask the test splits, probe before and after. Ten minutes on two cores.

    python benchmarks/realdata.py [--out runs/realdata] [key.sub=value ...]

Needs the folder of recordings (UNIAUDIO_REALDATA). Prints tables; the last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
import transformers

from uniaudio.assemble.judging import run_evaluation
from uniaudio.assemble.probing import run_probes
from uniaudio.assemble.reporting import Wanted, report_runs
from uniaudio.assemble.training import run_training
from uniaudio.config.files import realdata_root
from uniaudio.config.run import load_run
from uniaudio.errors import UserError

LABELLED = ("esc10", "fsdd_digits")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/realdata"))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    root = realdata_root()
    if root is None:
        raise SystemExit("no folder of real recordings: set UNIAUDIO_REALDATA")
    config = load_run("configs/realdata.yaml", [f"output_dir={arguments.out}", *arguments.overrides])
    started = time.monotonic()
    try:
        code = run_training(config, None)
    except UserError as mistake:
        raise SystemExit(str(mistake)) from mistake
    if code:
        raise SystemExit(code)
    trained = time.monotonic()
    answers = run_evaluation(str(arguments.out), None, arguments.out / "answers.json", None)
    before = config.encoders["whisper"].path
    data = [f"{name}={root / name}" for name in LABELLED]
    probes = run_probes(
        [before, str(arguments.out), f"random:{before}"], data, arguments.out / "probes.json", seeds=3
    )
    print(f"report: {report_runs([arguments.out], None, Wanted())}")
    names = dict(
        zip([before, str(arguments.out), f"random:{before}"], ("before", "after", "random"), strict=True)
    )
    result = {
        "training_minutes": round((trained - started) / 60, 1),
        "all_minutes": round((time.monotonic() - started) / 60, 1),
        "answers": {
            name: {key: r[key] for key in ("metric", "score", "right", "loss", "examples")}
            for name, r in answers.items()
        },
        "probes": {s: {names[model]: r for model, r in models.items()} for s, models in probes.items()},
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
