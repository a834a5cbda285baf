"""What schedulers are given: the script for Slurm with stand-ins for its commands, the manifest for Kubernetes."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from uniaudio.cli import app

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SRUN = """#!/bin/bash
shift
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do SLURM_NODEID=$node "$@" || code=$?; done
exit ${code:-0}
"""
SCONTROL = '#!/bin/bash\nif [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "scontrol $*" >> "$CALLS"; fi\n'


@pytest.fixture
def run_script(tmp_path):
    """Run the script on so many nodes, where every launch ends with a code; returns process and calls."""

    def run(code, nodes, *arguments, **variables):
        uniaudio = f'#!/bin/bash\necho "uniaudio $*" >> "$CALLS"\nexit {code}\n'
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("uniaudio", uniaudio)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        calls = tmp_path / "calls"
        calls.touch()
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_ID": "40123",
            "SLURM_JOB_NUM_NODES": str(nodes),
            **variables,
        }
        command = ["bash", str(CONFIGS / "accelerate/slurm.sh"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done, calls.read_text().splitlines()

    return run


def test_every_node_launches_with_its_number_and_resumes(run_script):
    done, calls = run_script(0, 2, "my run.yaml", "seed=1")
    assert done.returncode == 0, done.stderr
    where = "--machines 2 --rank {} --address node7 --port 20123 --rendezvous c10d --resume auto"
    assert calls == [f"uniaudio launch ddp my run.yaml seed=1 {where.format(rank)}" for rank in (0, 1)]
    assert "finished" in done.stdout


def test_one_node_and_another_engine(run_script):
    _, calls = run_script(0, 1, "run.yaml", ENGINE="zero2")
    assert calls == ["uniaudio launch zero2 run.yaml --resume auto"]


@pytest.mark.parametrize(("code", "ends_with", "requeued"), [(75, 0, True), (2, 2, False), (137, 137, False)])
def test_a_stopped_run_is_requeued_and_a_failed_one_is_not(run_script, code, ends_with, requeued):
    done, calls = run_script(code, 2, "run.yaml")
    assert done.returncode == ends_with
    assert ("scontrol requeue 40123" in calls) == requeued
    assert ("not requeued" in done.stderr) == (not requeued)


def test_the_script_without_a_config_says_how_it_is_used(run_script):
    done, calls = run_script(0, 2)
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith("usage: sbatch")


def test_the_manifest_starts_what_the_command_line_takes(monkeypatch):
    """The fields that the schema of Kubernetes requires, names that fit each other, and a launch that is parsed."""
    service, job = yaml.safe_load_all((CONFIGS / "cluster/kubernetes.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy requires
    assert spec["completionMode"] == "Indexed"
    (container,) = pod["containers"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    words = shlex.split(container["args"][0].replace('"$JOB_COMPLETION_INDEX"', "1"))
    assert words[:3] == ["exec", "uniaudio", "launch"]
    seen = {}

    def launch_training(engine, config, arguments, processes, machines, resume):
        seen.update(engine=engine, arguments=arguments, processes=processes, machines=machines, resume=resume)
        return 0

    monkeypatch.setattr("uniaudio.commands.launch.launch_training", launch_training)
    monkeypatch.setattr("uniaudio.build.run_config.open_run", lambda *given: None)
    result = CliRunner().invoke(app, words[2:])
    assert result.exit_code == 0, result.output
    machines = seen["machines"]
    assert (seen["engine"], seen["processes"]) == ("ddp", container["resources"]["limits"]["nvidia.com/gpu"])
    assert (machines.count, machines.rank) == (spec["completions"], 1)
    assert spec["parallelism"] == spec["completions"]
    assert machines.address == f"{name}-0.{pod['subdomain']}"
    assert f"train.micro_batches={machines.count * seen['processes']}" in seen["arguments"]
    machines.check()
    assert seen["resume"] == "auto"  # a pod that is started again goes on
