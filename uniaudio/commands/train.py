"""From a run config to a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from uniaudio.build.encoders import pin_models
from uniaudio.build.model import (
    LoadedModel,
    build_model,
    find_decoder,
    keep_miniature,
    load_stage_recipes,
    read_decoder_config,
    read_stored_markup,
    train_miniature,
)
from uniaudio.build.regression_guard import (
    describe_guard_drops,
    measure_reference,
    print_note,
    read_guarded_sets,
    read_reference,
    write_reference,
)
from uniaudio.build.stage_data import StageData
from uniaudio.checks.cache_settings import describe_cached_crops, refuse_useless_caches
from uniaudio.checks.imported_encoders import check_imported_encoders
from uniaudio.checks.stages import ParameterNames, check_stage_names, check_stage_rows, sketch_stages
from uniaudio.checks.weight_files import check_weight_files
from uniaudio.commands.check import check_all_names
from uniaudio.commands.evaluate import (
    check_evaluation_sets,
    compute_validation_losses,
    drop_answers,
    evaluate_recipe,
    make_prediction_settings,
)
from uniaudio.config.run import RunConfig
from uniaudio.config.trust import remember_run
from uniaudio.console import make_console, print_warning
from uniaudio.data.eval_examples import EvalSamples
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import Recipe
from uniaudio.data.worker_faults import explain_worker_faults
from uniaudio.distributed import (
    explain_lost_processes,
    gather_objects,
    is_distributed,
    is_main,
    refuse_together,
    shutdown_process_group,
)
from uniaudio.estimate.activation_checkpointing import make_chooser
from uniaudio.evaluate.probing.task_rows import TaskRows
from uniaudio.model.audio_lm import cast_to_audio_lm
from uniaudio.outputs import check_output_folder, is_main_rank
from uniaudio.report.clip_players import find_examples
from uniaudio.train.activation_checkpointing import Recomputing
from uniaudio.train.callbacks import collect_callbacks
from uniaudio.train.checkpoint.folders import STAGE_END, refuse_begun_run
from uniaudio.train.checkpoint.reading import Checkpoint
from uniaudio.train.engines.accelerator import (
    choose_building_device,
    forget_launch,
    make_accelerator,
    name_spreading_engine,
)
from uniaudio.train.engines.base import Engine
from uniaudio.train.engines.conflicts import refuse_what_shards_cannot
from uniaudio.train.host_agreement import require_same_run, require_same_weights
from uniaudio.train.loggers import print_finished_run
from uniaudio.train.memory_allocator import recommend_allocator
from uniaudio.train.resume import check_resume, find_newest_checkpoint, is_finished, print_changes
from uniaudio.train.run_lock import hold_run_folder
from uniaudio.train.stage_setup import has_reference
from uniaudio.train.stages import train_stages
from uniaudio.train.state import TrainState
from uniaudio.train.tracker_kinds import AnswerSample
from uniaudio.train.trackers import list_tracker_names, refuse_missing_trackers
from uniaudio.train.trainable import TrainableParameters
from uniaudio.types import SAMPLE_RATE, Example

# of every evaluation, what experiment trackers get to look at
ANSWERS_OF_A_SET, MOST_ANSWERS, SECONDS_OF_A_CLIP = 4, 16, 10


def run_training(
    config: RunConfig, resume: str | None, callbacks: Sequence[object] = (), keep_group: bool = False
) -> int:
    """Train as the config says and return the exit code.

    Args:
        resume: None starts (and refuses a folder with a run in it), "yes" continues, "auto" does what fits.
        callbacks: of the user, besides those of the config; see ``train/callbacks.py``.
        keep_group: leave the process group open for what the caller does next: a launcher lets processes meet once.

    Raises:
        UserError: for every mistake that can be seen before the first step, and for those of the data.
    """
    check_run_folder(config, resume)
    config.require_trust()
    callbacks = collect_callbacks(callbacks, config.train.callbacks, config.trust)
    refuse_missing_trackers(config)
    recipes = load_stage_recipes(config)
    sketch_stages(config)
    if not config.decoder.trust_remote_code:
        # of a decoder that the Hub does not give, nobody has to wait for the rest
        architecture = read_decoder_config(config)
        if config.decoder.train != "frozen":  # so that a stage may train it alone, or freeze it, too
            check_all_names(config, architecture)
    check_weight_files(config)
    sets = read_guarded_sets(config)
    try:
        accelerator = make_accelerator(config)
        require_same_run(config, recipes, accelerator)
        with explain_lost_processes(), explain_worker_faults():
            with hold_run_folder(Path(config.output_dir)):
                code = train_in_held_folder(config, resume, accelerator, recipes, sets, callbacks)
            if not keep_group:
                shutdown_process_group()
    finally:
        if not is_distributed():
            forget_launch()
    return code


def check_run_folder(config: RunConfig, resume: str | None) -> bool:
    """Refuse a run folder that cannot be written, or that holds a run which nobody said is to go on.

    Returns:
        Whether there is a run in it.

    Raises:
        UserError: naming the folder; where it cannot be written, on the main process.
    """
    folder = Path(config.output_dir)
    if is_main_rank():
        check_output_folder(folder, "output_dir")
    return refuse_begun_run(folder, resume)


def train_in_held_folder(
    config: RunConfig,
    resume: str | None,
    accelerator: Accelerator,
    recipes: Sequence[Recipe],
    sets: list[TaskRows],
    callbacks: Sequence[object],
) -> int:
    """Train in a run folder whose lock is held, and return the exit code; see ``run_training``."""
    # again: a run may have ended since; the folder may be another one on other machines
    begun = gather_objects(refuse_begun_run(Path(config.output_dir), resume))[0]
    continued = resume == "yes" or (resume == "auto" and begun)
    checkpoint = open_newest(config) if continued else None
    stage = 0
    if checkpoint is not None:
        position = TrainState.from_state(checkpoint.state)
        if is_finished(position, config):
            print_finished_run(Path(config.output_dir), is_main(), position.step)
            return 0
        stage = position.stage + bool(checkpoint.state.get(STAGE_END))
    warnings = check_imported_encoders(config, accelerator.device)
    if advice := recommend_allocator(accelerator.device.type, config.total_steps):
        warnings.append(advice)
    if is_main():
        for warning in warnings:
            print_warning(warning, make_console(stderr=True))
    check_later_stages(config, recipes, accelerator, stage)
    models = RunModels(config, recipes, sets, accelerator, continued, checkpoint)
    if config.train.evaluate_every is not None:
        check_evaluation_sets(recipes[-1], models.format)
    data = StageData(config, recipes, models.format)
    evaluator = RunEvaluator(config, recipes, models.format, models.bases, sets)
    return train_stages(models, data, evaluator, config, accelerator, checkpoint, callbacks)


def open_newest(config: RunConfig) -> Checkpoint:
    """Return the newest checkpoint of a run that is to go on, and print what the config has changed since.

    Raises:
        UserError: when there is none that can be used, or the config does not fit it.
    """
    run_dir = Path(config.output_dir)
    checkpoint = find_newest_checkpoint(
        run_dir, [index for index, stage in enumerate(config.stages) if has_reference(stage)]
    )
    print_changes(check_resume(config, checkpoint), checkpoint.state["step"])
    if config.guard is not None and not is_finished(TrainState.from_state(checkpoint.state), config):
        scores = read_reference(config.guard, run_dir)
        for name in config.guard.sets:
            if name not in scores and is_main():
                print_note(f"{name} is not guarded: it was left out when the run began")
    return checkpoint


def check_later_stages(
    config: RunConfig, recipes: Sequence[Recipe], accelerator: Accelerator, begun: int
) -> None:
    """Refuse what would end the run only at the boundary of a stage, or at an evaluation.

    The main process reads rows, and all are refused together.

    Args:
        begun: the index of the stage that begins or goes on; the data of stages that are over may be gone.

    Raises:
        UserError: see ``check_stage_rows``; for means that the engine cannot do.
    """
    for stage in config.stages[begun:]:
        refuse_what_shards_cannot(name_spreading_engine(accelerator), stage, config)
    with refuse_together():
        if is_main():
            check_stage_rows(config, recipes, begun)


class RunModels:
    """Builds the models of a run's stages: the ``Models`` of the loop. The first is built at once, to be checked.

    Args:
        recipes: one per stage. sets: the guarded ones. continued: the run goes on. checkpoint: from which it does.

    Raises:
        UserError: for what does not fit the model, see ``build_model`` and ``check_stage_names``.

    Attributes:
        format: of the conversations. bases: identities of the starting weights.
    """

    def __init__(
        self,
        config: RunConfig,
        recipes: Sequence[Recipe],
        sets: list[TaskRows],
        accelerator: Accelerator,
        continued: bool,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.config, self.device = config, choose_building_device(accelerator)
        # what the models are built from, when the run goes on: a revision that is stated now counts
        self.pinned = config if checkpoint is None else pin_models(config, checkpoint.bases, keep_stated=True)
        self.run_dir = Path(config.output_dir)
        self.kept = self.run_dir / "decoder"
        self.miniature: Path | None = None  # one that is not in the run folder yet
        if config.decoder.miniature is not None and not (continued and self.kept.is_dir()):
            self.miniature = train_miniature(config, recipes)
        path = find_decoder(config, self.kept) if self.miniature is None else str(self.miniature)
        markup = None if checkpoint is None else read_stored_markup(checkpoint)
        loaded = build_model(self.pinned, path, self.device, markup)
        self.format, self.bases = loaded.format, loaded.bases
        require_same_weights(self.bases)
        if self.miniature is not None:
            self.bases["decoder"]["path"] = str(self.kept)
        # ``sketch_stages`` has done this where it had a sketch
        refuse_useless_caches(config, TrainableParameters.of(loaded.model).usual)
        if is_main() and not continued:
            for note in describe_cached_crops(loaded.model.encoder, config):
                print_warning(note)
        check_stage_names(config, ParameterNames.of(loaded.model))
        self.reference: dict[str, Any] | None = None
        if config.guard is not None and not continued:
            with refuse_together():
                if is_main():
                    self.reference = measure_reference(loaded.model.encoder, sets, config.guard)
        self.choose = make_chooser(config, recipes, loaded.model, accelerator.device)
        self.first: nn.Module | None = loaded.model

    def build(self) -> nn.Module:
        """Return a new model, the first time the one that was checked."""
        model, self.first = self.first, None  # the loop is to free it when the next stage begins
        if model is not None:
            return model
        path = find_decoder(self.config, self.kept)
        return build_model(self.pinned, path, self.device, self.format.markup).model

    def choose_recomputing(self, stage: int, engine: Engine) -> Recomputing:
        """Let parts of the model of a stage recompute their activations, and return which."""
        return self.choose(stage, engine)

    def write_start(self) -> None:
        """Write a new miniature decoder and the scores of the guarded sets, and remember the trust that was given."""
        if self.miniature is not None:
            keep_miniature(self.miniature, self.kept)
        if self.reference is not None:
            write_reference(self.reference, self.run_dir)
        remember_run(self.run_dir, self.config.collect_trust_settings(), self.config.trust)


@dataclass(frozen=True)
class RunEvaluator:
    """Evaluates the model while it trains: its losses, its answers, and what it must not forget.

    Args:
        recipes: one per stage. sets: the guarded ones. clips: the examples that are shown, by set and id.
    """

    config: RunConfig
    recipes: Sequence[Recipe]
    format: ChatFormat
    bases: dict[str, dict[str, str]]
    sets: list[TaskRows]
    samples: EvalSamples = field(default_factory=EvalSamples)
    clips: dict[str, dict[str, Example]] = field(default_factory=dict)

    def wrap_model(self, model: nn.Module) -> LoadedModel:
        return LoadedModel(cast_to_audio_lm(model), self.format, self.config, self.bases)

    def compute_validation_losses(
        self, stage: int, model: nn.Module, count: int, shared: bool
    ) -> tuple[dict[str, float], list[str]]:
        """Return the loss per answer token of each task of a stage, and a sentence for each set that is left out."""
        return compute_validation_losses(
            self.wrap_model(model), self.recipes[stage], count, shared, self.samples
        )

    def evaluate(self, model: nn.Module, shared: bool) -> tuple[dict[str, Any], list[AnswerSample]]:
        """Return the scores of the evaluation sets of the last stage, and some answers where a tracker takes them."""
        loaded = self.wrap_model(model)
        settings = make_prediction_settings(loaded, shared=shared)
        results = evaluate_recipe(loaded, self.recipes[-1], settings, samples=self.samples)
        wanted = is_main() and list_tracker_names(self.config)
        shown = self.collect_samples(results) if wanted else []
        return drop_answers(results), shown

    def collect_samples(self, results: dict[str, dict[str, Any]]) -> list[AnswerSample]:
        """Return the first answers of every set with their clips; those are read once."""
        shown = []
        for entry in self.recipes[-1].evaluate:
            answers = {item["id"]: item for item in results[entry.name]["answers"][:ANSWERS_OF_A_SET]}
            known = self.clips.setdefault(
                entry.name, {}
            )  # two sets may ask other questions about the same clips
            if missing := [name for name in answers if name not in known]:
                known.update(find_examples(entry, missing))
            for name, item in answers.items():
                example = known.get(name)
                question = " ".join("".join(example.prompt).split()) if example else ""
                clip = (
                    example.clips[0][: SECONDS_OF_A_CLIP * SAMPLE_RATE] if example and example.clips else None
                )
                shown.append(
                    AnswerSample(entry.name, name, question, item["reference"], item["answer"], clip)
                )
        return shown[:MOST_ANSWERS]

    def check_guard(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """Return a sentence for each guarded set that lost more than the guard allows, and about clips left out."""
        assert self.config.guard is not None
        encoder = cast_to_audio_lm(model).encoder
        return describe_guard_drops(encoder, self.sets, self.config.guard, Path(self.config.output_dir))
