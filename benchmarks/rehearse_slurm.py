"""Rehearse ``configs/accelerate/slurm.sh`` under Slurm: three nodes in network namespaces of this machine (root).

    benchmarks/rehearse_slurm.sh [CASE ...] [--folder DIR]      # all cases, or those that are named

The package is built as a wheel and installed into a folder of its own, with which the jobs run; what it needs comes
from the Python that runs this script. The nodes pretend to have the GPUs and cores that the script asks for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from hosts import HERE, NET, Command, Hosts, explain_no_hosts, wait_until
from rehearsal import Result, compare_losses, read_losses, read_records, require, run_cases

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "configs" / "accelerate" / "slurm.sh"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sinfo")
NODES = 3
PATIENCE = 600.0  # seconds for a start
NODE_SECONDS = 20  # without an answer until Slurm takes a node for down; 300 by default
REQUEUE_SECONDS = 10  # until a requeued job may start; 120 by default
CONFIG = """
ClusterName=rehearsal
SlurmctldHost=host0({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue}
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=1
SlurmdTimeout={node}
SlurmctldTimeout=60
InactiveLimit=0
KillWait=30
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def explain_no_slurm() -> str:
    """Return why there can be no Slurm here; an empty text where there can."""
    if reason := explain_no_hosts():
        return reason
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"there is no {', '.join(missing)} here (Debian: slurm-wlm, munge)" if missing else ""


def install_wheel(folder: Path) -> Path:
    """Build the package, install it into an environment without the repository, and return the folder of its programs.

    Raises:
        RehearsalError: with the output of pip.
    """
    environment = folder / "environment"
    programs = environment / "bin"
    if (programs / "uniaudio").is_file():
        return programs
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for words in (
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        [sys.executable, "-m", "venv", "--without-pip", str(environment)],
    ):
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
        require(done.returncode == 0, f"{' '.join(words)}: {done.stderr[-2000:]}")
    (wheel,) = folder.glob("uniaudio-*.whl")
    done = subprocess.run(
        [*pip, "--python", str(programs / "python"), "install", "--no-deps", str(wheel)],
        capture_output=True,
        text=True,
    )
    require(done.returncode == 0, done.stderr[-2000:])
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "rehearsal.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch and the others
    return programs


class Cluster:
    """Slurm on hosts, and its commands.

    Args:
        folder: shared by all nodes.
    """

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        self.folder, self.hosts = folder, hosts
        self.config = folder / "slurm.conf"
        nodes = [
            f"NodeName=host{number} NodeAddr={NET}.{number + 1} CPUs=96 Gres=gpu:8" for number in range(NODES)
        ]
        text = CONFIG.format(
            folder=folder,
            address=f"{NET}.1",
            nodes="\n".join(nodes),
            node=NODE_SECONDS,
            requeue=REQUEUE_SECONDS,
        )
        self.config.write_text(text)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # the other plugin wants a mount
        for number in range(8):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        (folder / "state").mkdir(exist_ok=True)
        self.programs = install_wheel(folder)
        self.nodes: list[Command] = []
        self.munge = self.start_munge()

    def start_munge(self) -> subprocess.Popen[bytes]:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        words = ["munged", "--foreground", "--force", f"--key-file={key}"]
        words += [
            f"--{kind}={self.folder}/munge.{kind.removesuffix('-file')}" for kind in ("socket", "pid-file")
        ]
        words += [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("log", "seed")]
        return subprocess.Popen(words, stderr=(self.folder / "munge.err").open("wb"))

    def __enter__(self) -> Cluster:
        self.start_daemon(0, "slurmctld", "-D", "-c", "-f", str(self.config))
        for number in range(NODES):
            (self.folder / f"host{number}" / "spool").mkdir(parents=True, exist_ok=True)
            self.nodes.append(
                self.start_daemon(number, "slurmd", "-D", "-N", f"host{number}", "-f", str(self.config))
            )
        is_up = wait_until(lambda: self.count_nodes("idle") == NODES, 60)
        require(is_up is not None, f"the nodes do not come up: {self.call('sinfo', '--long')}")
        return self

    def __exit__(self, *exception: object) -> None:
        self.munge.terminate()
        self.munge.wait()

    def start_daemon(self, number: int, *words: str) -> Command:
        return self.hosts.start_program(number, words, SLURM_CONF=str(self.config))

    def call(self, *words: str, **environment: str) -> str:
        """Run a command of Slurm in the network of the first node and return what it prints."""
        enter = ["ip", "netns", "exec", self.hosts.name_space(0)]
        variables = {**os.environ, "SLURM_CONF": str(self.config), **environment}
        done = subprocess.run(
            [*enter, *words], capture_output=True, text=True, env=variables, cwd=self.folder, timeout=60
        )
        require(done.returncode == 0, f"{' '.join(words)}: {done.stderr}")
        return done.stdout.strip()

    def count_nodes(self, state: str) -> int:
        answer = self.call("sinfo", "--noheader", "--Node", f"--states={state}", "--format=%N")
        return len([line for line in answer.splitlines() if line.startswith("host")])

    def submit(self, config: Path, run_dir: Path, *overrides: str, **options: str) -> Job:
        """Submit the script, as a user would from the installed package.

        Args:
            options: of sbatch. Everything else is as the script says.
        """
        script = self.folder / "slurm.sh"
        shutil.copy(SCRIPT, script)
        words = [
            "sbatch",
            "--parsable",
            *(f"--{name}={value}" for name, value in options.items()),
            str(script),
        ]
        words += [str(config), f"output_dir={run_dir}", *overrides, "-n", "1"]
        path = f"{self.programs}:{os.environ['PATH']}"
        return Job(self, self.call(*words, PATH=path, PYTHONPATH=""), run_dir)


class Job:
    """A job of the cluster.

    Args:
        number: as Slurm gave it. run_dir: of its run.
    """

    def __init__(self, cluster: Cluster, number: str, run_dir: Path) -> None:
        self.cluster, self.number, self.run_dir = cluster, number, run_dir

    def read(self, field: str) -> str:
        """Return what ``scontrol show job`` says of a field; an empty text where it says nothing."""
        answer = self.cluster.call("scontrol", "show", "job", self.number)
        match = re.search(rf"\b{field}=(\S*)", answer)
        return match[1] if match else ""

    @property
    def output(self) -> str:
        file = self.cluster.folder / f"slurm-uniaudio-{self.number}.out"
        return file.read_text(errors="replace") if file.is_file() else ""

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> float:
        """Wait for something and return the seconds it took.

        Raises:
            RehearsalError: with the output of the job, when it takes too long or the job has failed.
        """
        begin = time.monotonic()
        while not condition():
            is_late = time.monotonic() - begin > seconds
            require(
                not is_late and self.read("JobState") != "FAILED",
                f"{what} does not come:\n{self.output[-4000:]}",
            )
            time.sleep(1)
        return time.monotonic() - begin

    def wait_for_step(self, step: int) -> float:
        return self.wait_for(lambda: max(read_losses(self.run_dir), default=0) >= step, f"step {step}")

    def cancel(self) -> None:
        self.cluster.call("scancel", self.number)
        self.wait_for(lambda: self.read("JobState") == "CANCELLED", "the end")


class Rehearsal:
    """A cluster and a miniature run.

    Args:
        folder: of run folders, outputs and the installed package.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.hosts = folder, Hosts(NODES, folder)
        self.config = folder / "notes" / "run.yaml"
        self.uninterrupted = 0

    def __enter__(self) -> Rehearsal:
        if not self.config.is_file():
            words = [sys.executable, str(HERE / "miniature_run.py"), "notes", str(self.config.parent)]
            done = subprocess.run([*words, str(self.folder / "alone")], capture_output=True, text=True)
            require(done.returncode == 0, done.stderr[-2000:])
        self.cluster = Cluster(self.folder, self.hosts.__enter__()).__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.hosts.close()
        self.cluster.__exit__(*exception)

    def train_uninterrupted(self, *overrides: str) -> dict[int, float]:
        """Train in two processes of this machine with the installed package and return the losses."""
        self.uninterrupted += 1
        run_dir = self.folder / f"uninterrupted-{self.uninterrupted}"
        shutil.rmtree(run_dir, ignore_errors=True)
        words = [str(self.cluster.programs / "uniaudio"), "launch", "ddp", str(self.config), "-n", "2"]
        words.append(f"output_dir={run_dir}")
        variables = {**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*words, *overrides], capture_output=True, text=True, env=variables)
        require(done.returncode == 0, done.stderr[-2000:])
        return read_losses(run_dir)

    def compare(self, run_dir: Path, *overrides: str) -> str:
        """Compare the losses of a run with those of as many processes on one machine, which nothing interrupts."""
        losses = read_losses(run_dir)
        return compare_losses(losses, self.train_uninterrupted(*overrides, f"train.max_steps={max(losses)}"))


# the rate stays, for with `train.max_steps` it would be that of a shorter run
ENDLESS = (
    "stages.0.steps=100000",
    "stages.0.schedule=constant",
    "train.save_every=20",
    "train.keep_last=2",
)


def finish_job(rehearsal: Rehearsal) -> Result:
    """Both nodes start, train and end."""
    run_dir = rehearsal.folder / "finished"
    job = rehearsal.cluster.submit(rehearsal.config, run_dir)
    seconds = job.wait_for(lambda: job.read("JobState") == "COMPLETED", "the end")
    require("finished" in job.output, job.output)
    nodes = job.read("NodeList")
    return Result("ddp", "2x1", rehearsal.compare(run_dir), seconds, f"on {nodes}, from the submission")


def reach_time_limit(rehearsal: Rehearsal) -> Result:
    """SIGTERM before the time limit saves and requeues; the requeued job goes on exactly."""
    run_dir = rehearsal.folder / "limited"
    job = rehearsal.cluster.submit(rehearsal.config, run_dir, *ENDLESS, time="60", signal="TERM@60")
    job.wait_for_step(3)
    hours, minutes, _ = map(int, job.read("RunTime").split(":"))
    limit = 60 * hours + minutes + 2
    rehearsal.cluster.call("scontrol", "update", f"JobId={job.number}", f"TimeLimit={limit}")
    since = time.monotonic()
    job.wait_for(lambda: "back into the queue" in job.output, "SIGTERM", 240)
    seconds = time.monotonic() - since
    stopped = [int(str(row["step"])) for row in read_records(run_dir) if row.get("event") == "stopped"]
    require(len(stopped) == 1, f"stopped at {stopped}")
    rehearsal.cluster.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    job.wait_for_step(stopped[0] + 3)
    require(job.read("Restarts") == "1", f"{job.read('Restarts')} restarts")
    job.cancel()
    exact = rehearsal.compare(run_dir, *ENDLESS)
    return Result("ddp", "2x1", exact, seconds, f"stopped at step {stopped[0]}, requeued, went on")


def lose_node(rehearsal: Rehearsal) -> Result:
    """A node is switched off: the job goes back into the queue, and on without it."""
    run_dir = rehearsal.folder / "lost"
    job = rehearsal.cluster.submit(rehearsal.config, run_dir, *ENDLESS)
    job.wait_for_step(25)
    nodes = job.read("NodeList")
    rehearsal.cluster.hosts.unplug(1)
    rehearsal.cluster.nodes[1].kill()
    step, since = max(read_losses(run_dir)), time.monotonic()
    job.wait_for(lambda: job.read("Restarts") == "1", "the requeue", 180)
    seconds = time.monotonic() - since
    job.wait_for(lambda: job.read("JobState") == "RUNNING", "the second start")
    later = job.read("NodeList")
    require("host1" not in later and later != nodes, f"on {nodes}, then on {later}")
    job.wait_for_step(step + 3)
    job.cancel()
    exact = rehearsal.compare(run_dir, *ENDLESS)
    return Result(
        "ddp", "2x1", exact, seconds, f"host1 switched off at step {step}, requeued, went on with {later}"
    )


CASES = {"finish": finish_job, "time-limit": reach_time_limit, "lost-node": lose_node}


if __name__ == "__main__":
    sys.exit(run_cases(__doc__, CASES, Rehearsal, explain_no_slurm))
