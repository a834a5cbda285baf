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
from uniaudio.console import announce, silence_known_warnings
from uniaudio.errors import LostProcessError, UserError
from uniaudio.extras import require_package
from uniaudio.orphans import leave_message
from uniaudio.outputs import check_file_option, check_folder_option

LOADING = "loading torch and transformers ..."  # said before the slow imports
TRAIN, EVALUATE, DATA, USE = "Train", "Evaluate", "Data", "Use"  # panels of `uniaudio --help`

app = typer.Typer(
    name="uniaudio",
    help="Train universal audio encoders by asking them questions through a frozen language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Import, summarise, pack and time the data of a recipe.", no_args_is_help=True)
app.add_typer(data, name="data", rich_help_panel=DATA)
RecipeName = Annotated[str, typer.Argument(help="Recipe or run config: a path or a name.")]

Config = Annotated[str, typer.Argument(help="Run config: a path, or a name found in configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides such as train.max_steps=100; +mini applies the miniature variant."),
]
Model = Annotated[
    str,
    typer.Argument(
        help="Run folder, checkpoint, folder or Hub name of an encoder, or random:PATH; options as in "
        "'MODEL?pad_to=30'."
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow Python code that comes with a model.")
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
        typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Shared options of all commands."""


@app.command(rich_help_panel=TRAIN, epilog="Example: uniaudio train configs/birds.yaml train.max_steps=100")
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(help="Continue the run in output_dir; with 'auto', only if there is one.")
    ] = None,
    tune_batch: Annotated[
        bool, typer.Option(help="First search for the largest batch size that fits, then train with it.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Train an encoder in this process.

    Reads: the config, its recipes, cards and templates, the data and the pretrained weights.
    Writes: the run folder (output_dir) with config.yaml, metrics.jsonl, skipped.jsonl, tensorboard/ and checkpoints/.
    Prints: loss, learning rate and throughput every train.log_every steps. Exit code 75: stopped early, use --resume.
    """
    from uniaudio.orphans import end_with_parent, is_launched

    if is_launched():  # before the slow imports, in which a launcher may die
        end_with_parent(f"process {os.environ.get('RANK', '0')} of a launch")
    announce(LOADING)
    from uniaudio.host_watch import watch_other_hosts

    with watch_other_hosts():  # before the other slow imports, of which one may fail on one machine alone
        from uniaudio.build.run_config import open_run
        from uniaudio.commands.train import run_training
        from uniaudio.config.trust import Trust

        check_resume_option(resume)
        overrides, trust = overrides or [], Trust(trust_remote_code, allow_code)
        if tune_batch:
            from uniaudio.commands.tune_batch import tune_overrides

            overrides = tune_overrides(config, overrides, trust)
        code = run_training(open_run(config, overrides, trust), resume)
    raise typer.Exit(code)


@app.command(rich_help_panel=TRAIN, epilog="Example: uniaudio launch ddp configs/birds.yaml -n 2")
def launch(
    engine: Annotated[
        str,
        typer.Argument(
            help="single, ddp, zero1, zero2, zero3, zero3_offload, fsdp2, or the path of a file of accelerate."
        ),
    ],
    config: Config,
    overrides: Overrides = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "-n", "--processes", help="Processes on each machine; default: one for each GPU.", min=1
        ),
    ] = None,
    machines: Annotated[int, typer.Option(help="Machines; run the command on each.", min=1)] = 1,
    rank: Annotated[int, typer.Option(help="Number of this machine, from 0.", min=0)] = 0,
    address: Annotated[str, typer.Option(help="Host name or IP of machine 0.")] = "",
    port: Annotated[int, typer.Option(help="Port of machine 0.", min=1, max=65535)] = 29500,
    rendezvous: Annotated[str, typer.Option(help="How machines meet: static or c10d.")] = "static",
    resume: Annotated[
        str | None, typer.Option(help="Continue the run in output_dir; with 'auto', only if there is one.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Train in several processes, on one or several machines.

    Reads: the launch file of the engine, then as `uniaudio train`.
    Writes: as `uniaudio train`.
    Prints: as `uniaudio train`, and ends with its exit code (75: stopped early, use --resume).
    """
    announce(LOADING)
    from uniaudio.build.run_config import open_run
    from uniaudio.commands.launch import Machines, launch_training
    from uniaudio.config.trust import Trust

    check_resume_option(resume)
    run = open_run(config, overrides or [], Trust(trust_remote_code, allow_code))
    arguments = [config, *(overrides or [])]
    arguments += ["--trust-remote-code"] * trust_remote_code + ["--allow-code"] * allow_code
    if resume is not None:
        arguments += ["--resume", *(["auto"] if resume == "auto" else [])]
    places = Machines(machines, rank, address, port, rendezvous)
    raise typer.Exit(launch_training(engine, run, arguments, processes, places))


def check_resume_option(resume: str | None) -> None:
    """Refuse a value of --resume that is none."""
    if resume not in (None, "auto", "yes"):
        raise UserError(f"--resume {resume}: give --resume alone, or --resume auto")


@app.command(rich_help_panel=TRAIN, epilog="Example: uniaudio check configs/birds.yaml")
def check(
    config: Config,
    overrides: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Find mistakes in a run config and its data without a model.

    Reads: the config, its recipes, cards and templates, the first rows of the data, config.json of its models.
    Writes: nothing.
    Prints: parameters, columns, warnings and the cost of a step; the first mistake ends it with exit code 2.
    """
    announce(LOADING)
    from uniaudio.build.run_config import open_run
    from uniaudio.commands.check import check_run
    from uniaudio.config.trust import Trust

    check_run(open_run(config, overrides or [], Trust(trust_remote_code, allow_code)))


@app.command(rich_help_panel=TRAIN, epilog="Example: uniaudio plan configs/birds.yaml --gpus 8 --memory 80")
def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="Number of GPUs.", min=1)] = 8,
    memory: Annotated[float, typer.Option(help="GiB of one GPU.", min=1)] = 80,
    tflops: Annotated[
        float, typer.Option(help="TFLOP/s of one GPU in large matrix products.", min=0.001)
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
    announce(LOADING)
    from uniaudio.build.run_config import open_run
    from uniaudio.checks.recipe import QUESTION, AverageClip
    from uniaudio.commands.plan import show_plan
    from uniaudio.config.trust import Trust
    from uniaudio.estimate.memory import Machine

    clip = None if seconds is None else AverageClip(seconds, QUESTION, answer_tokens)
    run = open_run(config, overrides or [], Trust(trust_remote_code))
    show_plan(run, Machine(gpus, memory, tflops, efficiency), clip)


@app.command(
    rich_help_panel=EVALUATE,
    epilog="Example: uniaudio probe openai/whisper-small runs/birds --data birds=/data/birds --out probes.json",
)
def probe(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, checkpoints, folders or Hub names of encoders, random:PATH; options as in "
            "'MODEL?pad_to=30'."
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
    layers: Annotated[bool, typer.Option(help="Also probe every hidden state.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", callback=check_file_option)] = None,
    seeds: Annotated[int, typer.Option(help="Probe seeds.", min=1)] = 3,
    references: Annotated[
        bool,
        typer.Option(
            "--references/--no-references",
            help="Also probe the untrained encoders of runs: with the run's settings, and at their best.",
        ),
    ] = True,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Train probes on the frozen embeddings of encoders.

    Reads: the encoders, and the clips of labelled folders (--data) or of a suite's dataset cards (--suite).
    Writes: scores as JSON (--out); embeddings of suites are cached in $UNIAUDIO_CACHE.
    Prints: scores of linear, MLP and kNN probes by task and model, mean and spread over seeds.
    """
    announce(LOADING)
    from uniaudio.commands.probe import run_probe
    from uniaudio.config.trust import Trust

    trust = Trust(trust_remote_code, allow_code)
    run_probe(models, data or [], suite, protocol, out, seeds, layers, trust, references)


@app.command("eval", rich_help_panel=EVALUATE, epilog="Example: uniaudio eval runs/birds --out answers.json")
def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, checkpoint or exported whole model.")],
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe with the evaluation sets; default: that of the last stage.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", callback=check_file_option)] = None,
    max_examples: Annotated[
        int | None, typer.Option(help="Rows of each set; overrides the recipe. Default: all.", min=1)
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Folder for the answers as JSON Lines, for scorers of other packages.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="own, or xares-llm: scores of the challenge.")] = "own",
    labels: Annotated[bool, typer.Option(help="Score the labels of closed sets by likelihood too.")] = True,
    batch_seconds: Annotated[
        float | None, typer.Option(help="Batch size in seconds of audio; default: from the config.", min=1)
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Generate and score answers on a recipe's evaluation sets.

    Reads: the model's newest checkpoint, the recipe (default: that of its last stage), cards, templates and clips.
    Writes: scores and answers as JSON (--out); answers alone as JSON Lines, a file for each set (--answers).
    Prints: scores by evaluation set with 95 % confidence intervals. Runs under `accelerate launch`, too.
    """
    announce(LOADING)
    from uniaudio.commands.evaluate import run_evaluation
    from uniaudio.config.trust import Trust

    trust = Trust(trust_remote_code, allow_code)
    run_evaluation(model, recipe, out, max_examples, protocol, labels, batch_seconds, trust, answers=answers)


@data.command("stats", epilog="Example: uniaudio data stats configs/birds.yaml --steps 20000")
def data_stats(
    recipe: RecipeName,
    steps: Annotated[int | None, typer.Option(help="Steps to count epochs for.", min=1)] = None,
    rows: Annotated[int, typer.Option(help="Rows of every source to read.", min=1)] = 2000,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", callback=check_file_option)] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG file to draw the lengths into.", callback=check_file_option)
    ] = None,
    hours: Annotated[
        bool, typer.Option("--hours", help="Only add up the hours that the cards state; no data are opened.")
    ] = False,
) -> None:
    """Summarise hours, lengths, shares and epochs by source.

    Reads: the recipe, its cards and templates, and up to --rows rows of every source (none with --hours).
    Writes: the figures as JSON (--out) and a histogram of lengths as PNG (--plot).
    Prints: a table by source.
    """
    if plot is not None:
        require_package("matplotlib", "--plot")
    from uniaudio.commands.data_stats import show_hours, show_stats

    if not hours:
        show_stats(recipe, steps, rows, out, plot)
    elif steps is not None or plot is not None:
        raise UserError(
            "--hours opens no data, so it has no epochs (--steps) and no lengths (--plot); leave them out"
        )
    else:
        show_hours(recipe, out)


@data.command("import", epilog="Example: uniaudio data import librispeech ~/LibriSpeech -o my_data")
def data_import(
    kind: Annotated[
        str,
        typer.Argument(
            help="Layout of the source: xares-llm, common-voice, librispeech, lhotse, nemo, messages or saved."
        ),
    ],
    source: Annotated[Path, typer.Argument(help="Folder or file to import; it is only read.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="New folder for recipe, cards and templates.", callback=check_folder_option
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the recipe. Default: that of the new folder.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that holds the clips or shards, where the source does not say it."),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            help="xares-llm: all (default), task1, task2, the name of one set, or a file; repeatable."
        ),
    ] = None,
    turns: Annotated[
        str, typer.Option(help="messages: learn the last answer of a conversation, or all.")
    ] = "last",
) -> None:
    """Write cards, templates and a recipe for published data.

    Reads: the source; of the audio only headers of the first rows.
    Writes: a new folder with the recipe, its cards in datasets/, templates and, where needed, manifests.
    Prints: rows, hours, columns and answers of every split, what was passed over, and the commands to go on with.
    """
    from uniaudio.commands.data_import import import_data

    import_data(kind, source, out, name, root, config or [], turns)


@data.command("pack", epilog="Example: uniaudio data pack birds --out packed")
def data_pack(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option(help="New folder to write.", callback=check_folder_option)],
    shard_mib: Annotated[int, typer.Option(help="Size of a file, in MiB.", min=1)] = 512,
    rows: Annotated[
        int | None,
        typer.Option(help="Keep this many rows of every training split, as a sample to replay.", min=1),
    ] = None,
) -> None:
    """Convert clips to FLAC in large files with an index.

    Reads: the recipe, its cards and templates, all rows and clips.
    Writes: a new folder with 16 kHz FLAC, cards and a recipe over them, for fast local training.
    Prints: rows and hours by split, and the recipe to train with.
    """
    from uniaudio.commands.data_pack import pack_recipe

    pack_recipe(recipe, out, shard_mib, rows=rows)


@data.command("bench", epilog="Example: uniaudio data bench birds --seconds 10")
def data_bench(
    recipe: RecipeName,
    seconds: Annotated[float, typer.Option(help="Seconds to measure each number of workers.")] = 10,
    workers: Annotated[list[int] | None, typer.Option(help="Numbers of workers to try; repeatable.")] = None,
) -> None:
    """Measure the throughput of data loading by workers.

    Reads: the recipe, its cards and templates, and clips for --seconds with each number of workers.
    Writes: nothing.
    Prints: a table of seconds of audio per second.
    """
    from uniaudio.commands.data_bench import bench_recipe

    bench_recipe(recipe, seconds, workers)


@app.command(rich_help_panel=DATA, epilog="Example: uniaudio preview data_recipes/birds.yaml -n 5")
def preview(
    recipe: Annotated[str, typer.Argument(help="Recipe or run config (a path or a name), or run folder.")],
    number: Annotated[int, typer.Option("-n", "--number", help="Examples to show.", min=1)] = 5,
    decoder: Annotated[
        str | None, typer.Option(help="Folder or name of the decoder whose tokenizer counts the tokens.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of examples.")] = 0,
) -> None:
    """Show rendered examples of a recipe with token counts.

    Reads: the recipe, its cards and templates, some rows and their clips, the decoder's tokenizer.
    Writes: nothing.
    Prints: prompts with the supervised answer in colour, tokens, clip seconds; skipped rows with the reason.
    """
    from uniaudio.commands.preview import preview as show

    show(recipe, number, decoder, seed)


@app.command(rich_help_panel=USE, epilog='Example: uniaudio ask runs/birds clip.wav "Which bird is calling?"')
def ask(
    model: Annotated[str, typer.Argument(help="Run folder, checkpoint or exported whole model.")],
    clip: Annotated[Path, typer.Argument(help="Audio file.")],
    text: Annotated[
        str, typer.Argument(help="The question; <audio> marks the position of the clip (default: first).")
    ],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 256,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Ask a trained model one question about one clip.

    Reads: the model's newest checkpoint and the audio file.
    Writes: nothing.
    Prints: the answer.
    """
    announce(LOADING)
    from uniaudio.commands.ask import answer_file_question
    from uniaudio.config.trust import Trust

    typer.echo(answer_file_question(model, clip, text, max_new_tokens, Trust(trust_remote_code, allow_code)))


@app.command(
    rich_help_panel=USE, epilog="Example: uniaudio embed runs/birds dog.flac rain.wav -o embeddings.npz"
)
def embed(
    model: Model,
    clips: Annotated[list[Path], typer.Argument(help="Audio files.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="NPZ file to write.", callback=check_file_option)],
    frames: Annotated[bool, typer.Option(help="Also store the frames of every clip.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Write embeddings of clips to an NPZ file.

    Reads: the encoder and the audio files.
    Writes: `files`, `embeddings` (means over frames), `frame_rate`, and with --frames `frames_0`, `frames_1` ...
    Prints: the file, the number of clips and the width of an embedding.
    """
    announce(LOADING)
    from uniaudio.commands.embed import embed_files
    from uniaudio.config.trust import Trust

    embed_files(model, clips, out, frames, Trust(trust_remote_code, allow_code))


@app.command(rich_help_panel=USE, epilog="Example: uniaudio export runs/birds birds_encoder --to hf")
def export(
    checkpoint: Model,
    out: Annotated[
        Path, typer.Argument(metavar="DIR", help="New folder to write.", callback=check_folder_option)
    ],
    to: Annotated[
        str,
        typer.Option(
            help="Encoder: hf, xares, xares-llm, mteb, hear or onnx. All: hf-lm, qwen2-audio, audio-flamingo3, "
            "voxtral or ultravox."
        ),
    ] = "hf",
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="OWNER/NAME to upload an hf folder or a whole model to; new ones are private."),
    ] = None,
    decoder: Annotated[
        str, typer.Option(help="With hf-lm: inside writes the decoder's weights, reference names them.")
    ] = "inside",
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Export an encoder, or a whole model in a published format.

    Reads: the checkpoint, and probe scores in the run folder for the model card.
    Writes: a new folder: a transformers model, an entry for X-ARES or XARES-LLM, or an ONNX file.
    Prints: the files, and a line of Python that loads the exported model.
    """
    announce(LOADING)
    from uniaudio.commands.export import export_checkpoint
    from uniaudio.config.trust import Trust

    export_checkpoint(checkpoint, out, to, push_to_hub, Trust(trust_remote_code, allow_code), decoder)


@app.command(rich_help_panel=EVALUATE, epilog="Example: uniaudio report runs/birds -o report.html")
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
    """Write one self-contained HTML page about runs.

    Reads: metrics.jsonl and config.yaml of the runs, probe scores, answers and some clips.
    Writes: an HTML file.
    Prints: the path of the page.
    """
    require_package("matplotlib", "uniaudio report")
    require_package("sklearn", "uniaudio report")
    from uniaudio.commands.report import Wanted, report_runs

    wanted = Wanted(probes or (), answers or (), against or (), audio, embedding_map)
    typer.echo(str(report_runs(runs, out, wanted)))


@app.command(rich_help_panel=EVALUATE, epilog="Example: uniaudio routes runs/mowe --last 0.25")
def routes(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder to write; default RUN.", callback=check_folder_option),
    ] = None,
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
    rich_help_panel=EVALUATE,
    epilog="Example: uniaudio forgetting runs/birds_and_frogs --data birds=/data/birds",
)
def forgetting(
    run: Annotated[Path, typer.Argument(help="Run folder with finished stages.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER to probe, repeatable; default: the config's guarded sets."),
    ] = None,
    learned: Annotated[
        list[str] | None, typer.Option(help="NAME=STAGE that first trains on a set of another name.")
    ] = None,
    answers: Annotated[
        bool, typer.Option(help="Also evaluate answers on the evaluation sets of all stages.")
    ] = True,
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
    """Measure what each stage of a run learned and forgot.

    Reads: the checkpoints at the ends of the stages, labelled folders, and the evaluation sets of all stages.
    Writes: forgetting.json and forgetting.png into the run folder or --out.
    Prints: the matrices of scores by stage and set, forgetting and transfer.
    """
    require_package("matplotlib", "uniaudio forgetting")
    announce(LOADING)
    from uniaudio.commands.forgetting import measure_forgetting
    from uniaudio.config.trust import Trust

    trust = Trust(trust_remote_code, allow_code)
    measure_forgetting(run, data or [], out, learned or [], answers, max_examples, seeds, trust)


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: uniaudio soup runs/birds -o runs/birds_soup --data birds=/data/birds",
)
def soup(
    models: Annotated[list[str], typer.Argument(help="One run to interpolate, or several to average.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="New run folder to write.", callback=check_folder_option)
    ],
    start: Annotated[
        str | None,
        typer.Option(help="Run or checkpoint to interpolate from; default: the encoders' own weights."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of the trained weights; default: chosen by probes.", min=0, max=1),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Comma-separated, for several models.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER whose train split selects alpha; repeatable.")
    ] = None,
    probe: Annotated[str, typer.Option(help="linear, mlp or knn.")] = "knn",
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Average the weights of runs, or of a run and its start.

    Reads: the checkpoints and, with --data, labelled folders whose train splits select the share.
    Writes: a new run folder with one checkpoint and soup.json.
    Prints: accuracy by share (WiSE-FT; several runs: model soup), and the path of the checkpoint.
    """
    announce(LOADING)
    from uniaudio.commands.soup import GRID, make_soup
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


@app.command(
    rich_help_panel=DATA, epilog="Example: uniaudio new birds --data recordings/birds --label species"
)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new task and its files.")],
    data_place: Annotated[
        str,
        typer.Option(
            "--data",
            help="Folder of class folders or of clips with metadata, manifest, Parquet file(s), tars, "
            "folder of save_to_disk, or Hub name.",
        ),
    ],
    text: Annotated[
        str | None, typer.Option(help="Column with the text to learn, such as a transcript.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column with the label to learn.")] = None,
    question: Annotated[
        str | None, typer.Option("--ask", help="The question; default: one that fits the column.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Folder or Hub name of an encoder, or a run; default: a Whisper.")
    ] = None,
    decoder: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a language model; default: a small one.")
    ] = None,
    hub_config: Annotated[
        str | None, typer.Option("--config", help="Which of several configurations of a Hub dataset.")
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Project folder to write into.", callback=check_folder_option)
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write template, card, recipe and run config for your data.

    Reads: the rows of the data, and the headers of some clips.
    Writes: templates/NAME.yaml, data_recipes/datasets/NAME.yaml, data_recipes/NAME.yaml and configs/NAME.yaml.
    Prints: the column that is learned, the splits, and the command that trains.
    """
    announce(LOADING)
    from uniaudio.commands.new import NewTask, create_task

    if text is not None and label is not None:
        raise UserError("give --text or --label, not both")
    create_task(NewTask(name, data_place, text, label, question, encoder, decoder, hub_config, out, force))


@app.command(
    "add-task",
    rich_help_panel=TRAIN,
    epilog="Example: uniaudio add-task runs/birds frogs -o runs/birds_and_frogs --replay 0.2",
)
def add_task(
    run: Annotated[Path, typer.Argument(help="Run folder whose last stage is finished.")],
    recipe: Annotated[str, typer.Argument(help="Recipe of the new task: a path or a name.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="New run folder to write.", callback=check_folder_option)
    ],
    steps: Annotated[int | None, typer.Option(help="Steps; default: as in the last stage.", min=1)] = None,
    replay: Annotated[
        float, typer.Option(help="Share of examples drawn from old data.", min=0, max=0.99)
    ] = 0.2,
    old: Annotated[
        list[str] | None,
        typer.Option(help="Recipes to replay, e.g. of a packed sample; default: those of all stages."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key.sub=value of the new stage; repeatable.")
    ] = None,
) -> None:
    """Prepare a run that continues a finished one on a new task.

    Reads: the finished run and the recipe of the new task.
    Writes: a new run folder with config, recipe and the checkpoints at the ends of the stages.
    Prints: the command that trains it.
    """
    from uniaudio.commands.add_task import add_task as prepare

    path = prepare(run, recipe, out, steps, replay, old or [], overrides or [])
    typer.echo(f"continue with: uniaudio train {path} --resume")


@app.command(
    "check-encoder", rich_help_panel=EVALUATE, epilog="Example: uniaudio check-encoder openai/whisper-small"
)
def check_encoder(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Run folder, checkpoint, folder or Hub name of an encoder, or random:PATH; options as in "
            "'MODEL?pad_to=30'."
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="auto, a model type, remote, or module:Class of your own.")
    ] = "auto",
    families: Annotated[
        bool, typer.Option("--list", help="List the encoders that can be loaded, and those that cannot.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Show what an encoder supports, and test its interface.

    Reads: the encoder; the clips are noise and silence.
    Writes: nothing.
    Prints: execution, LoRA, layer decay, recompute and exports; one line for each test; exit code 2 if one fails.
    """
    announce(LOADING)
    from uniaudio.commands.check_encoder import check_encoder as check
    from uniaudio.commands.check_encoder import list_families
    from uniaudio.config.trust import Trust

    if families:
        list_families()
        return
    if model is None:
        raise UserError("check-encoder: name a MODEL, or give --list for the encoders that can be loaded")
    check(model, kind, Trust(trust_remote_code, allow_code))


@app.command(
    "tune-batch", rich_help_panel=TRAIN, epilog="Example: uniaudio tune-batch configs/birds.yaml --memory 70"
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
    Prints: each budget.audio_seconds it tries with its peak memory, and the override to train with.
    """
    announce(LOADING)
    from uniaudio.commands.tune_batch import tune_batch as tune
    from uniaudio.config.trust import Trust

    tune(config, overrides or [], memory, most, trust=Trust(trust_remote_code, allow_code))


@app.command(rich_help_panel=USE, epilog="Example: uniaudio serve runs/birds --port 7860")
def serve(
    checkpoint: Annotated[str, typer.Argument(help="Run folder, checkpoint or exported whole model.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 selects a free one.", min=0, max=65535)] = 7860,
    max_seconds: Annotated[float, typer.Option(help="Longest clip.", min=0.1)] = 60,
    max_mib: Annotated[float, typer.Option(help="Largest file, in MiB.", min=0.01)] = 20,
    timeout: Annotated[float, typer.Option(help="Seconds that one question may take.", min=1)] = 60,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Open a local web page to ask a model about clips.

    Reads: the model's newest checkpoint; clips that visitors send are not kept.
    Writes: nothing.
    Prints: the address of the page.
    """
    require_package("gradio", "uniaudio serve")
    announce(LOADING)
    from uniaudio.commands.serve import serve as open_page
    from uniaudio.config.trust import Trust
    from uniaudio.serve.limits import Limits

    limits = Limits(max_seconds, max_mib, timeout)
    open_page(checkpoint, host, port, limits, Trust(trust_remote_code, allow_code))


@app.command(rich_help_panel=DATA, epilog="Example: uniaudio schema run")
def schema(
    kind: Annotated[str, typer.Argument(help="run, recipe, card, template or suite.")],
) -> None:
    """Print the JSON schema of a kind of YAML file, for editors.

    Reads: nothing.
    Writes: nothing.
    Prints: a JSON schema (draft 2020-12).
    """
    from uniaudio.commands.schema import show_schema

    typer.echo(show_schema(kind))


@app.command(rich_help_panel=TRAIN, epilog="Example: uniaudio demo --quick")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.", callback=check_folder_option)] = Path(
        "runs/demo"
    ),
    quick: Annotated[bool, typer.Option(help="A few steps only, as a smoke test.")] = False,
) -> None:
    """Train, probe and report on generated audio in five minutes.

    Reads: nothing; nothing is downloaded.
    Writes: the corpus, a run folder and report.html below --out.
    Prints: probe scores and answers before and after training, and the path of the report.
    """
    require_package("matplotlib", "uniaudio demo")
    require_package("sklearn", "uniaudio demo")
    from uniaudio.commands.demo import run_demo

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
    silence_known_warnings()
    try:
        app(args=with_resume_value(sys.argv[1:] if arguments is None else arguments))
    except (UserError, LostProcessError) as error:
        if not leave_message(str(error)):
            typer.echo(f"uniaudio: {error}", err=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
