"""Commands that evaluate models: the panel "Evaluate" of `uniaudio --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uniaudio.cli_panels.arguments import (
    MODEL_HELP,
    AllowCode,
    JsonFile,
    MaxExamples,
    ResultFolder,
    TrustRemoteCode,
    slow_imports,
)
from uniaudio.config.trust import Trust
from uniaudio.errors import UserError
from uniaudio.extras import require_package
from uniaudio.outputs import check_file_option, check_folder_option

PANEL = "Evaluate"  # of `uniaudio --help`

app = typer.Typer()


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: uniaudio probe openai/whisper-small runs/birds --data birds=/data/birds --out probes.json",
)
def probe(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, checkpoints, exported models, folders or Hub names of encoders, random:PATH; "
            "options as in 'MODEL?pad_to=30'."
        ),
    ],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER with a manifest (.jsonl, .csv, .tsv); repeatable.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Suite in place of --data: a path, or a name found in suites/.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="masked (real frames only), or xares (as in X-ARES).")
    ] = "masked",
    whiten: Annotated[
        bool,
        typer.Option(
            "--whiten",
            help="Whiten embeddings first, fitted to the training clips of each task without labels: shows how much "
            "of a difference between models is only the size of their features.",
        ),
    ] = False,
    layers: Annotated[bool, typer.Option(help="Also probe every hidden state.")] = False,
    out: JsonFile = None,
    seeds: Annotated[int, typer.Option(help="Probe seeds.", min=1)] = 3,
    references: Annotated[
        bool,
        typer.Option(
            "--references/--no-references",
            help="Also probe the untrained encoders of runs, with the run's settings and at their best.",
        ),
    ] = True,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Train probes on the frozen embeddings of encoders.

    Reads: the encoders, and the clips of labelled folders (--data) or of a suite's dataset cards (--suite).
    Writes: scores as JSON (--out); embeddings are cached in $UNIAUDIO_CACHE.
    Prints: scores of linear, MLP and kNN probes by task and model, mean and spread over seeds.
    """
    from uniaudio.checks import named_paths
    from uniaudio.config.search_paths import find_file

    for model in models:
        named_paths.refuse_missing_encoder(model)
    named_paths.refuse_missing_data(data or [])
    if suite is not None:
        find_file("suite", suite)
    with slow_imports():
        from uniaudio.commands.probe import run_probe

    trust = Trust(trust_remote_code, allow_code)
    run_probe(models, data or [], suite, protocol, out, seeds, layers, trust, references, whiten)


@app.command("eval", rich_help_panel=PANEL, epilog="Example: uniaudio eval runs/birds --out answers.json")
def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, checkpoint or exported whole model.")],
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe with the evaluation sets; default: that of the last stage.")
    ] = None,
    out: JsonFile = None,
    max_examples: MaxExamples = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the answers as JSON Lines, for other scoring tools.",
            callback=check_folder_option,
        ),
    ] = None,
    protocol: Annotated[str, typer.Option(help="Scoring: own, or xares-llm.")] = "own",
    labels: Annotated[bool, typer.Option(help="Also score the labels of closed sets by likelihood.")] = True,
    batch_seconds: Annotated[
        float | None, typer.Option(help="Batch size in seconds of audio; default: from the config.", min=1)
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Generate and score answers on a recipe's evaluation sets.

    Reads: the model's newest checkpoint, the recipe (default: that of its last stage), cards, templates and clips.
    Writes: scores and answers as JSON (--out); answers alone as JSON Lines, one file per set (--answers).
    Prints: scores by evaluation set with 95 % confidence intervals. Also runs under `accelerate launch`.
    """
    from uniaudio.checks.named_paths import refuse_missing_model
    from uniaudio.config.search_paths import find_file

    refuse_missing_model(model)
    if recipe is not None:
        find_file("recipe", recipe)
    with slow_imports():
        from uniaudio.commands.evaluate import run_evaluation

    trust = Trust(trust_remote_code, allow_code)
    run_evaluation(model, recipe, out, max_examples, protocol, labels, batch_seconds, trust, answers=answers)


@app.command(rich_help_panel=PANEL, epilog="Example: uniaudio report runs/birds -o report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders to show side by side.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="HTML file; default: report.html in the first run folder.",
            callback=check_file_option,
        ),
    ] = None,
    probes: Annotated[
        list[Path] | None, typer.Option(help="Probe scores; repeatable. Default: RUN/probes.json.")
    ] = None,
    answers: Annotated[
        list[Path] | None, typer.Option(help="Answers, in the order of the runs. Default: RUN/answers.json.")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Probe scores or answers of other models; repeatable.")
    ] = None,
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="Include clips in the page.")] = True,
    embedding_map: Annotated[bool, typer.Option("--map/--no-map", help="Draw an embedding map.")] = True,
) -> None:
    """Write one self-contained HTML page about runs.

    Reads: metrics.jsonl and config.yaml of the runs, probe scores, answers and some clips.
    Writes: an HTML file.
    Prints: the path of the page; for answers or probe scores that were not stored, the command that stores them.
    """
    require_package("matplotlib", "uniaudio report")
    require_package("sklearn", "uniaudio report")
    from uniaudio.checks.named_paths import refuse_missing_results, refuse_missing_run

    for run in runs:
        refuse_missing_run(run)
    for option, files in (("--probes", probes), ("--answers", answers), ("--against", against)):
        refuse_missing_results(option, files or ())
    from uniaudio.commands.report import Wanted, report_runs

    wanted = Wanted(probes or (), answers or (), against or (), audio, embedding_map)
    typer.echo(str(report_runs(runs, out, wanted)))


@app.command(rich_help_panel=PANEL, epilog="Example: uniaudio routes runs/mowe --last 0.25")
def routes(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: ResultFolder = None,
    last: Annotated[
        float,
        typer.Option(help="Share of the steps to include, from the end of the run.", min=0.01, max=1),
    ] = 0.25,
) -> None:
    """Show the routing decisions of a fused encoder by task.

    Reads: metrics.jsonl of the run.
    Writes: the choices as JSON and as a heat map (PNG) into the run folder or --out.
    Prints: the encoders, experts or layers chosen by task, and the paths of the files.
    """
    require_package("matplotlib", "uniaudio routes")
    from uniaudio.commands.routes import show_routes

    show_routes(run, out, last)


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: uniaudio forgetting runs/birds_and_frogs --data birds=/data/birds",
)
def forgetting(
    run: Annotated[Path, typer.Argument(help="Run folder with finished stages.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER to probe; repeatable. Default: guard.sets of the config."),
    ] = None,
    learned: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=STAGE: stage that first trains on set NAME, if NAME is not that of its dataset; repeatable."
        ),
    ] = None,
    answers: Annotated[
        bool, typer.Option(help="Also evaluate answers on the evaluation sets of all stages.")
    ] = True,
    max_examples: MaxExamples = None,
    out: ResultFolder = None,
    seeds: Annotated[int, typer.Option(help="Probe seeds.", min=1)] = 3,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Measure what each stage of a run learned and forgot.

    Reads: the checkpoints at the ends of the stages, labelled folders, and the evaluation sets of all stages.
    Writes: forgetting.json and forgetting.png into the run folder or --out.
    Prints: the matrices of scores by stage and set, forgetting and transfer.
    """
    require_package("matplotlib", "uniaudio forgetting")
    from uniaudio.checks.named_paths import refuse_missing_data, refuse_missing_run

    refuse_missing_run(run)
    refuse_missing_data(data or [])
    with slow_imports():
        from uniaudio.commands.forgetting import measure_forgetting

    trust = Trust(trust_remote_code, allow_code)
    measure_forgetting(run, data or [], out, learned or [], answers, max_examples, seeds, trust)


@app.command(
    "check-encoder", rich_help_panel=PANEL, epilog="Example: uniaudio check-encoder openai/whisper-small"
)
def check_encoder(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="auto, a model type, remote, or your own module:Class, created as Class(MODEL) or Class('')."
        ),
    ] = "auto",
    families: Annotated[
        bool, typer.Option("--list", help="List the encoders that can be loaded, and those that cannot.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Show what an encoder supports, and test its interface.

    Reads: the encoder; test clips are generated noise and silence.
    Writes: nothing.
    Prints: execution, LoRA, layer decay, activation checkpointing, exports; a line per test; exit code 2 if one fails.
    """
    from uniaudio.checks.named_paths import refuse_missing_encoder

    if model is not None and ":" not in kind:
        refuse_missing_encoder(model)
    with slow_imports():
        from uniaudio.commands.check_encoder import check_encoder as check
        from uniaudio.commands.check_encoder import list_families

    if families:
        list_families()
        return
    if model is None and ":" not in kind:  # a class of the user's own may read nothing
        raise UserError("check-encoder: name a MODEL, or give --list for the encoders that can be loaded")
    check(model or "", kind, Trust(trust_remote_code, allow_code))
