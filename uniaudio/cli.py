"""The command line: parse, call one function, end a user's mistake with one sentence and exit code 2.

The heavy packages are imported inside the commands, so that ``uniaudio --help`` and a typing mistake answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from uniaudio import __version__
from uniaudio.data_cli import data
from uniaudio.errors import LostProcessError, UserError
from uniaudio.outputs import check_file_option, check_folder_option

app = typer.Typer(
    name="uniaudio",
    help="Train universal audio encoders by asking them questions through a frozen language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data, name="data")

Config = Annotated[str, typer.Argument(help="Run config: a path, or a name found in configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides such as train.max_steps=100; +mini takes the config's miniature twin."),
]
Model = Annotated[str, typer.Argument(help="Run folder, checkpoint, Whisper folder or name, or random:PATH.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let Python code that comes with a model run.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Import encoder classes that a config names as module:Class.")
]


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Shared options of all commands."""


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(help="Continue the run in output_dir; with 'auto', only if there is one.")
    ] = None,
    tune_batch: Annotated[
        bool, typer.Option(help="Search the largest budget that fits first, and train every stage with it.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Train an encoder (under `accelerate launch`, or in one process)."""
    from uniaudio.orphans import end_with_parent, is_launched

    if is_launched():  # before the slow imports, in which a launcher may die
        end_with_parent(f"process {os.environ.get('RANK', '0')} of a launch")
    from uniaudio.assemble.configs import open_run
    from uniaudio.assemble.training import run_training
    from uniaudio.config.trust import Trust

    if resume not in (None, "auto", "yes"):
        raise UserError(f"--resume {resume}: give --resume alone, or --resume auto")
    overrides, trust = overrides or [], Trust(trust_remote_code, allow_code)
    if tune_batch:
        from uniaudio.tools.tune import tuned_overrides

        overrides = tuned_overrides(config, overrides, trust)
    raise typer.Exit(run_training(open_run(config, overrides, trust), resume))


@app.command()
def check(config: Config, overrides: Overrides = None) -> None:
    """Validate a run config, its recipe, templates, data and sizes without loading a model."""
    from uniaudio.assemble.configs import open_run
    from uniaudio.checks import check_run

    check_run(open_run(config, overrides or []))


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="Number of GPUs.", min=1)] = 8,
    memory: Annotated[float, typer.Option(help="GiB of one GPU.", min=1)] = 80,
    tflops: Annotated[float, typer.Option(help="TFLOP/s of one GPU in large products.", min=0.001)] = 794.5,
    efficiency: Annotated[
        float, typer.Option(help="Share of it reached in training.", min=0.01, max=1)
    ] = 0.4,
    seconds: Annotated[
        float | None, typer.Option(help="Length of the average clip; default: look at the data.", min=0.1)
    ] = None,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of its answer, with --seconds.", min=1)] = 8,
) -> None:
    """Reckon memory by part under every engine, operations and hours, without weights and without a GPU."""
    from uniaudio.assemble.configs import open_run
    from uniaudio.assemble.pairings import QUESTION
    from uniaudio.assemble.thin import Clip
    from uniaudio.plan import Machine, show_plan

    clip = None if seconds is None else Clip(seconds, QUESTION, answer_tokens)
    show_plan(open_run(config, overrides or []), Machine(gpus, memory, tflops, efficiency), clip)


@app.command()
def preview(
    recipe: Annotated[str, typer.Argument(help="Recipe or run config: a path or a name.")],
    number: Annotated[int, typer.Option("-n", "--number", help="Examples to show.", min=1)] = 5,
    decoder: Annotated[
        str | None, typer.Option(help="Folder or name of the decoder whose tokenizer counts the tokens.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order.")] = 0,
) -> None:
    """Print rendered examples with the supervised part coloured, token counts and clip seconds."""
    from uniaudio.preview import preview as show

    show(recipe, number, decoder, seed)


@app.command()
def probe(
    models: Annotated[
        list[str], typer.Argument(help="Run folders, checkpoints, Whisper folders, random:PATH.")
    ],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER with a manifest.jsonl; repeatable.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Suite in place of --data: a path, or a name found in suites/.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="masked (real frames alone), or xares (as X-ARES does it); of a suite.")
    ] = "masked",
    layers: Annotated[bool, typer.Option(help="Also probe every hidden state; of a suite.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", callback=check_file_option)] = None,
    seeds: Annotated[int, typer.Option(help="Probe seeds.", min=1)] = 3,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Train linear, MLP and kNN probes on frozen embeddings of one or more encoders."""
    from uniaudio.assemble.probing import probe_models_on
    from uniaudio.config.trust import Trust

    trust = Trust(trust_remote_code, allow_code)
    probe_models_on(models, data or [], suite, protocol, out, seeds, layers, trust)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder or checkpoint.")],
    recipe: Annotated[str | None, typer.Argument(help="Recipe whose `evaluate` list is asked.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", callback=check_file_option)] = None,
    max_examples: Annotated[
        int | None, typer.Option(help="Rows of each set, over the recipe's number; default: all.", min=1)
    ] = None,
    protocol: Annotated[str, typer.Option(help="own, or xares-llm: the challenge's scores.")] = "own",
    labels: Annotated[bool, typer.Option(help="Score the labels of closed sets by likelihood too.")] = True,
    batch_seconds: Annotated[
        float | None, typer.Option(help="Audio of a batch; default that of the config.", min=1)
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Let a trained model answer the recipe's evaluation sets and score the answers (or under `accelerate launch`)."""
    from uniaudio.assemble.judging import run_evaluation
    from uniaudio.config.trust import Trust

    trust = Trust(trust_remote_code, allow_code)
    run_evaluation(model, recipe, out, max_examples, protocol, labels, batch_seconds, trust)


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="Run folder or checkpoint.")],
    clip: Annotated[Path, typer.Argument(help="Audio file.")],
    text: Annotated[
        str, typer.Argument(help="The question; <audio> marks the clip's place (default: first).")
    ],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 256,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Ask a trained model one question about one clip."""
    from uniaudio.assemble.asking import ask as ask_model
    from uniaudio.config.trust import Trust

    typer.echo(ask_model(model, clip, text, max_new_tokens, Trust(trust_remote_code, allow_code)))


@app.command()
def embed(
    model: Model,
    clips: Annotated[list[Path], typer.Argument(help="Audio files.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="NPZ file to write.", callback=check_file_option)],
    frames: Annotated[bool, typer.Option(help="Also store the frames of every clip.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Write one pooled embedding per clip (and, on request, its frames) to an NPZ file."""
    from uniaudio.assemble.asking import embed_files
    from uniaudio.config.trust import Trust

    embed_files(model, clips, out, frames, Trust(trust_remote_code, allow_code))


@app.command()
def export(
    checkpoint: Model,
    out: Annotated[
        Path, typer.Argument(metavar="DIR", help="New folder to write.", callback=check_folder_option)
    ],
    to: Annotated[str, typer.Option(help="hf, xares, xares-llm or onnx.")] = "hf",
    push_to_hub: Annotated[
        str | None, typer.Option(help="OWNER/NAME to upload an hf folder to; a new one is private.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Write an encoder as a transformers model, as an entry for X-ARES or XARES-LLM, or as ONNX."""
    from uniaudio.assemble.exporting import export_checkpoint
    from uniaudio.config.trust import Trust

    export_checkpoint(checkpoint, out, to, push_to_hub, Trust(trust_remote_code, allow_code))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, side by side.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="HTML file; default report.html in the first run.", callback=check_file_option
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
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="Put clips into the page.")] = True,
    embedding_map: Annotated[bool, typer.Option("--map/--no-map", help="Draw an embedding map.")] = True,
) -> None:
    """Write one self-contained HTML page about one or several runs."""
    from uniaudio.assemble.reporting import Wanted, report_runs

    wanted = Wanted(probes or (), answers or (), against or (), audio, embedding_map)
    typer.echo(str(report_runs(runs, out, wanted)))


@app.command()
def routes(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder to write; default RUN.", callback=check_folder_option),
    ] = None,
    last: Annotated[float, typer.Option(help="Share of the steps, from the end.", min=0.01, max=1)] = 0.25,
) -> None:
    """Show which encoder, expert or layer a fused encoder chose for which task: table, JSON and heat map."""
    from uniaudio.assemble.routes import show_routes

    show_routes(run, out, last)


@app.command()
def forgetting(
    run: Annotated[Path, typer.Argument(help="Run folder with finished stages.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER to probe, repeatable; default: the config's guarded sets."),
    ] = None,
    learned: Annotated[
        list[str] | None, typer.Option(help="NAME=STAGE that first trains on a set of another name.")
    ] = None,
    answers: Annotated[bool, typer.Option(help="Also ask the evaluation sets of all stages.")] = True,
    max_examples: Annotated[
        int | None,
        typer.Option(help="Rows of each evaluation set; default: the recipe's number, or all.", min=1),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder to write; default RUN.", callback=check_folder_option),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Probe seeds.", min=1)] = 3,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Measure after every stage what a run learned and forgot: table, JSON and heat map."""
    from uniaudio.assemble.forgetting import measure_forgetting
    from uniaudio.config.trust import Trust

    trust = Trust(trust_remote_code, allow_code)
    measure_forgetting(run, data or [], out, learned or [], answers, max_examples, seeds, trust)


@app.command()
def soup(
    models: Annotated[list[str], typer.Argument(help="One run to weaken, or several to average.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="New run folder to write.", callback=check_folder_option)
    ],
    start: Annotated[
        str | None,
        typer.Option(help="Run or checkpoint to interpolate from; default: the encoders' own weights."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Share of the trained weights; default: probes choose.", min=0, max=1)
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Comma-separated, for several models.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER whose train split chooses alpha; repeatable.")
    ] = None,
    probe: Annotated[str, typer.Option(help="linear, mlp or knn.")] = "knn",
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Write the weights between a run and its start (WiSE-FT), or the mean of several runs (model soup)."""
    from uniaudio.assemble.soup import GRID, make_soup
    from uniaudio.config.trust import Trust

    if probe not in ("linear", "mlp", "knn"):
        raise UserError(f"--probe {probe}: give linear, mlp or knn")
    alphas = GRID if alpha is None else (alpha,)
    trust = Trust(trust_remote_code, allow_code)
    typer.echo(str(make_soup(models, out, start, numbers(weights), alphas, data or [], probe, trust)))


def numbers(text: str | None) -> list[float] | None:
    """Read comma-separated numbers."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as problem:
        raise UserError(f"--weights {text}: give numbers with commas between them") from problem


@app.command("add-task")
def add_task(
    run: Annotated[Path, typer.Argument(help="Run folder whose last stage is finished.")],
    recipe: Annotated[str, typer.Argument(help="Recipe of the new task: a path or a name.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="New run folder to write.", callback=check_folder_option)
    ],
    steps: Annotated[int | None, typer.Option(help="Steps; default those of the last stage.", min=1)] = None,
    replay: Annotated[
        float, typer.Option(help="Share of draws that goes to old data.", min=0, max=0.99)
    ] = 0.2,
    old: Annotated[
        list[str] | None,
        typer.Option(help="Recipes to replay, e.g. of a packed reservoir; default: those of all stages."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key.sub=value of the new stage; repeatable.")
    ] = None,
) -> None:
    """Prepare a run that goes on from a finished one with a new stage: its config, recipe and checkpoints."""
    from uniaudio.assemble.add_task import add_task as prepare

    path = prepare(run, recipe, out, steps, replay, old or [], overrides or [])
    typer.echo(f"continue with: uniaudio train {path} --resume")


@app.command("check-encoder")
def check_encoder(
    model: Model,
    kind: Annotated[
        str, typer.Option(help="auto, a model type, remote, or module:Class of your own.")
    ] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Try whether an encoder keeps its contract: frames, batches, hidden states, gradients, dtype."""
    from uniaudio.config.trust import Trust
    from uniaudio.tools.check_encoder import check_encoder as check

    check(model, kind, Trust(trust_remote_code, allow_code))


@app.command("tune-batch")
def tune_batch(
    config: Config,
    overrides: Overrides = None,
    memory: Annotated[
        float | None, typer.Option(help="GiB to stay within; default nine tenths of the device's.")
    ] = None,
    most: Annotated[float, typer.Option(help="Largest budget to try, in seconds of audio.")] = 4000,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Search the largest budget of a micro-batch that fits the device."""
    from uniaudio.config.trust import Trust
    from uniaudio.tools.tune import tune_batch as tune

    tune(config, overrides or [], memory, most, trust=Trust(trust_remote_code, allow_code))


@app.command()
def serve(
    checkpoint: Annotated[str, typer.Argument(help="Run folder or checkpoint.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 7860,
    max_seconds: Annotated[float, typer.Option(help="Longest clip.", min=0.1)] = 60,
    max_mib: Annotated[float, typer.Option(help="Largest file, in MiB.", min=0.01)] = 20,
    timeout: Annotated[float, typer.Option(help="Seconds that one question may take.", min=1)] = 60,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Open a page on this machine where clips are recorded or dropped and the model is asked about them."""
    from uniaudio.serve.extra import require_server

    require_server()
    from uniaudio.config.trust import Trust
    from uniaudio.serve.limits import Limits
    from uniaudio.serve.start import serve as open_page

    limits = Limits(max_seconds, max_mib, timeout)
    open_page(checkpoint, host, port, limits, Trust(trust_remote_code, allow_code))


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="run, recipe, card, template or suite.")],
) -> None:
    """Print the JSON schema (draft 2020-12) of a kind of YAML file, for editors that complete and check keys.

    Example: uniaudio schema run > run.schema.json
    """
    from uniaudio.commands.schema import show_schema

    typer.echo(show_schema(kind))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.", callback=check_folder_option)] = Path(
        "runs/demo"
    ),
    quick: Annotated[bool, typer.Option(help="A few steps only, to see that everything works.")] = False,
) -> None:
    """See the whole idea in five minutes on generated sounds and speech, without any download."""
    from uniaudio.demo.run import run_demo

    run_demo(out, quick)


def with_resume_value(arguments: list[str]) -> list[str]:
    """Let ``--resume`` stand alone: options with an optional value do not exist in typer."""
    result = []
    for index, argument in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        result.append("--resume=yes" if argument == "--resume" and following != "auto" else argument)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with the exit codes 0, 1, 2 (user's mistake) or 75 (stopped, may continue)."""
    try:
        app(args=with_resume_value(sys.argv[1:] if arguments is None else arguments))
    except (UserError, LostProcessError) as told:
        typer.echo(f"uniaudio: {told}", err=True)
        sys.exit(2 if isinstance(told, UserError) else 1)
