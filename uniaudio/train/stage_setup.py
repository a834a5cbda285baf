"""The beginning of a stage, fresh or resumed: model, engine, and what the stage remembers of its start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from uniaudio.config.adapters import RIDGE, GroupingSettings
from uniaudio.config.fusion import FITTED
from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Stage
from uniaudio.console import announce
from uniaudio.errors import UserError
from uniaudio.feature_cache import FeatureWriter
from uniaudio.model.adapter_start import start_adapter
from uniaudio.model.audio_lm import cast_to_audio_lm
from uniaudio.model.cached_encoder import detach_frame_cache, keep_features
from uniaudio.model.compile import compile_layers
from uniaudio.model.fusion_start import start_fusion
from uniaudio.train.checkpoint.folders import name_step_folder
from uniaudio.train.checkpoint.integrity import EMA
from uniaudio.train.checkpoint.reading import Checkpoint, MomentFiles, load_checkpoint
from uniaudio.train.continual.distill import Distiller
from uniaudio.train.continual.ema import MovingAverage
from uniaudio.train.continual.l2_sp_ewc import (
    Anchor,
    copy_parameters,
    find_anchored_parameters,
    iterate_answers,
    load_or_estimate_fisher,
)
from uniaudio.train.engines.accelerator import make_engine, name_spreading_engine
from uniaudio.train.engines.base import Engine
from uniaudio.train.engines.conflicts import refuse_what_shards_cannot
from uniaudio.train.engines.precision import choose_precision
from uniaudio.train.optim import build_optimizer
from uniaudio.train.protocols import Models, TrainingData
from uniaudio.train.state import TrainState
from uniaudio.train.trainable import (
    TrainableParameters,
    collect_tensors,
    enter_stage,
    go_through_stages,
    put_tensors,
)
from uniaudio.types import Batch

FISHER = "fisher"  # folder of a run: what `ewc` measured


@dataclass
class StageModel:
    """The model of a stage in its engine, with the means against forgetting.

    Args:
        carried: tensors that earlier stages changed and this one does not train, on the CPU.
        features: writes the frames of frozen encoders that the config wants kept.
    """

    engine: Engine
    carried: Mapping[str, Tensor]
    anchors: Mapping[str, Anchor] = field(default_factory=dict)
    distiller: Distiller | None = None
    average: MovingAverage | None = None
    features: FeatureWriter | None = None

    def close(self) -> None:
        if self.features is not None:
            self.features.close()
        self.engine.close()


def fit_adapter_start(model: nn.Module, data: TrainingData, config: RunConfig) -> None:
    """Give the adapter of a new run the closed-form start that its config asks for, if it does.

    Raises:
        UserError: when the first stage does not train the adapter.
    """
    settings, recipe = config.adapter, config.stages[0].recipe
    if not isinstance(settings, GroupingSettings) or settings.start != RIDGE:
        return
    announce(f"fitting the initial adapter to {settings.start_examples} rows of {recipe} ...")
    examples = data.iterate_examples(0, model, recipe)
    start_adapter(cast_to_audio_lm(model), examples, settings.start_examples, data.encode_in_text)


def fit_fusion_start(
    model: nn.Module, structure: TrainableParameters, data: TrainingData, config: RunConfig
) -> None:
    """Give the fusion of a new run the closed-form start that its config asks for, if it does.

    Raises:
        UserError: when the first stage does not train all of it.
    """
    settings, recipe = config.fusion, config.stages[0].recipe
    if settings is None or settings.start not in FITTED:
        return
    for name, parameter in model.named_parameters():
        is_fusion = name.startswith("encoder.") and not name.startswith("encoder.encoders.")
        if is_fusion and structure.usual[name] == "full" and not parameter.requires_grad:
            raise UserError(
                f"fusion.start: {settings.start} is for a fusion that is trained in the first "
                f"stage, but {name} is frozen; remove it from `stages[0].train`, or leave `start` "
                "out"
            )
    announce(f"fitting the initial fusion to {settings.start_examples} rows of {recipe} ...")
    examples = data.iterate_examples(0, model, recipe)
    start_fusion(cast_to_audio_lm(model), examples, settings.start_examples, settings.start)


def fit_starts(
    model: nn.Module,
    structure: TrainableParameters,
    data: TrainingData,
    config: RunConfig,
    device: torch.device,
) -> None:
    """Give fusion and adapter of a new run the closed-form starts that its config asks for.

    Raises:
        UserError: when the first stage does not train what has such a start.
    """
    # without autocast, whatever the steps compute in: these are the frames that probes read, and other runs' starts
    keep_features([model], config, None, device, in_training=False)
    fit_fusion_start(model, structure, data, config)
    fit_adapter_start(model, data, config)
    detach_frame_cache(model)


def open_stage(
    models: Models,
    data: TrainingData,
    config: RunConfig,
    accelerator: Accelerator,
    position: TrainState,
    checkpoint: Checkpoint | None,
) -> StageModel:
    """Bring a freshly built model to where ``position`` is and put it into the engine that was launched.

    Every stage begins like a resumed one: from the stage before, as its checkpoint has it. Structure and tensors come
    first, then what the stage remembers of its start, then, within a stage, the tensors of the checkpoint.

    Args:
        checkpoint: what to continue from, of this stage or the end of the one before.

    Raises:
        UserError: for expressions that match nothing, tensors that do not fit, and means that the engine cannot do.
    """
    run_dir, index = Path(config.output_dir), position.stage
    stage = config.stages[index]
    refuse_what_shards_cannot(name_spreading_engine(accelerator), stage, config)
    within = checkpoint is not None and checkpoint.state["stage"] == index
    model = models.build()
    if index == 0:
        structure = TrainableParameters.of(model)
    else:
        structure = go_through_stages(model, config, index - 1)
        before = checkpoint
        if within:  # what goes on without a reference gets all its tensors below
            start = name_step_folder(run_dir, position.stage_start)
            before = load_checkpoint(start) if has_reference(stage) else None
        if before is not None:
            put_tensors(model, structure, before.model, before.path)
    enter_stage(model, structure, config, index)
    # what is measured from the start of a resumed stage is measured from the fitted one
    if index == 0 and (checkpoint is None or has_reference(stage)):
        fit_starts(model, structure, data, config, accelerator.device)
    held = collect_tensors(model, structure)
    anchors = make_anchors(
        model, stage, run_dir, lambda recipe: data.iterate_examples(index, model, recipe), is_resumed=within
    )
    distill = stage.continual.distill
    distiller = Distiller(model, distill, accelerator.device) if distill is not None else None
    if within and checkpoint is not None:
        put_tensors(model, structure, checkpoint.model, checkpoint.path)
    listening = [model] if distiller is None else [model, distiller.model]
    features = keep_features(listening, config, choose_precision(config), accelerator.device)
    carried = {name: t.detach().cpu().clone() for name, t in held.items() if not t.requires_grad}
    if config.train.compile:  # before weights are spread, and after what copies modules or puts others in
        compile_layers(model)
    optimizer = build_optimizer(model, config, stage, accelerator.device)
    engine = make_engine(accelerator, model, optimizer, config)
    average = MovingAverage(model, stage.continual.ema.decay) if stage.continual.ema is not None else None
    if within and checkpoint is not None:
        if position.updates:
            engine.load_moments(MomentFiles(checkpoint.path), position.updates)
        if average is not None and (checkpoint.path / EMA).is_file():
            load_average(average, engine, checkpoint.path)
    return StageModel(engine, carried, anchors, distiller, average, features)


def has_reference(stage: Stage) -> bool:
    """Return whether a stage needs the weights that it began with."""
    ways = stage.continual
    return any(way is not None for way in (ways.l2sp, ways.ewc, ways.distill))


def make_anchors(
    model: nn.Module,
    stage: Stage,
    run_dir: Path,
    examples: Callable[[str | None], Iterator[Batch]],
    is_resumed: bool,
) -> dict[str, Anchor]:
    """Return the penalties of a stage, held to the parameters as they are now."""
    anchors = {}
    where = f"stages.{stage.name}.continual"
    l2sp, ewc = stage.continual.l2sp, stage.continual.ewc
    if l2sp is not None:
        parameters = find_anchored_parameters(model, l2sp.on, f"{where}.l2sp")
        anchors["l2sp"] = Anchor(copy_parameters(parameters), l2sp.weight)
    if ewc is not None:
        parameters = find_anchored_parameters(model, ewc.on, f"{where}.ewc")
        path = run_dir / FISHER / f"{stage.name}.safetensors"
        answers = iterate_answers(examples(ewc.recipe))
        fisher = load_or_estimate_fisher(path, model, parameters, answers, ewc.examples, is_resumed)
        anchors["ewc"] = Anchor(copy_parameters(parameters), ewc.weight, fisher)
    return anchors


def load_average(average: MovingAverage, engine: Engine, path: Path) -> None:
    """Continue a moving average from a checkpoint."""
    stored = load_checkpoint(path, ema=True, verify=False).model
    parameters: dict[str, Any] = dict(engine.plain.named_parameters())
    average.load({name: engine.spread(stored[name], parameters[name]) for name in average.tensors})
