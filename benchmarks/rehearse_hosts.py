"""Rehearse runs on several machines with hosts in network namespaces of this one (root): engines, faults, slow wires.

    benchmarks/rehearse_hosts.sh [CASE ...] [--folder DIR]      # all cases, or those that are named; --list

Every case is a launch of a miniature run, compared with the same run in one process, or a fault and what comes of it.
The table at the end: case, engine, hosts x processes, whether the losses are those of one process (or of the run
without the fault), and the seconds from the fault to the end of the last process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hosts import Command, Hosts, NoHostsError, explain_no_hosts, wait_until

PATIENCE = 600.0  # seconds for a launch
ROUNDING = 2e-4  # of losses, relative: sums in another order
FAULT_SECONDS = 60.0  # until every process has to be gone
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
ENDLESS = ("stages.0.steps=100000", "train.save_every=5", "train.keep_last=2")


class RehearsalError(Exception):
    """A case did not go as it must."""


@dataclass(frozen=True)
class Result:
    """A row of the table."""

    engine: str
    hosts: str
    exact: str
    seconds: float | None = None
    note: str = ""


def read_records(run_dir: Path) -> list[dict[str, object]]:
    file = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def read_losses(run_dir: Path) -> dict[int, float]:
    """Return the loss of every step."""
    return {int(str(row["step"])): float(str(row["loss"])) for row in read_records(run_dir) if "loss" in row}


def require(condition: object, what: str) -> None:
    if not condition:
        raise RehearsalError(what)


class Rehearsal:
    """Two hosts, a miniature run, and the losses of one process to compare with."""

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        self.folder, self.hosts = folder, hosts
        self.config = folder / "run" / "run.yaml"
        if not self.config.is_file():
            from miniature_run import write_miniature_run  # seconds to import

            write_miniature_run(self.config.parent)

    def train_alone(self) -> dict[int, float]:
        """Return the losses of one process, which trains once for all cases."""
        run_dir = self.folder / "one"
        if not read_losses(run_dir):
            command = [sys.executable, "-m", "uniaudio", "train", str(self.config), f"output_dir={run_dir}"]
            done = subprocess.run(command, capture_output=True, text=True)
            require(done.returncode == 0, done.stderr[-2000:])
        return read_losses(run_dir)

    def launch(
        self,
        engine: str,
        name: str,
        *overrides: str,
        processes: int = 1,
        machines: Sequence[int] = (0, 1),
        rendezvous: str = "static",
        configs: Sequence[Path] = (),
        environments: Sequence[dict[str, str]] = ({}, {}),
        run_dirs: Sequence[Path] = (),
    ) -> list[Command]:
        """Start ``uniaudio launch`` on hosts.

        Args:
            name: of the run folder. configs, environments, run_dirs: of each host, where they differ.
        """
        commands = []
        for number, host in enumerate(machines):
            run_dir = run_dirs[number] if run_dirs else self.folder / name
            config = configs[number] if configs else self.config
            words = ["-m", "uniaudio", "launch", engine, str(config), f"output_dir={run_dir}", *overrides]
            words += ["-n", str(processes)]
            if len(machines) > 1:
                words += ["--machines", str(len(machines)), "--rank", str(number)]
                words += ["--address", f"host{machines[0]}", "--rendezvous", rendezvous]
            commands.append(self.hosts.start(host, words, **environments[number]))
        return commands

    def finish(self, commands: Sequence[Command], code: int = 0) -> None:
        """Wait for launches and require their exit code."""
        for command in commands:
            ended = command.wait(PATIENCE)
            require(ended == code, f"{command.output} ended with {ended}:\n{command.text[-3000:]}")

    def compare(self, run_dir: Path, expected: dict[int, float]) -> str:
        """Return how exactly the losses of a run are the expected ones, and check its checkpoints.

        Raises:
            RehearsalError: when they are not.
        """
        losses = read_losses(run_dir)
        require(losses.keys() == expected.keys(), f"steps {sorted(losses)} instead of {sorted(expected)}")
        differences = [abs(losses[step] / loss - 1) for step, loss in expected.items()]
        worst = max(differences)
        require(worst <= ROUNDING, f"losses differ by {worst:.1e}: {losses} instead of {expected}")
        saved = [row["step"] for row in read_records(run_dir) if row.get("event") == "saved"]
        require(len(saved) == len(set(saved)), f"checkpoints written twice: {saved}")
        return "yes" if worst == 0 else f"to {worst:.0e}"

    def wait_for_step(self, run_dir: Path, step: int, commands: Sequence[Command]) -> None:
        """Wait until a run has done so many steps."""
        begun = wait_until(
            lambda: step in read_losses(run_dir) or any(command.is_over() for command in commands), PATIENCE
        )
        over = [command for command in commands if command.is_over()]
        require(begun is not None and not over, "\n".join(c.text[-2000:] for c in over) or "no step was done")

    def require_end(self, commands: Sequence[Command], what: str, since: float, code: int = 1) -> float:
        """Wait until launches and their ranks are gone, and require one sentence.

        Args:
            what: is part of the sentence. since: when the fault was, in monotonic seconds.

        Returns:
            Seconds from the fault to the end.
        """
        for command in commands:
            ended = command.wait(max(FAULT_SECONDS + since - time.monotonic(), 0.1))
            require(
                ended is not None,
                f"{command.output} still runs {FAULT_SECONDS:g} s after the fault:\n{command.text}",
            )
            require(not command.find_processes(), f"{command.output}: a process is left")
            require(
                ended == code,
                f"{command.output} ended with {ended} instead of {code}:\n{command.text[-3000:]}",
            )
            require(
                any(what in line for line in command.sentences),
                f"{command.output}: no sentence '{what}' in:\n{command.text[-3000:]}",
            )
            require(
                "Traceback" not in command.text, f"{command.output}: a traceback:\n{command.text[-3000:]}"
            )
        return time.monotonic() - since


def run_engine(engine: str, processes: int = 1, rendezvous: str = "static") -> Callable[[Rehearsal], Result]:
    """A case: losses of two hosts equal those of one process."""

    def run(rehearsal: Rehearsal) -> Result:
        name = f"{engine}-{rendezvous}-{processes}"
        expected = rehearsal.train_alone()
        rehearsal.finish(rehearsal.launch(engine, name, processes=processes, rendezvous=rendezvous))
        exact = rehearsal.compare(rehearsal.folder / name, expected)
        return Result(engine, f"2x{processes}", exact, note=rendezvous)

    return run


def resume_elsewhere(machines: Sequence[int], processes: int) -> Callable[[Rehearsal], Result]:
    """A case: a run of two hosts under ZeRO-2 goes on under DDP with other processes."""

    def run(rehearsal: Rehearsal) -> Result:
        expected, stopped = rehearsal.train_alone(), rehearsal.folder / "stopped"
        if not stopped.is_dir():
            rehearsal.finish(rehearsal.launch("zero2", "stopped", "train.max_steps=2"))
        name = f"resumed-{len(machines)}x{processes}"
        shutil.rmtree(rehearsal.folder / name, ignore_errors=True)
        shutil.copytree(stopped, rehearsal.folder / name)
        commands = rehearsal.launch("ddp", name, "--resume", processes=processes, machines=machines)
        rehearsal.finish(commands)
        exact = rehearsal.compare(rehearsal.folder / name, expected)
        return Result("zero2, ddp", f"2x1, {len(machines)}x{processes}", exact)

    return run


def run_without_shared_folder(rehearsal: Rehearsal) -> Result:
    """Host 1 has a run folder of its own: the run says what to copy, and goes on where that was done."""
    expected = rehearsal.train_alone()
    folders = [rehearsal.folder / f"host{number}" / "unshared" for number in (0, 1)]
    commands = rehearsal.launch("zero2", "", "train.max_steps=2", run_dirs=folders)
    rehearsal.finish(commands)
    require("host1 does not see" in commands[0].text, commands[0].text)
    commands = rehearsal.launch("zero2", "", "--resume", "auto", run_dirs=folders)
    rehearsal.require_end(commands, "copy the run folder there", time.monotonic() + PATIENCE, code=2)
    shutil.copytree(folders[0], folders[1], dirs_exist_ok=True)
    rehearsal.finish(rehearsal.launch("zero2", "", "--resume", "auto", run_dirs=folders))
    return Result("zero2", "2x1", rehearsal.compare(folders[0], expected), note="copied before the resume")


def kill_host(
    when: str, *overrides: str, engine: str = "ddp", launcher_alone: bool = False
) -> Callable[[Rehearsal], Result]:
    """A case: host 1 (or its launcher alone) is killed in a step, in a checkpoint or in an evaluation."""

    def run(rehearsal: Rehearsal) -> Result:
        name = f"killed-{when}-{engine}{'-launcher' * launcher_alone}"
        run_dir = rehearsal.folder / name
        commands = rehearsal.launch(engine, name, *ENDLESS, *overrides)
        rehearsal.wait_for_step(run_dir, 3, commands)
        if when == "checkpoint":
            require(
                wait_until(lambda: any((run_dir / "checkpoints").glob(".unfinished-*")), 60) is not None,
                "no checkpoint is written",
            )
        since = time.monotonic()
        if launcher_alone:
            os.kill(commands[1].launcher, signal.SIGKILL)
        else:
            commands[1].kill()
        seconds = rehearsal.require_end(commands[:1], "--resume", since)
        require(wait_until(lambda: not commands[1].find_processes(), 10) is not None, "an orphan is left")
        return Result(engine, "2x1", "-", seconds, commands[0].sentences[0][:90])

    return run


def requeue_after_kill(rehearsal: Rehearsal) -> Result:
    """Both hosts are killed after a checkpoint; ``--resume auto``, the line of the first start, goes on exactly."""
    expected = rehearsal.train_alone()
    run_dir = rehearsal.folder / "requeued"
    commands = rehearsal.launch("ddp", "requeued", "--resume", "auto")
    rehearsal.wait_for_step(run_dir, 2, commands)
    for command in commands:
        command.kill()
    rehearsal.finish(rehearsal.launch("ddp", "requeued", "--resume", "auto"))
    return Result("ddp", "2x1", rehearsal.compare(run_dir, expected), note="killed at step 2 or 3")


def cut_wire(seconds: float | None, engine: str = "ddp") -> Callable[[Rehearsal], Result]:
    """A case: the wire is cut for some seconds, or for good."""

    def run(rehearsal: Rehearsal) -> Result:
        name = f"cut-{seconds}"
        run_dir = rehearsal.folder / name
        commands = rehearsal.launch(engine, name, *ENDLESS)
        rehearsal.wait_for_step(run_dir, 3, commands)
        rehearsal.hosts.unplug(1)
        since = time.monotonic()
        if seconds is None:
            try:
                ended = rehearsal.require_end(commands, "no sign of life", since)
            finally:
                rehearsal.hosts.plug(1)
            return Result(engine, "2x1", "-", ended, commands[0].sentences[0][:90])
        time.sleep(seconds)
        rehearsal.hosts.plug(1)
        step = max(read_losses(run_dir))
        rehearsal.wait_for_step(run_dir, step + 3, commands)
        took = time.monotonic() - since
        for command in commands:
            command.kill()
        return Result(engine, "2x1", "-", note=f"goes on; three more steps {took:.1f} s after the cut")

    return run


def refuse_difference(rehearsal: Rehearsal, name: str, what: Sequence[str], **launch: object) -> Result:
    """Launch with a difference between the hosts and require that both end with the same sentence."""
    since = time.monotonic()
    commands = rehearsal.launch("ddp", name, **launch)  # type: ignore[arg-type]
    seconds = rehearsal.require_end(commands, what[0], since + PATIENCE, code=2) + PATIENCE
    for words in what[1:]:
        require(words in commands[0].text, f"'{words}' is missing in {commands[0].text[-1500:]}")
    require(not read_losses(rehearsal.folder / name), "a step was done")
    return Result(
        "ddp", "2x1", "-", seconds, "from the start of the launch: " + commands[0].sentences[0][:160]
    )


def refuse_other_recipe(rehearsal: Rehearsal) -> Result:
    """Another weight of a template's file on host 1."""
    other = rehearsal.folder / "other-recipe"
    shutil.copytree(rehearsal.config.parent, other, dirs_exist_ok=True)
    template = other / "note.yaml"
    template.write_text(template.read_text().replace("Which note", "What note"))
    configs = (rehearsal.config, other / "run.yaml")
    return refuse_difference(
        rehearsal, "recipe", ["files.template note.yaml", "Which", "What"], configs=configs
    )


def refuse_other_data(rehearsal: Rehearsal) -> Result:
    """A row less on host 1."""
    other = rehearsal.folder / "other-data"
    shutil.copytree(rehearsal.config.parent, other, dirs_exist_ok=True)
    manifest = other / "notes" / "manifest.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[1:]))
    configs = (rehearsal.config, other / "run.yaml")
    return refuse_difference(rehearsal, "data", ["the data of process 0", "48 and 47"], configs=configs)


def refuse_missing_data(rehearsal: Rehearsal) -> Result:
    """No data on host 1."""
    other = rehearsal.folder / "missing-data"
    shutil.copytree(rehearsal.config.parent, other, dirs_exist_ok=True)
    shutil.rmtree(other / "notes", ignore_errors=True)
    configs = (rehearsal.config, other / "run.yaml")
    return refuse_difference(rehearsal, "missing", ["notes"], configs=configs)


def refuse_other_code(rehearsal: Rehearsal) -> Result:
    """Another state of the package on host 1, and another version of one that it uses."""
    source = Path(__file__).resolve().parents[1]
    other = rehearsal.folder / "other-code"
    for part in ("uniaudio", "configs"):
        shutil.copytree(
            source / part, other / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    with (other / "uniaudio" / "units.py").open("a") as stream:
        stream.write("# another state\n")
    info = other / "deepspeed-0.0.1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.0.1\n")
    environments: tuple[dict[str, str], ...] = ({}, {"PYTHONPATH": str(other)})
    what = ["software.uniaudio is", "software.deepspeed is", "0.0.1"]
    return refuse_difference(rehearsal, "code", what, environments=environments)


def run_with_clocks_apart(rendezvous: str) -> Callable[[Rehearsal], Result]:
    """A case: the clock of host 1 is an hour ahead."""

    def run(rehearsal: Rehearsal) -> Result:
        expected = rehearsal.train_alone()
        folder = rehearsal.folder / "clock"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(CLOCK_AHEAD)
        ahead = {"PYTHONPATH": f"{folder}:{os.environ['PYTHONPATH']}"}
        name = f"clocks-{rendezvous}"
        rehearsal.finish(rehearsal.launch("ddp", name, environments=({}, ahead), rendezvous=rendezvous))
        exact = rehearsal.compare(rehearsal.folder / name, expected)
        return Result("ddp", "2x1", exact, note=f"{rendezvous}, host 1 an hour ahead")

    return run


def run_on_slow_wire(engine: str) -> Callable[[Rehearsal], Result]:
    """A case: 100 Mbit/s and 50 ms there and back, against a fast wire and what bytes and bandwidth predict."""

    def run(rehearsal: Rehearsal) -> Result:
        times, sent = {}, 0
        for kind in ("fast", "slow"):
            name = f"wire-{kind}-{engine}"
            run_dir = rehearsal.folder / name
            commands = rehearsal.launch(engine, name, "stages.0.steps=100000", "train.save_every=1000000")
            rehearsal.wait_for_step(run_dir, 3, commands)
            if kind == "slow":
                rehearsal.hosts.slow_down(100, 25)
            first = max(read_losses(run_dir)) + 1
            begin = time.monotonic()
            rehearsal.wait_for_step(run_dir, first + 10, commands)
            times[kind] = (time.monotonic() - begin) / 11
            (stage,) = [row for row in read_records(run_dir) if row.get("event") == "stage"]
            sent = 4 * int(str(stage["trained"]))
            for command in commands:
                command.kill()
            rehearsal.hosts.speed_up()
        # a ring of two sends every gradient once in each direction: 2 (N-1)/N x 4 P
        plan = sent * 8 / 100e6
        note = (
            f"step {times['fast']:.2f} s, slow {times['slow']:.2f} s; {sent / 1e6:.2f} MB at 100 Mbit/s: {plan:.2f} s, "
            f"the rest is latency: {(times['slow'] - times['fast'] - plan) / 0.05:.0f} round trips of 50 ms"
        )
        return Result(engine, "2x1", "-", note=note)

    return run


def start_many_ranks(processes: int) -> Callable[[Rehearsal], Result]:
    """A case: many ranks over a recipe with fewer shards than ranks; the steps and examples are those of one."""

    def run(rehearsal: Rehearsal) -> Result:
        name, micro = f"ranks-{processes}", f"train.micro_batches={processes}"
        steps = ("stages.0.steps=2", micro, "stages.0.budget.audio_seconds=2")
        begin = time.monotonic()
        commands = rehearsal.launch("ddp", name, *steps, processes=processes, machines=(0,))
        run_dir = rehearsal.folder / name
        rehearsal.wait_for_step(run_dir, 1, commands)
        seconds = time.monotonic() - begin
        rehearsal.finish(commands)
        rows = [row for row in read_records(run_dir) if "ids" in row]
        for row in rows:
            drawn = [each for step in row["ids"] for each in step]  # type: ignore[attr-defined]
            require(len(drawn) == len(set(drawn)), f"read twice: {drawn}")
        return Result("ddp", f"1x{processes}", "-", seconds, "to the first step; nothing read twice")

    return run


CASES: dict[str, Callable[[Rehearsal], Result]] = {
    "ddp": run_engine("ddp"),
    "ddp-c10d": run_engine("ddp", rendezvous="c10d"),
    "zero1": run_engine("zero1", rendezvous="c10d"),
    "zero2": run_engine("zero2"),
    "zero3": run_engine("zero3"),
    "fsdp2": run_engine("fsdp2"),
    "ddp-2x2": run_engine("ddp", 2),
    "zero2-2x2": run_engine("zero2", 2),
    "resume-one": resume_elsewhere((0,), 1),
    "resume-two": resume_elsewhere((0, 1), 1),
    "resume-four": resume_elsewhere((0, 1), 2),
    "no-shared-folder": run_without_shared_folder,
    "kill-step": kill_host("step"),
    "kill-launcher": kill_host("step", launcher_alone=True),
    "kill-checkpoint": kill_host("checkpoint", engine="zero2"),
    "kill-evaluation": kill_host("evaluation", "train.evaluate_every=1"),
    "requeue": requeue_after_kill,
    "cut-5s": cut_wire(5.0),
    "cut-for-good": cut_wire(None),
    "other-recipe": refuse_other_recipe,
    "other-data": refuse_other_data,
    "missing-data": refuse_missing_data,
    "other-code": refuse_other_code,
    "clocks-static": run_with_clocks_apart("static"),
    "clocks-c10d": run_with_clocks_apart("c10d"),
    "slow-wire-ddp": run_on_slow_wire("ddp"),
    "slow-wire-zero2": run_on_slow_wire("zero2"),
    "ranks-8": start_many_ranks(8),
    "ranks-16": start_many_ranks(16),
}


def print_header() -> None:
    print(f"{'case':18} {'engine':10} {'hosts':9} {'exact':9} {'seconds':>7}  note", flush=True)


def print_row(case: str, result: Result) -> None:
    ended = "" if result.seconds is None else f"{result.seconds:.0f}"
    print(
        f"{case:18} {result.engine:10} {result.hosts:9} {result.exact:9} {ended:>7}  {result.note}",
        flush=True,
    )


def run_cases(
    description: str | None,
    cases: Iterable[str],
    run_case: Callable[[str, Path], Result],
    explain_missing: Callable[[], str],
) -> int:
    """Rehearse the cases that the command line names, or all, and print the table; return the exit status.

    Args:
        run_case: of the name of a case and the folder to work in.
        explain_missing: why nothing can run here; an empty text where it can.
    """
    names = list(cases)
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(names))
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--folder", type=Path, help="keep run folders and outputs here")
    options = parser.parse_args()
    if options.list:
        print("\n".join(names))
        return 0
    if unknown := set(options.cases) - set(names):
        parser.error(f"there is no case {', '.join(sorted(unknown))}; see --list")
    if reason := explain_missing():
        print(f"skipped: {reason}")
        return 0
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        print_header()
        for case in options.cases or names:
            try:
                print_row(case, run_case(case, folder))
            except (RehearsalError, NoHostsError) as problem:
                is_skipped = str(problem).startswith("skipped")
                failed += not is_skipped
                print(f"{case:18} {'SKIPPED' if is_skipped else 'FAILED'}: {problem}", flush=True)
    return int(failed > 0)


def rehearse_case(case: str, folder: Path) -> Result:
    with Hosts(2, folder) as hosts:
        return CASES[case](Rehearsal(folder, hosts))


if __name__ == "__main__":
    sys.exit(run_cases(__doc__, CASES, rehearse_case, explain_no_hosts))
