"""Commands that train: the panel "Train" of `uniaudio --help`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from uniaudio.cli_panels.arguments import (
    AllowCode,
    CommandWithOverrides,
    Config,
    NewRunFolder,
    Overrides,
    Resume,
    TrustRemoteCode,
    open_config,
    slow_imports,
)
from uniaudio.config.trust import Trust
from uniaudio.errors import UserError
from uniaudio.extras import require_package
from uniaudio.outputs import check_folder_option

PANEL = "Train"  # of `uniaudio --help`

app = typer.Typer()


@app.command(
    cls=CommandWithOverrides,
    rich_help_panel=PANEL,
    epilog="Example: uniaudio train configs/birds.yaml train.max_steps=100",
)
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = None,
    tune_batch: Annotated[
        bool, typer.Option(help="First search for the largest batch size that fits, then train with it.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Train an encoder in this process.

    Reads: the config, its recipes, cards and templates, the data and the pretrained weights.
    Writes: the run folder (output_dir) with config.yaml, metrics.jsonl, skipped.jsonl, tensorboard/ and checkpoints/.
    Prints: loss and throughput every train.log_every steps; scores of evaluations. Exit code 75: stopped, use --resume.
    """
    from uniaudio.launched_processes import end_with_parent, is_launched, leave_launcher_group

    leave_launcher_group()
    with ExitStack() as stack:
        if is_launched():
            # before the slow imports, in which a launcher may die
            end_with_parent(f"process {os.environ.get('RANK', '0')} of a launch")
            with slow_imports():
                from uniaudio.host_watch import watch_other_hosts

            stack.enter_context(watch_other_hosts())  # before what may fail on one machine alone
        from uniaudio.checks.named_paths import refuse_missing_parts, refuse_unfit_run_folder

        check_resume_option(resume)
        overrides, trust = overrides or [], Trust(trust_remote_code, allow_code)
        run = open_config(config, overrides, trust)
        refuse_missing_parts(run)
        refuse_unfit_run_folder(run, resume)
        with slow_imports():
            from uniaudio.commands.train import check_run_folder, run_training

        if tune_batch:
            from uniaudio.commands.tune_batch import tune_overrides

            has_begun = check_run_folder(run, resume)  # before the search, which takes minutes
            begun = Path(run.output_dir) if has_begun else None
            run = open_config(config, tune_overrides(config, overrides, trust, begun), trust)
        code = run_training(run, resume)
    raise typer.Exit(code)


@app.command(
    cls=CommandWithOverrides,
    rich_help_panel=PANEL,
    epilog="Example: uniaudio launch ddp configs/birds.yaml -n 2",
)
def launch(
    engine: Annotated[
        str,
        typer.Argument(
            help="single, ddp, zero1, zero2, zero3, zero3_offload, fsdp2, or the path of an accelerate config file."
        ),
    ],
    config: Config,
    overrides: Overrides = None,
    processes: Annotated[
        int | None,
        typer.Option("-n", "--processes", help="Processes on each machine; default: one per GPU.", min=1),
    ] = None,
    machines: Annotated[int, typer.Option(help="Number of machines; run the command on each.", min=1)] = 1,
    rank: Annotated[int, typer.Option(help="Number of this machine, from 0.", min=0)] = 0,
    address: Annotated[str, typer.Option(help="Host name or IP of machine 0.")] = "",
    port: Annotated[int, typer.Option(help="Port of machine 0.", min=1, max=65535)] = 29500,
    rendezvous: Annotated[
        str, typer.Option(help="How the machines find each other: static or c10d.")
    ] = "static",
    resume: Resume = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Train in several processes, on one or several machines.

    Reads: the launch file of the engine, then as `uniaudio train`.
    Writes: as `uniaudio train`.
    Prints: as `uniaudio train`, and ends with its exit code (75: stopped early, use --resume).
    """
    from uniaudio.checks.named_paths import refuse_missing_parts, refuse_unfit_run_folder
    from uniaudio.commands.launch import Machines, launch_training

    check_resume_option(resume)
    run = open_config(config, overrides or [], Trust(trust_remote_code, allow_code))
    if machines == 1:  # what one of several machines lacks is said by its processes, of which the others hear
        refuse_missing_parts(run)
        refuse_unfit_run_folder(run, resume)
    arguments = [config, *(overrides or [])]
    arguments += ["--trust-remote-code"] * trust_remote_code + ["--allow-code"] * allow_code
    places = Machines(machines, rank, address, port, rendezvous)
    raise typer.Exit(launch_training(engine, run, arguments, processes, places, resume))


def check_resume_option(resume: str | None) -> None:
    """Refuse an invalid value of --resume."""
    if resume not in (None, "auto", "yes"):
        raise UserError(f"--resume {resume}: give --resume alone, or --resume auto")


@app.command(
    cls=CommandWithOverrides, rich_help_panel=PANEL, epilog="Example: uniaudio check configs/birds.yaml"
)
def check(
    config: Config,
    overrides: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Find mistakes in a run config and its data; loads no model.

    Reads: the config, its recipes, cards and templates, all rows, headers of audio and weights, config.json of models.
    Writes: nothing.
    Prints: model sizes, rows that cannot be used, warnings, the cost of a step. Exit code 2: the run would fail.
    """
    from uniaudio.checks.named_paths import refuse_missing_parts

    run = open_config(config, overrides or [], Trust(trust_remote_code, allow_code))
    refuse_missing_parts(run)
    with slow_imports():
        from uniaudio.commands.check import check_run

    check_run(run)


@app.command(
    cls=CommandWithOverrides,
    rich_help_panel=PANEL,
    epilog="Example: uniaudio plan configs/birds.yaml --gpus 8 --memory 80",
)
def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="Number of GPUs.", min=1)] = 8,
    memory: Annotated[float, typer.Option(help="Memory of one GPU, in GiB.", min=1)] = 80,
    tflops: Annotated[
        float, typer.Option(help="Speed of one GPU in large matrix products, in TFLOP/s.", min=0.001)
    ] = 794.5,
    efficiency: Annotated[
        float, typer.Option(help="Share of --tflops reached in training.", min=0.01, max=1)
    ] = 0.4,
    seconds: Annotated[
        float | None, typer.Option(help="Average clip length in seconds; default: from the data.", min=0.1)
    ] = None,
    answer_tokens: Annotated[
        int, typer.Option(help="Answer tokens per question, with --seconds.", min=1)
    ] = 8,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Estimate GPU memory, FLOPs and training time without a GPU.

    Reads: the config, config.json of its models and, without --seconds, the first rows of the data.
    Writes: nothing.
    Prints: GiB by part and engine, the effect of activation checkpointing, FLOPs and hours of every stage.
    """
    run = open_config(config, overrides or [], Trust(trust_remote_code))
    with slow_imports():
        from uniaudio.checks.first_rows import QUESTION, AverageClip
        from uniaudio.commands.plan import show_plan
        from uniaudio.estimate.gpus import Machine

    clip = None if seconds is None else AverageClip(seconds, QUESTION, answer_tokens)
    show_plan(run, Machine(gpus, memory, tflops, efficiency), clip)


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: uniaudio soup runs/birds -o runs/birds_soup --data birds=/data/birds",
)
def soup(
    models: Annotated[list[str], typer.Argument(help="One run to interpolate, or several to average.")],
    out: NewRunFolder,
    start: Annotated[
        str | None,
        typer.Option(
            help="Run or checkpoint to interpolate from; default: the encoders' pretrained weights."
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of the trained weights; default: chosen by probes on --data.", min=0, max=1),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights of several runs, comma-separated; default: equal.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER whose train split selects alpha; repeatable.")
    ] = None,
    probe: Annotated[str, typer.Option(help="Probe that selects alpha: linear, mlp or knn.")] = "knn",
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Average runs (model soup), or a run and its initial weights.

    Reads: the checkpoints and, with --data, labelled folders whose train splits select alpha.
    Writes: a new run folder with one checkpoint and soup.json.
    Prints: for one run (WiSE-FT), probe accuracy for each alpha tried; the path of the checkpoint.
    """
    from uniaudio.checks.named_paths import refuse_missing_data, refuse_missing_run

    if probe not in ("linear", "mlp", "knn"):
        raise UserError(f"--probe {probe}: give linear, mlp or knn")
    for model in (*models, *([] if start is None else [start])):
        refuse_missing_run(model)
    refuse_missing_data(data or [])
    with slow_imports():
        from uniaudio.commands.soup import GRID, make_soup

    alphas = GRID if alpha is None else (alpha,)
    trust = Trust(trust_remote_code, allow_code)
    typer.echo(str(make_soup(models, out, start, numbers(weights), alphas, data or [], probe, trust)))


def numbers(text: str | None) -> list[float] | None:
    """Read comma-separated numbers."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as problem:
        raise UserError(f"--weights {text}: give numbers with commas between them") from problem


@app.command(
    "add-task",
    rich_help_panel=PANEL,
    epilog="Example: uniaudio add-task runs/birds frogs -o runs/birds_and_frogs --replay 0.2",
)
def add_task(
    run: Annotated[Path, typer.Argument(help="Run folder whose last stage is finished.")],
    recipe: Annotated[str, typer.Argument(help="Recipe of the new task: a path or a name.")],
    out: NewRunFolder,
    steps: Annotated[
        int | None, typer.Option(help="Number of steps; default: as in the last stage.", min=1)
    ] = None,
    replay: Annotated[
        float, typer.Option(help="Share of examples drawn from old data.", min=0, max=0.99)
    ] = 0.2,
    old: Annotated[
        list[str] | None,
        typer.Option(
            help="Recipe to replay, such as a packed sample; repeatable. Default: those of all stages."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key.sub=value of the new stage; repeatable.")
    ] = None,
) -> None:
    """Prepare a run that continues a finished run on a new task.

    Reads: the finished run and the recipe of the new task.
    Writes: a new run folder with config, recipe and the final checkpoints of the stages.
    Prints: the command that trains it.
    """
    from uniaudio.checks.named_paths import refuse_missing_run
    from uniaudio.config.search_paths import find_file

    refuse_missing_run(run)
    find_file("recipe", recipe)
    from uniaudio.commands.add_task import add_task as prepare

    path = prepare(run, recipe, out, steps, replay, old or [], overrides or [])
    typer.echo(f"continue with: uniaudio train {path} --resume")


@app.command(
    "tune-batch",
    cls=CommandWithOverrides,
    rich_help_panel=PANEL,
    epilog="Example: uniaudio tune-batch configs/birds.yaml --memory 70",
)
def tune_batch(
    config: Config,
    overrides: Overrides = None,
    memory: Annotated[
        float | None, typer.Option(help="Memory limit in GiB; default: nine tenths of the device.")
    ] = None,
    most: Annotated[float, typer.Option(help="Largest budget to try, in seconds of audio.")] = 4000,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Search for the largest micro-batch that fits the device.

    Reads: the config, its recipe and data, the pretrained weights.
    Writes: nothing.
    Prints: each budget.audio_seconds tried with its peak memory, and the overrides to train with.
    """
    from uniaudio.checks.named_paths import refuse_missing_parts

    overrides, trust = overrides or [], Trust(trust_remote_code, allow_code)
    refuse_missing_parts(open_config(config, overrides, trust))
    with slow_imports():
        from uniaudio.commands.tune_batch import tune_batch as tune

    tune(config, overrides, memory, most, trust=trust)


@app.command(rich_help_panel=PANEL, epilog="Example: uniaudio demo --quick")
def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder to write.", callback=check_folder_option)
    ] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option(help="Only a few steps, as a smoke test.")] = False,
) -> None:
    """Train, probe and report on generated audio in five minutes.

    Reads: nothing; nothing is downloaded.
    Writes: the corpus, a run folder and report.html below --out.
    Prints: probe scores and answers before and after training, and the path of the report.
    """
    require_package("matplotlib", "uniaudio demo")
    require_package("sklearn", "uniaudio demo")
    with slow_imports():
        from uniaudio.commands.demo import run_demo

    run_demo(out, quick)
