"""``uniaudio launch``: what is handed to accelerate's launcher, and what the launch ends with."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import uniaudio
from uniaudio.cli import main
from uniaudio.commands import launch as launching
from uniaudio.commands.launch import (
    STOPPED_ALONE,
    Machines,
    find_launch_file,
    launch_training,
    read_outcome,
)
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.errors import UserError
from uniaudio.launched_processes import leave_message, make_module_command


@pytest.fixture
def handed_over(monkeypatch):
    """Settings of the launch file and options that reach accelerate, with a launcher that starts nothing."""
    seen = {}

    def run_launcher(options):
        seen["file"] = load_yaml(Path(options[1]))
        seen["options"] = options[2:]
        return 0, ""

    monkeypatch.setattr(launching, "run_launcher", run_launcher)
    return seen


def test_one_machine_takes_the_shipped_file_and_a_free_port(tone_run, handed_over):
    config = load_run(tone_run)
    assert launch_training("zero2", config, ["run.yaml", "seed=1"], 3, Machines()) == 0
    shipped = load_yaml(find_launch_file("zero2"))
    file = handed_over["file"]
    assert file["deepspeed_config"] == shipped["deepspeed_config"] | {
        "deepspeed_multinode_launcher": "standard"
    }
    assert (file["num_processes"], file["num_machines"], file["main_process_port"]) == (3, 1, 0)
    command = make_module_command("uniaudio.train")
    options = ["--rdzv_backend", "static", "--no_python", *command, "run.yaml", "seed=1"]
    assert handed_over["options"] == options


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_several_machines_are_named(tone_run, handed_over, rendezvous):
    launch_training("ddp", load_run(tone_run), ["run.yaml"], 4, Machines(2, 1, "node0", 29511, rendezvous))
    file = handed_over["file"]
    assert (file["num_machines"], file["machine_rank"], file["num_processes"]) == (2, 1, 8)
    assert (file["main_process_ip"], file["main_process_port"]) == ("node0", 29511)
    assert (file["rdzv_backend"], file["same_network"]) == (rendezvous, rendezvous == "static")
    assert handed_over["options"][:2] == ["--rdzv_backend", rendezvous]
    # by the clocks of two machines, each would be dead for the other
    expected = ["--rdzv_conf", "keep_alive_max_attempt=1000000"] if rendezvous == "c10d" else ["--no_python"]
    assert handed_over["options"][2 : 2 + len(expected)] == expected


def test_processes_of_a_launch_file_of_the_user_are_kept(tone_run, handed_over, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(find_launch_file("ddp").read_text().replace("num_processes: 8", "num_processes: 5"))
    launch_training(str(file), load_run(tone_run), [], None, Machines())
    assert handed_over["file"]["num_processes"] == 5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("num_processes: '4'", r"mine\.yaml: num_processes: give a whole number above 0, not '4'"),
        ("num_machines:", r"mine\.yaml: num_machines: give a whole number above 0, not None"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: zero", r"deepspeed_config: must be a mapping"),
    ],
)
def test_a_launch_file_of_the_user_with_a_mistake_is_one_sentence(
    tone_run, handed_over, tmp_path, monkeypatch, lines, message
):
    monkeypatch.setattr(launching, "require_package", lambda *_: None)
    file = tmp_path / "mine.yaml"
    file.write_text(f"{lines}\n")
    with pytest.raises(UserError, match=message):
        launch_training(str(file), load_run(tone_run), [], None, Machines())
    file.write_text("distributed_type: DEEPSPEED\n")  # what it leaves out is accelerate's to say
    launch_training(str(file), load_run(tone_run), [], None, Machines())
    assert handed_over["file"]["deepspeed_config"] == {"deepspeed_multinode_launcher": "standard"}


@pytest.mark.parametrize(
    ("engine", "processes", "machines", "message"),
    [
        ("dpp", 2, Machines(), "there is no engine 'dpp'.*ddp"),
        ("no/such.yaml", 2, Machines(), "there is no launch file no/such.yaml"),
        ("single", 2, Machines(), "single starts one process; use ddp"),
        ("ddp_2x8", 2, Machines(), "ddp_2x8 is for 2 machines; give --machines 2"),
        ("ddp", 2, Machines(2), "--machines 2: give --address"),
        ("ddp", 2, Machines(2, 2, "node0"), "--rank 2: the 2 machines have the ranks 0 to 1"),
        ("ddp", 2, Machines(1, 1), "--rank and --address need several machines"),
        ("ddp", 2, Machines(2, 0, "node0", rendezvous="etcd"), "--rendezvous etcd: give static or c10d"),
    ],
)
def test_what_cannot_be_launched_is_refused(tone_run, handed_over, engine, processes, machines, message):
    with pytest.raises(UserError, match=message):
        launch_training(engine, load_run(tone_run), [], processes, machines)
    assert handed_over == {}


def test_more_processes_than_gpus_are_refused(tone_run, handed_over, tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "count_gpus", lambda: 2)
    config = load_run(tone_run)
    with pytest.raises(UserError, match="-n 3: every process needs a GPU, and this machine has 2"):
        launch_training("ddp", config, [], 3, Machines())
    launch_training("ddp", config, [], None, Machines())
    assert handed_over["file"]["num_processes"] == 2
    file = tmp_path / "mine.yaml"
    file.write_text(find_launch_file("ddp").read_text() + "use_cpu: true\n")
    launch_training(str(file), config, [], 3, Machines())
    assert handed_over["file"]["num_processes"] == 3


def test_a_begun_run_is_refused_before_processes_start(tone_run, handed_over, capsys):
    (Path(load_run(tone_run).output_dir) / "checkpoints" / "step-000001").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        main(["launch", "ddp", str(tone_run)])
    assert (ended.value.code, handed_over) == (2, {})
    assert "already holds a run: continue it with --resume" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["launch", "ddp", str(tone_run), "--resume"])
    assert (ended.value.code, handed_over["options"][-1]) == (0, "--resume")


@pytest.mark.parametrize(("stated", "precision"), [("fp16", "auto"), ("bf16", "no"), ("'no'", "bf16")])
def test_another_precision_in_the_launch_file_is_refused(tone_run, handed_over, tmp_path, stated, precision):
    file = tmp_path / "mine.yaml"
    file.write_text(find_launch_file("ddp").read_text() + f"mixed_precision: {stated}\n")
    with pytest.raises(UserError, match=f"mixed_precision {stated.strip(chr(39))}, but train.precision is"):
        launch_training(str(file), load_run(tone_run, [f"train.precision={precision}"]), [], 2, Machines())


def test_engines_of_deepspeed_name_their_extra(tone_run, handed_over, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(
        UserError, match=r"launch zero1 needs the extra deepspeed: pip install 'uniaudio\[deep"
    ):
        launch_training("zero1", load_run(tone_run), [], 2, Machines())


def failed(**codes):
    failures = {int(rank[4:]): ProcessFailure(int(rank[4:]), 1, code, "") for rank, code in codes.items()}
    return ChildFailedError("train", failures)


@pytest.mark.parametrize(
    ("problem", "stopped_by", "code", "ending"),
    [
        (None, None, 0, ""),
        (failed(rank0=75, rank1=75), signal.SIGTERM, 75, ""),
        (failed(rank0=75, rank1=-15), signal.SIGTERM, 75, ""),
        (failed(rank0=2, rank1=1), None, 2, ""),
        (subprocess.CalledProcessError(75, "train"), signal.SIGINT, 75, ""),
        (failed(rank0=-15, rank1=-9), None, 137, "process 1 was ended by SIGKILL (out of memory?); continue"),
        (failed(rank1=1), None, 1, "process 1 failed with exit code 1"),
        (
            failed(rank0=-15),
            signal.SIGTERM,
            143,
            "stopped by SIGTERM at once; continue from the last checkpoint",
        ),
        (failed(rank0=130, rank1=-15), signal.SIGINT, 130, "stopped by SIGINT at once"),
        (subprocess.CalledProcessError(130, "train"), signal.SIGINT, 130, "stopped by SIGINT at once"),
    ],
)
def test_a_launch_ends_as_its_run(problem, stopped_by, code, ending):
    result = read_outcome(problem, stopped_by)
    assert result[0] == code
    assert result[1].startswith(ending)
    assert bool(result[1]) == bool(ending)


def test_what_the_launcher_itself_refuses_is_one_sentence():
    with pytest.raises(UserError, match=r"accelerate could not launch the run \(port 29500 is taken\)"):
        read_outcome(ConnectionError("port 29500 is taken"), None)


def test_equal_last_sentences_are_shown_once(tone_run, monkeypatch, capsys):
    def run_launcher(options):
        for rank, sentence in enumerate(["seed is wrong", "seed is wrong", "process 2 lost another process"]):
            monkeypatch.setenv("RANK", str(rank))
            assert leave_message(sentence)
        return 2, ""

    monkeypatch.setattr(launching, "run_launcher", run_launcher)
    assert launch_training("ddp", load_run(tone_run), [], 3, Machines()) == 2
    assert (
        capsys.readouterr().err
        == "starting 3 process(es) under ddp ...\nuniaudio: seed is wrong\nuniaudio: process 2 lost "
        "another process\n"
    )
    assert not leave_message("alone")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "processes"), [("single", "1"), ("ddp", "2")])
def test_a_launch_runs_no_code_of_the_working_folder(tone_run, tmp_path, engine, processes):
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in ("torch", "transformers", "accelerate", "uniaudio"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit('ran')\n")
    words = ["launch", engine, str(tone_run), "-n", processes, "train.max_steps=1"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "uniaudio", *words],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
    assert "finished at step 1" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "processes", "send"),
    [
        ("ddp", "2", lambda launcher: launcher.send_signal(signal.SIGTERM)),
        # as a terminal does, to all in the launcher's group: the process has left it, for the second one stops at once
        ("single", "1", lambda launcher: os.killpg(launcher.pid, signal.SIGINT)),
    ],
)
def test_a_stopped_launch_ends_with_75_and_leaves_nothing_behind(tone_run, engine, processes, send):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    words = ("launch", engine, str(tone_run), "-n", processes, "stages.0.steps=100000", "train.log_every=1")
    with subprocess.Popen(
        [sys.executable, "-m", "uniaudio", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as launcher:
        lines = []
        for line in launcher.stdout:
            lines.append(line)
            if "step 2/" in line:
                break
        ranks = psutil.Process(launcher.pid).children()
        send(launcher)
        rest, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 75, errors
    assert "Traceback" not in errors
    assert "SIGTERM" not in errors
    assert rest.splitlines()[-1].startswith("stopped at step ")
    deadline = time.monotonic() + 5
    while any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ctrl_z_stops_the_launcher_alone_and_says_so():
    """As a shell does it: a signal to the launcher's group, of which no rank is a member, and one to go on."""
    program = (
        "import sys\nfrom uniaudio.commands.launch import SignalForwarder\n"
        "with SignalForwarder() as forwarder:\n    for line in sys.stdin:\n        print('ready', flush=True)\n"
        "print(forwarder.waiting, forwarder.first)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as launcher:
        for _ in range(2):
            launcher.stdin.write("\n")
            launcher.stdin.flush()
            assert launcher.stdout.readline() == "ready\n"
            os.killpg(launcher.pid, signal.SIGTSTP)
            _, status = os.waitpid(launcher.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            os.killpg(launcher.pid, signal.SIGCONT)
        output, errors = launcher.communicate(timeout=120)
    assert (launcher.returncode, output) == (0, "[] None\n")
    assert errors.splitlines() == 2 * [f"uniaudio: {STOPPED_ALONE}"]


def test_the_launcher_does_not_wait_for_the_libraries_of_models():
    """Transformers' models take seconds to import, in every launcher and before its processes begin with the same."""
    waiting, reached = ["uniaudio.cli", "uniaudio.build.run_config", "uniaudio.commands.launch"], set()
    root = Path(uniaudio.__file__).parents[1]
    while waiting:
        module = waiting.pop()
        file = root / (module.replace(".", "/") + ".py")
        if module in reached or not file.is_file():
            continue
        reached.add(module)
        for node in ast.parse(file.read_text()).body:  # what a function imports, only some launches need
            if isinstance(node, ast.ImportFrom):
                waiting.append(node.module or "")
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom | ast.Import):
                assert not {name.partition(".")[0] for name in waiting} & {"torch", "transformers", "peft"}, (
                    module
                )
    assert "uniaudio.train.engines.precision" in reached
