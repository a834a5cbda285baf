"""Rehearse runs on several machines with hosts in network namespaces of this one (root): engines, faults, slow wires.

    benchmarks/rehearse_hosts.sh [CASE ...] [--folder DIR] [--parallel N]      # all cases, or those named; --list

Every case is a launch of a miniature run, compared with the same run in one process, or a fault and what comes of it.
The table: case, engine, hosts x processes, whether the losses are those of one process (or of the run without the
fault), the seconds from the fault to the end of the last process, and the seconds of the case.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from host_runs import ENDLESS, FAULT_SECONDS, PATIENCE, Rehearsal
from hosts import explain_no_hosts, wait_until
from rehearsal import Result, read_losses, read_records, require, run_cases

STOPPED = 75  # exit code of a run that was stopped in order
CHECKPOINT = 4  # a step with one
MANY = 16  # micro-batches of the run of many ranks
# as a module that Python imports at its start: libfaketime also makes `time.sleep` fail
CLOCK_AHEAD = """
import datetime
import time

SECONDS = 3600


class Ahead(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=SECONDS)


# pickled, it is the class of the other machines
Ahead.__module__, Ahead.__name__, Ahead.__qualname__ = "datetime", "datetime", "datetime"
read_seconds, read_nanoseconds = time.time, time.time_ns
time.time = lambda: read_seconds() + SECONDS
time.time_ns = lambda: read_nanoseconds() + SECONDS * 10**9
datetime.datetime = Ahead
"""
Case = Callable[[Rehearsal], Result]


def run_engine(engine: str, processes: int = 1, rendezvous: str = "static") -> Case:
    """A case: losses of two hosts equal those of one process."""

    def run(rehearsal: Rehearsal) -> Result:
        run_dir = rehearsal.make_folder(f"{engine}-{rendezvous}-{processes}")
        rehearsal.finish(rehearsal.launch(engine, run_dir, processes=processes, rendezvous=rendezvous))
        return Result(
            engine, f"2x{processes}", rehearsal.compare(run_dir, rehearsal.train_alone()), note=rendezvous
        )

    return run


def stop_in_order(rehearsal: Rehearsal, engine: str, run_dir: Path, seen: Path) -> None:
    """Start a run on two hosts, and stop it after its first checkpoint with SIGTERM at one of them.

    Args:
        seen: ``run_dir`` as this machine sees it.
    """
    commands = rehearsal.launch(engine, run_dir)
    rehearsal.wait_for_step(seen, CHECKPOINT, commands)
    commands[1].terminate()
    rehearsal.finish(commands, STOPPED)


def resume_elsewhere(machines: Sequence[int], processes: int) -> Case:
    """A case: a run of two hosts under ZeRO-2, stopped by SIGTERM, goes on under DDP with other processes."""

    def run(rehearsal: Rehearsal) -> Result:
        stopped = rehearsal.folder / "stopped"
        if not any(row.get("event") == "stopped" for row in read_records(stopped)):
            stop_in_order(rehearsal, "zero2", rehearsal.make_folder("stopped"), stopped)
        run_dir = rehearsal.make_folder(f"resumed-{len(machines)}x{processes}")
        shutil.copytree(stopped, run_dir)
        commands = rehearsal.launch("ddp", run_dir, "--resume", processes=processes, machines=machines)
        rehearsal.finish(commands)
        exact = rehearsal.compare(run_dir, rehearsal.train_alone())
        return Result("zero2, ddp", f"2x1, {len(machines)}x{processes}", exact)

    return run


def run_without_shared_folder(rehearsal: Rehearsal) -> Result:
    """Each host has a run folder of its own: the run says what to copy, and goes on where that was done."""
    hosts, run_dir = rehearsal.hosts, rehearsal.hosts.private / "run"
    first, second = (hosts.find_private(number) / "run" for number in (0, 1))
    stop_in_order(rehearsal, "zero2", run_dir, first)
    require("host1 does not see" in hosts.commands[-2].text, hosts.commands[-2].text)
    require("copy that folder" in hosts.commands[-2].text, hosts.commands[-2].text)
    require(not any(second.glob("checkpoints/*/*")), f"host 1 wrote {sorted(second.glob('checkpoints/*'))}")
    commands = rehearsal.launch("zero2", run_dir, "--resume", "auto")
    rehearsal.require_end(commands, "copy the run folder there", time.monotonic(), 2, PATIENCE)
    shutil.copytree(first, second, dirs_exist_ok=True)
    rehearsal.finish(rehearsal.launch("zero2", run_dir, "--resume", "auto"))
    return Result(
        "zero2", "2x1", rehearsal.compare(first, rehearsal.train_alone()), note="refused until copied"
    )


def kill_host(engine: str, when: Callable[[Path], bool], launcher_alone: bool = False) -> Case:
    """A case: host 1, or its launcher alone, is killed.

    Args:
        when: the time has come, by the run folder.
    """

    def run(rehearsal: Rehearsal) -> Result:
        run_dir, commands = rehearsal.take_endless(engine)
        rehearsal.wait_for(lambda: when(run_dir), "at the moment of the fault", commands)
        since = time.monotonic()
        if launcher_alone:
            os.kill(commands[1].launcher, signal.SIGKILL)
            left = commands[1].wait(FAULT_SECONDS)
            require(left is not None, f"a process of host1 outlives its launcher:\n{commands[1].text}")
        else:
            commands[1].kill()
        seconds = rehearsal.require_end(commands[:1], "--resume", since)
        return Result(engine, "2x1", "-", seconds, commands[0].sentences[0][:90])

    return run


def is_saving(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob(".unfinished-*"))


def is_stepping(run_dir: Path) -> bool:
    return not is_saving(run_dir)


def kill_in_evaluation(rehearsal: Rehearsal) -> Result:
    """Host 1 is killed while both evaluate."""
    run_dir = rehearsal.make_folder("killed-in-evaluation")
    commands = rehearsal.launch("ddp", run_dir, *ENDLESS, "train.evaluate_every=1")
    rehearsal.wait_for_step(run_dir, 2, commands)
    # a step is logged, then evaluated, and the evaluation is logged
    rehearsal.wait_for(lambda: "loss" in read_records(run_dir)[-1], "evaluating", commands)
    since = time.monotonic()
    commands[1].kill()
    require("loss" in read_records(run_dir)[-1], "the evaluation was over")
    seconds = rehearsal.require_end(commands[:1], "--resume", since)
    return Result("ddp", "2x1", "-", seconds, commands[0].sentences[0][:90])


def requeue_after_kill(rehearsal: Rehearsal) -> Result:
    """Both hosts are killed after a checkpoint; ``--resume auto``, the line of the first start, goes on exactly."""
    run_dir = rehearsal.make_folder("requeued")
    commands = rehearsal.launch("ddp", run_dir, "--resume", "auto")
    rehearsal.wait_for_step(run_dir, CHECKPOINT + 1, commands)
    for command in commands:
        command.kill()
    step = max(read_losses(run_dir))
    rehearsal.finish(rehearsal.launch("ddp", run_dir, "--resume", "auto"))
    exact = rehearsal.compare(run_dir, rehearsal.train_alone())
    return Result("ddp", "2x1", exact, note=f"killed after step {step}")


def cut_shortly(rehearsal: Rehearsal) -> Result:
    """The wire is cut for 5 s: the run goes on."""
    run_dir, commands = rehearsal.take_endless("ddp")
    rehearsal.hosts.unplug(1)
    since = time.monotonic()
    time.sleep(5)
    step = max(read_losses(run_dir))
    rehearsal.hosts.plug(1)
    rehearsal.wait_for_step(run_dir, step + 3, commands)
    took = time.monotonic() - since
    rehearsal.endless["ddp"] = run_dir, commands
    return Result("ddp", "2x1", "-", note=f"goes on; three more steps {took:.1f} s after the cut")


def cut_for_good(rehearsal: Rehearsal) -> Result:
    """The wire is cut and stays so: both hosts end."""
    _, commands = rehearsal.take_endless("ddp")
    rehearsal.hosts.unplug(1)
    since = time.monotonic()
    try:
        seconds = rehearsal.require_end(commands, "no sign of life", since)
    finally:
        rehearsal.hosts.plug(1)
    return Result("ddp", "2x1", "-", seconds, commands[0].sentences[0][:90])


def refuse_difference(
    what: Sequence[str], make_other: Callable[[Rehearsal, Path], dict[str, Sequence[object]]]
) -> Case:
    """A case: a difference of the hosts, which both refuse at the start with the same sentence.

    Args:
        what: words of that sentence. make_other: makes what is different, in a folder, and returns what ``launch``
            takes for it.
    """

    def run(rehearsal: Rehearsal) -> Result:
        run_dir = rehearsal.make_folder(make_other.__name__)
        launch = make_other(rehearsal, rehearsal.make_folder(f"{make_other.__name__}-files"))
        since = time.monotonic()
        commands = rehearsal.launch("ddp", run_dir, **launch)  # type: ignore[arg-type]
        seconds = rehearsal.require_end(commands, what[0], since, 2, PATIENCE)
        for words in what[1:]:
            require(words in commands[0].text, f"'{words}' is missing in {commands[0].text[-1500:]}")
        require(not read_losses(run_dir), "a step was done")
        note = "from the launch: " + commands[0].sentences[0][:160]
        return Result("ddp", "2x1", "-", seconds, note)

    return run


def copy_run(rehearsal: Rehearsal, folder: Path) -> dict[str, Sequence[object]]:
    shutil.copytree(rehearsal.config.parent, folder)
    return {"configs": (rehearsal.config, folder / "run.yaml")}


def change_template(rehearsal: Rehearsal, folder: Path) -> dict[str, Sequence[object]]:
    launch = copy_run(rehearsal, folder)
    template = folder / "note.yaml"
    template.write_text(template.read_text().replace("Which note", "What note"))
    return launch


def remove_row(rehearsal: Rehearsal, folder: Path) -> dict[str, Sequence[object]]:
    launch = copy_run(rehearsal, folder)
    manifest = folder / "notes" / "manifest.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[1:]))
    return launch


def remove_data(rehearsal: Rehearsal, folder: Path) -> dict[str, Sequence[object]]:
    launch = copy_run(rehearsal, folder)
    shutil.rmtree(folder / "notes")
    return launch


def change_code(rehearsal: Rehearsal, folder: Path) -> dict[str, Sequence[object]]:
    source = Path(__file__).resolve().parents[1]
    for part in ("uniaudio", "configs"):
        shutil.copytree(source / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "uniaudio" / "units.py").open("a") as stream:
        stream.write("# another state\n")
    return {"environments": ({}, {"PYTHONPATH": str(folder)})}


def change_package(rehearsal: Rehearsal, folder: Path) -> dict[str, Sequence[object]]:
    info = folder / "safetensors-9.9.9.dist-info"  # one that passes transformers' own check
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 9.9.9\n")
    return {"environments": ({}, {"PYTHONPATH": f"{folder}:{os.environ['PYTHONPATH']}"})}


def run_with_clocks_apart(rendezvous: str) -> Case:
    """A case: the clock of host 1 is an hour ahead."""

    def run(rehearsal: Rehearsal) -> Result:
        folder = rehearsal.make_folder(f"clock-{rendezvous}")
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(CLOCK_AHEAD)
        ahead = {"PYTHONPATH": f"{folder}:{os.environ['PYTHONPATH']}"}
        run_dir = rehearsal.make_folder(f"clocks-{rendezvous}")
        rehearsal.finish(rehearsal.launch("ddp", run_dir, environments=({}, ahead), rendezvous=rendezvous))
        exact = rehearsal.compare(run_dir, rehearsal.train_alone())
        return Result("ddp", "2x1", exact, note=f"{rendezvous}, host 1 an hour ahead")

    return run


def run_on_slow_wire(engine: str) -> Case:
    """A case: 100 Mbit/s and 50 ms there and back, against a fast wire and the formulas of ``docs/scaling.md``."""

    def run(rehearsal: Rehearsal) -> Result:
        run_dir, commands = rehearsal.take_endless(engine)
        fast, sent = rehearsal.measure_steps(run_dir, 25, commands)
        rehearsal.hosts.slow_down(100, 25)
        slow, _ = rehearsal.measure_steps(run_dir, 5, commands)
        rehearsal.hosts.speed_up()
        rehearsal.endless[engine] = run_dir, commands
        (stage,) = [row for row in read_records(run_dir) if row.get("event") == "stage"]
        weights = 4 * int(str(stage["trained"]))
        # of two hosts, with two micro-batches on each: 2 (N-1)/N 4 P, and (N-1)/N (m 8 P + 4 P)
        plan = {"ddp": weights, "zero2": 2.5 * weights}[engine]
        seconds = plan * 8 / 100e6
        note = (
            f"a host sends {sent / 1e3:.0f} kB a step, by the formula {plan / 1e3:.0f}: {seconds:.3f} s; step "
            f"{fast:.2f} s, slow {slow:.2f} s: latency of {(slow - fast - seconds) / 0.05:.0f} round trips"
        )
        return Result(engine, "2x1", "-", note=note)

    return run


def start_many_ranks(processes: int) -> Case:
    """A case: many ranks over 50 sources and one with fewer shards than ranks; steps and examples are those of one."""

    def run(rehearsal: Rehearsal) -> Result:
        expected, alone = rehearsal.train_alone("sources"), rehearsal.folder / "sources-alone"
        run_dir = rehearsal.make_folder(f"ranks-{processes}")
        config = rehearsal.folder / "sources" / "run.yaml"
        begin = time.monotonic()
        commands = rehearsal.launch("ddp", run_dir, processes=processes, machines=(0,), configs=[config])
        wait_until(lambda: commands[0].is_over() or bool(read_losses(run_dir)), PATIENCE)
        started = time.monotonic() - begin
        rehearsal.finish(commands)
        exact = rehearsal.compare(run_dir, expected)
        ids, ids_alone = (
            [sorted(row["ids"][0]) for row in read_records(folder) if "ids" in row]  # type: ignore[index]
            for folder in (run_dir, alone)
        )
        require(ids == ids_alone, f"other examples than in one process: {ids} instead of {ids_alone}")
        drawn = [each for step in ids for each in step]
        require(len(drawn) == len(set(drawn)), f"read twice: {sorted(drawn)}")
        note = f"first step {started:.0f} s after the start; {len(drawn)} examples, none twice"
        return Result("ddp", f"1x{processes}", exact, note=note)

    return run


CASES: dict[str, Case] = {
    "slow-wire-ddp": run_on_slow_wire("ddp"),
    "cut-5s": cut_shortly,
    "kill-step": kill_host("ddp", is_stepping),
    "slow-wire-zero2": run_on_slow_wire("zero2"),
    "kill-checkpoint": kill_host("zero2", is_saving),
    "cut-for-good": cut_for_good,
    "kill-launcher": kill_host("ddp", is_stepping, launcher_alone=True),
    "kill-evaluation": kill_in_evaluation,
    "ddp": run_engine("ddp"),
    "ddp-2x2": run_engine("ddp", 2, "c10d"),
    "zero1": run_engine("zero1", rendezvous="c10d"),
    "zero2": run_engine("zero2"),
    "zero2-2x2": run_engine("zero2", 2),
    "zero3": run_engine("zero3", rendezvous="c10d"),
    "fsdp2": run_engine("fsdp2"),
    "fsdp2-2x2": run_engine("fsdp2", 2, "c10d"),
    "resume-one": resume_elsewhere((0,), 1),
    "resume-two": resume_elsewhere((0, 1), 1),
    "resume-four": resume_elsewhere((0, 1), 2),
    "no-shared-folder": run_without_shared_folder,
    "requeue": requeue_after_kill,
    "other-recipe": refuse_difference(["files.template note.yaml", "Which", "What"], change_template),
    "other-data": refuse_difference(["the data of process 0", "48 and 47"], remove_row),
    "missing-data": refuse_difference(["notes"], remove_data),
    "other-code": refuse_difference(["software.uniaudio is", ", files "], change_code),
    "other-package": refuse_difference(["software.safetensors is", "'9.9.9'"], change_package),
    "clocks-static": run_with_clocks_apart("static"),
    "clocks-c10d": run_with_clocks_apart("c10d"),
    "ranks-8": start_many_ranks(8),
    "ranks-16": start_many_ranks(16),
}
# cases that go on with what the one before has started; many ranks last, for they leave the others no time
SHARED = (
    ("slow-wire-ddp", "cut-5s", "kill-step"),
    ("slow-wire-zero2", "kill-checkpoint"),
    ("resume-one", "resume-two", "resume-four"),
    ("ranks-8", "ranks-16"),
)
GROUPS = [*SHARED[:3], *((case,) for case in CASES if not any(case in group for group in SHARED)), SHARED[3]]


if __name__ == "__main__":
    sys.exit(run_cases(__doc__, CASES, Rehearsal, explain_no_hosts, GROUPS, parallel=2))
