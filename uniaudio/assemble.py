"""From a run config or a checkpoint to working objects: the only file that knows all the parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn
from transformers import AutoTokenizer

from uniaudio.config.run import RunConfig, load_run
from uniaudio.data.audio import decode
from uniaudio.data.batch import collate_prompts
from uniaudio.data.loader import PlanState, StepBatch, joined_states, make_loader, sharing
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.data.source import open_source
from uniaudio.data.stream import Mixture
from uniaudio.data.template import AUDIO
from uniaudio.data.tokens import ChatFormat
from uniaudio.distributed import barrier, is_main, rank, world_size
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.answers import answers_table, evaluate_entry
from uniaudio.evaluate.embed import embed_clips, encode_clips
from uniaudio.evaluate.generate import generate
from uniaudio.evaluate.labelled import LONGEST, load_labelled
from uniaudio.evaluate.report import write_report
from uniaudio.evaluate.table import Scores, probe_models, probe_table
from uniaudio.miniature.text_lm import miniature_decoder
from uniaudio.model.adapter import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import load_decoder
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.whisper import load_whisper
from uniaudio.model.identity import base_identity
from uniaudio.train.checkpoint import check_bases, is_whole, latest_checkpoint, load_checkpoint
from uniaudio.train.engine import make_accelerator
from uniaudio.train.loop import TrainParts, train
from uniaudio.types import Example


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to talk to it."""

    model: AudioLM
    format: ChatFormat
    config: RunConfig
    bases: dict[str, dict[str, str]]


def default_device() -> torch.device:
    """Return CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stage_recipes(config: RunConfig) -> list[Recipe]:
    """Read the recipe of every stage."""
    return [load_recipe(stage.recipe, near=config.folder) for stage in config.stages]


def decoder_path(config: RunConfig, recipes: Sequence[Recipe], kept: Path, train: bool) -> str:
    """Return folder or name of the decoder.

    A miniature one is trained first, by the main process alone, and kept in the run folder: a checkpoint stays usable
    wherever the folder goes.

    Args:
        kept: where the run folder keeps its miniature decoder. train: whether a run begins, rather than is looked at.
    """
    small = config.decoder.miniature
    if small is None:
        return config.decoder.path
    if train and is_main():
        folder = miniature_decoder(small, recipes)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept)
    barrier()
    if not kept.is_dir():
        raise UserError(f"{kept} is missing: the run's miniature decoder belongs beside its checkpoints")
    return str(kept)


def build_encoder(config: RunConfig) -> AudioEncoder:
    """Load the config's encoder, trainable or frozen as it says."""
    settings = config.encoder
    encoder = load_whisper(
        settings.path, settings.revision, settings.pad_to, settings.tail_frames, config.seed
    )
    if settings.train == "frozen":
        encoder.requires_grad_(False)
    return encoder


def build_model(config: RunConfig, path: str, device: torch.device) -> LoadedModel:
    """Load the encoder and the decoder at ``path`` and put a new adapter between them."""
    encoder = build_encoder(config)
    settings = config.decoder
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise UserError(f"decoder.path: the tokenizer of {path} cannot be loaded ({reason})") from problem
    decoder = load_decoder(
        path, settings.revision, settings.dtype, settings.trust_remote_code, settings.attention, device
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the adapter's weights are a function of the seed
        adapter = StackAdapter(
            encoder.dim, encoder.frame_rate, decoder.dim, config.adapter.rate, config.adapter.hidden
        )
    model = AudioLM(encoder, adapter, decoder, config.train.label_chunk).to(device)
    name = next(iter(config.encoders))
    bases = {
        f"encoder {name}": base_identity(config.encoder.path, config.encoder.revision),
        "decoder": decoder.identity,
    }
    return LoadedModel(model, ChatFormat(tokenizer), config, bases)


def run_training(config: RunConfig, resume: str | None) -> int:
    """Train as the config says and return the exit code.

    Args:
        resume: None starts (and refuses a folder with a run in it), "yes" continues, "auto" does what fits.

    Raises:
        UserError: for every mistake that can be seen before the first step, and for those of the data.
    """
    run_dir = Path(config.output_dir)
    continued = resume == "yes" or (resume == "auto" and latest_checkpoint(run_dir) is not None)
    if resume is None and latest_checkpoint(run_dir) is not None:
        raise UserError(
            f"{run_dir} already holds a run: continue it with --resume, or set another output_dir"
        )
    recipes = stage_recipes(config)
    accelerator = make_accelerator(config)
    kept = run_dir / "decoder"
    path = decoder_path(config, recipes, kept, train=not (continued and kept.is_dir()))
    loaded = build_model(config, path, accelerator.device)
    tasks = tuple(sorted({task for recipe in recipes for task in recipe.tasks()}))

    def open_steps(index: int, state: dict[str, Any] | None) -> Iterator[StepBatch]:
        return stage_steps(config, recipes[index], index, loaded, tasks, state)

    def evaluate(model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, AudioLM)
        results = evaluate_recipe(LoadedModel(model, loaded.format, config, loaded.bases), recipes[-1], None)
        return {name: {k: v for k, v in r.items() if k != "answers"} for name, r in results.items()}

    parts = TrainParts(loaded.model, open_steps, joined_states, tasks, loaded.bases, evaluate)
    return train(parts, config, accelerator, continued)


def stage_steps(
    config: RunConfig,
    recipe: Recipe,
    index: int,
    loaded: LoadedModel,
    tasks: tuple[str, ...],
    state: dict[str, Any] | None,
) -> Iterator[StepBatch]:
    """Open the endless steps of a stage for this rank, from a saved position on."""
    mixture = stage_mixture(config, recipe, index, loaded.format, loaded.model.slots_for)
    told = sharing(mixture, config.data.workers, world_size())
    if told and is_main() and state is None:
        Console().print(told, style="yellow", highlight=False)
    return make_loader(
        mixture,
        tasks,
        rank(),
        world_size(),
        config.data.workers,
        config.data.prefetch,
        PlanState.from_json(state) if state else None,
    )


def stage_mixture(
    config: RunConfig, recipe: Recipe, index: int, format: ChatFormat, slots_for: Callable[[int], int]
) -> Mixture:
    """Open the sources of a stage's recipe and mix them as the config says."""
    budget, data = config.stages[index].budget, config.data
    micro_batches = config.train.micro_batches or world_size()
    return Mixture(
        recipe=recipe,
        sources=[open_source(entry.dataset, entry.split) for entry in recipe.train],
        format=format,
        slots_for=slots_for,
        seed=config.seed + index,
        audio_seconds=budget.audio_seconds,
        per_example=budget.per_example,
        tokens=budget.tokens,
        max_seconds=data.max_seconds or budget.audio_seconds,
        micro_batches=micro_batches,
        streams=-(-data.streams // micro_batches) * micro_batches,
        pool=data.pool,
        window=data.window,
        patience=data.patience,
    )


def checkpoint_folder(path: Path) -> Path | None:
    """Return the checkpoint that a run folder or checkpoint folder stands for."""
    return path if is_whole(path) else latest_checkpoint(path)


def load_model(spec: str, device: torch.device | None = None) -> LoadedModel:
    """Load a trained model from a run folder or a checkpoint folder.

    Raises:
        UserError: when there is no whole checkpoint, or its encoder or decoder is not the one it was trained with.
    """
    folder = checkpoint_folder(Path(spec))
    if folder is None:
        raise UserError(f"{spec} is neither a checkpoint nor a run folder with a whole checkpoint in it")
    config = load_run(str(folder / "config.yaml"))
    path = decoder_path(config, [], folder.parent.parent / "decoder", train=False)
    loaded = build_model(config, path, device or default_device())
    checkpoint = load_checkpoint(folder, with_optimizer=False)
    check_bases(checkpoint, loaded.bases)
    loaded.model.load_trainable_state(checkpoint.model)
    loaded.model.eval()
    return loaded


def load_encoder(spec: str, device: torch.device | None = None) -> AudioEncoder:
    """Load an encoder from a run or checkpoint folder, a Whisper folder or Hub name, or ``random:PATH``.

    Raises:
        UserError: when it is none of them.
    """
    device = device or default_device()
    folder = checkpoint_folder(Path(spec))
    if folder is None:
        if (Path(spec) / "checkpoints").is_dir() or (Path(spec) / "metrics.jsonl").is_file():
            raise UserError(f"{spec} is a run folder without a whole checkpoint")
        return load_whisper(spec).to(device).eval()
    config = load_run(str(folder / "config.yaml"))
    encoder = build_encoder(config)
    checkpoint = load_checkpoint(folder, with_optimizer=False)
    name = f"encoder {next(iter(config.encoders))}"
    base = base_identity(config.encoder.path, config.encoder.revision)
    check_bases(checkpoint, {**checkpoint.bases, name: base})
    trained = {
        key.removeprefix("encoder."): value
        for key, value in checkpoint.model.items()
        if key.startswith("encoder.")
    }
    unknown = sorted(set(trained) - set(encoder.state_dict()))
    if unknown:
        raise UserError(f"{folder}: {unknown[0]} is no tensor of the config's encoder")
    encoder.load_state_dict(trained, strict=False)
    return encoder.to(device).eval()


def evaluate_recipe(
    loaded: LoadedModel, recipe: Recipe, max_examples: int | None
) -> dict[str, dict[str, Any]]:
    """Ask all evaluation sets of a recipe; results by ``dataset:template``."""
    settings = loaded.config.evaluate
    return {
        entry.name: evaluate_entry(
            loaded.model,
            loaded.format,
            entry,
            max_examples or settings.max_examples,
            settings.max_new_tokens,
            settings.batch_seconds,
        )
        for entry in recipe.evaluate
    }


def write_json(path: Path | None, data: Any) -> None:
    """Write results where a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def run_probes(models: Sequence[str], data: Sequence[str], out: Path | None, seeds: int) -> Scores:
    """Probe models on labelled folders given as ``NAME=FOLDER``; print a table and write JSON."""
    console = Console()
    sets = []
    for item in data:
        name, equals, folder = item.partition("=")
        if not equals:
            raise UserError(f"--data {item}: write NAME=FOLDER")
        sets.append(load_labelled(name, Path(folder)))
    encoders = {spec: load_encoder(spec) for spec in models}
    scores = probe_models(encoders, sets, seeds, lambda text: console.print(f"probing {text}", style="dim"))
    console.print(probe_table(scores))
    write_json(out, scores)
    return scores


def run_evaluation(
    spec: str, recipe_name: str | None, out: Path | None, max_examples: int | None
) -> dict[str, Any]:
    """Ask a recipe's evaluation sets (default: those of the model's last stage); print a table and write JSON."""
    loaded = load_model(spec)
    recipe = load_recipe(recipe_name) if recipe_name else stage_recipes(loaded.config)[-1]
    if not recipe.evaluate:
        raise UserError(f"recipe {recipe.name} has no `evaluate` list")
    results = evaluate_recipe(loaded, recipe, max_examples)
    Console().print(answers_table(results))
    write_json(out, results)
    return results


def read_clip(path: Path) -> Any:
    """Decode one file for a question.

    Raises:
        UserError: when it cannot be used.
    """
    try:
        return decode(path, LONGEST, str(path))
    except RowError as problem:
        raise UserError(str(problem)) from problem


def answer_question(loaded: LoadedModel, clip: Path, text: str, max_new_tokens: int) -> str:
    """Ask a loaded model one question about one clip."""
    marked = text if AUDIO in text else f"{AUDIO}{text}"
    pieces = tuple(marked.split(AUDIO))
    if len(pieces) != 2:
        raise UserError(f"the question holds {len(pieces) - 1} {AUDIO} marks for one clip")
    example = Example("question", "ask", "ask", (read_clip(clip),), pieces, "-")
    try:
        batch = collate_prompts([example], loaded.format, loaded.model.slots_for, ("ask",))
    except RowError as problem:
        raise UserError(f"the question cannot be asked: {problem}") from problem
    device = next(loaded.model.parameters()).device
    return generate(loaded.model, batch.to(device), loaded.format, max_new_tokens)[0]


def ask(spec: str, clip: Path, text: str, max_new_tokens: int) -> str:
    """Load a model and ask it one question about one clip."""
    read_clip(clip)  # a wrong path is told before a model is loaded
    return answer_question(load_model(spec), clip, text, max_new_tokens)


def embed_files(spec: str, files: Sequence[Path], out: Path, frames: bool) -> None:
    """Write ``files``, ``embeddings [C, E]``, ``frame_rate`` and, on request, ``frames_0 ...`` to an NPZ file."""
    clips = [read_clip(file) for file in files]
    encoder = load_encoder(spec)
    arrays: dict[str, Any] = {
        "files": np.array([str(file) for file in files]),
        "embeddings": embed_clips(encoder, clips),
        "frame_rate": np.array(encoder.frame_rate),
    }
    if frames:
        arrays |= {f"frames_{i}": value for i, value in enumerate(encode_clips(encoder, clips))}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **arrays)
    Console().print(f"{out}: {len(files)} clip(s), {arrays['embeddings'].shape[1]} dimensions")


def report_run(run: Path, out: Path | None) -> Path:
    """Write the page about a run from what its folder holds: metrics, and probes and answers where they were stored.

    Raises:
        UserError: when the folder holds no run.
    """
    if not (run / "metrics.jsonl").is_file():
        raise UserError(f"{run} holds no metrics.jsonl; give the output_dir of a run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    probes, answers = (
        json.loads((run / name).read_text(encoding="utf-8")) if (run / name).is_file() else {}
        for name in ("probes.json", "answers.json")
    )
    finished = any(row.get("event") == "finished" for row in rows)
    facts = {
        "steps": max((row.get("step", 0) for row in rows), default=0),
        "finished": "yes" if finished else "no",
    }
    config_text = (run / "config.yaml").read_text(encoding="utf-8")
    return write_report(out or run / "report.html", run.name, rows, probes, answers, [], config_text, facts)
