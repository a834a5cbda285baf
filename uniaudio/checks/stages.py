"""What later stages would be refused for, found before the first step: names, rows, what must not be forgotten."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import nn

from uniaudio.build.adapter import make_adapter
from uniaudio.build.encoder_sketch import sketch_encoder
from uniaudio.build.encoders import EncoderHolder
from uniaudio.checks.cache_settings import refuse_useless_caches
from uniaudio.checks.first_rows import CheckedEntry, check_entry
from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Mode, Stage
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.errors import UserError
from uniaudio.evaluate.metrics.text_metrics import require_metric
from uniaudio.model.lora import strip_lora_name
from uniaudio.model.whisper_decoder import LinearBridge
from uniaudio.train.optim import component_of
from uniaudio.train.trainable import (
    TrainableParameters,
    choose_modes,
    enter_stage,
    explain_nothing_trained,
    refuse_nothing,
)

ANY_WIDTH = 8  # of a decoder; names do not depend on it
MOST_OF_A_SET = 0.5  # share of a set's rows


def sketch_stages(config: RunConfig) -> list[dict[str, int]]:
    """Go through all stages with an encoder without weights, so that what does not fit is reported before any are read.

    Returns:
        For every stage the trained parameters of the encoder's components; nothing where an encoder is not built, see
        ``sketch_encoder``.

    Raises:
        UserError: for expressions that match nothing of encoder or adapter, as far as they begin with one of them, and
            for stages that train nothing, see ``check_stage_names``; for feature caches that no stage could use.
    """
    encoder = sketch_encoder(config)
    if encoder is None:
        return []
    holder = EncoderHolder(encoder)
    trained = []
    with torch.device("meta"):
        structure = TrainableParameters.of(holder)
        refuse_useless_caches(config, structure.usual)
        check_stage_names(config, ParameterNames.of(sketch_parts(config, holder), ("encoder", "adapter")))
        for index in range(len(config.stages)):
            enter_stage(holder, structure, config, index, whole=False)
            sizes: dict[str, int] = {}
            for name, parameter in holder.named_parameters():
                component = component_of(name, config)
                sizes[component] = sizes.get(component, 0) + parameter.numel() * parameter.requires_grad
            trained.append(sizes)
    return trained


def sketch_parts(config: RunConfig, holder: EncoderHolder, decoder_dim: int = ANY_WIDTH) -> nn.Module:
    """Return an encoder and its adapter under the names that they have in a whole model; the decoder is left out.

    Args:
        decoder_dim: width of the decoder; the sizes of the adapter depend on it, the names do not.
    """
    parts = nn.Module()
    parts.encoder = holder.encoder
    if config.decoder.kind == "whisper":
        parts.adapter = LinearBridge(holder.encoder.dim, decoder_dim)
    else:
        parts.adapter = make_adapter(config.adapter, holder.encoder, decoder_dim)
    return parts


@dataclass(frozen=True)
class ParameterNames:
    """The names of a model's parameters, or of some of its parts.

    Args:
        usual: plain name of every parameter to how the components train it. linear: the weights of linear maps.
        parts: the parts that the names are of, when they are not of a whole model ("encoder", "adapter"): expressions
            that may be about another part are not checked then.
    """

    usual: Mapping[str, Mode]
    linear: Collection[str]
    parts: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, model: nn.Module, parts: tuple[str, ...] = ()) -> ParameterNames:
        """Read the names off a model as it was built."""
        linear = {
            strip_lora_name(f"{name}.weight")
            for name, part in model.named_modules()
            if isinstance(part, nn.Linear)
        }
        return cls(TrainableParameters.of(model).usual, linear, parts)

    def is_covered(self, pattern: str) -> bool:
        """Return whether all that an expression can match is known."""
        return not self.parts or pattern.lstrip("^").startswith(self.parts)


def check_stage_names(config: RunConfig, names: ParameterNames) -> None:
    """Refuse expressions of any stage that match nothing they could be about, and stages that train nothing.

    Raises:
        UserError: naming stage and expression.
    """
    for index, stage in enumerate(config.stages):
        where = f"stages.{stage.name}"
        for pattern, mode in stage.train.items():
            if names.is_covered(pattern):
                matched = [name for name in names.usual if re.search(pattern, name)]
                refuse_nothing(matched, names.usual, f"{where}.train", pattern)
                if mode == "lora" and not any(name in names.linear for name in matched):
                    raise UserError(
                        f"{where}.train: '{pattern}' should get low-rank updates, but matches no linear layer"
                    )
        modes = choose_modes(names.usual, stage, whole=False)
        full = [name for name, mode in modes.items() if mode == "full"]
        trained = full + [
            factor
            for name, mode in modes.items()
            if mode == "lora" and name in names.linear
            for factor in name_low_rank_factors(name)
        ]
        is_decoder_known = not names.parts or config.decoder.train == "frozen"
        if not trained and is_decoder_known:
            raise UserError(explain_nothing_trained(stage))
        for pattern in stage.lr:
            if names.is_covered(pattern):
                matched = [name for name in trained if re.search(pattern, name)]
                refuse_nothing(matched, trained, f"{where}.lr", pattern)
        check_anchors(stage, index, full, names)


def describe_unreached_stages(config: RunConfig) -> list[str]:
    """Return a sentence for every stage before which ``train.max_steps`` ends the run."""
    most, before, notes = config.train.max_steps, 0, []
    for stage in config.stages:
        if most is not None and before >= most:
            notes.append(
                f"stage {stage.name} is never trained: train.max_steps is {most}, and the stages before it have "
                f"{before} steps"
            )
        if stage.steps is None:
            break
        before += stage.steps
    return notes


def name_low_rank_factors(weight: str) -> tuple[str, str]:
    """Return the names of the factors of a low-rank update beside a linear map's weight."""
    layer = weight.removesuffix(".weight")
    return (f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight")


def check_anchors(stage: Stage, index: int, full: Sequence[str], names: ParameterNames) -> None:
    """Refuse penalties of a stage that would hold nothing, or have nothing to measure on.

    Args:
        full: the names of what the stage trains in full.
    """
    where = f"stages.{stage.name}.continual"
    l2sp, ewc = stage.continual.l2sp, stage.continual.ewc
    patterns = {name: way.on for name, way in (("l2sp", l2sp), ("ewc", ewc)) if way is not None}
    for name, pattern in patterns.items():
        if names.is_covered(pattern) and not any(re.search(pattern, each) for each in full):
            raise UserError(
                f"{where}.{name}.on: '{pattern}' matches no parameter that the stage trains in full"
            )
    if ewc is not None and ewc.recipe is None and index == 0:
        raise UserError(
            f"{where}.ewc.recipe: the first stage has no previous stage to take it from; name the old recipe"
        )


def check_stage_rows(
    config: RunConfig,
    recipes: Sequence[Recipe],
    begun: int = 0,
    check: Callable[..., CheckedEntry] = check_entry,
) -> None:
    """Read the first rows of what is opened only later: data of later stages, of penalties, of evaluations.

    Args:
        recipes: one per stage. begun: the index of the stage that begins or goes on; of its own training rows only the
            lengths are looked at, for they come with its first step.
        check: ``check_entry``, or one that remembers what it has looked at.

    Raises:
        UserError: as ``check_entry``; for budgets that are too small, metrics whose extra is not installed, an adaptive
            mixture that has nothing to measure, training sets of later stages and data of penalties without a clip that
            can be decoded.
    """
    for index, (stage, recipe) in enumerate(zip(config.stages, recipes, strict=True)):
        if index < begun:
            continue
        longest = config.find_longest_clip(stage)
        pairings = (
            [check(entry, longest) for entry in recipe.train]
            if index > begun
            else read_pairings(recipe, longest, check)
        )
        if index > begun:
            refuse_undecodable_sets(config, stage, recipe, pairings)
        check_budget(config, stage, pairings)
        check_long_clips(config, stage, recipe)
        ewc = stage.continual.ewc
        if ewc is not None and ewc.recipe is not None:
            old = load_recipe(ewc.recipe, near=config.folder)
            refuse_undecodable(
                [check(entry) for entry in old.train], f"stages.{stage.name}.continual.ewc.recipe: {old.name}"
            )
        evaluated = [check(line) for line in recipe.evaluate]
        if stage.balance is not None:
            refuse_nothing_to_measure(stage, recipe, evaluated)
    if config.train.evaluate_every is not None:
        for line in recipes[-1].evaluate:
            require_metric(line.template.scoring)


def read_pairings(recipe: Recipe, longest: float, check: Callable[..., CheckedEntry]) -> list[CheckedEntry]:
    """Return what the first rows of a recipe's sources are like, without those that cannot be used.

    Their rows come with the first step, which counts what is left out and may find others that can be used.
    """
    pairings = []
    for entry in recipe.train:
        with suppress(UserError):
            pairings.append(check(entry, longest))
    return pairings


def check_budget(config: RunConfig, stage: Stage, pairings: Sequence[CheckedEntry]) -> None:
    """Refuse a budget that the average clip of a dataset does not fit into.

    With ``data.max_seconds``, clips up to that length that are above the budget are trained on alone.
    """
    longest = config.data.max_seconds
    for pairing in pairings:
        if pairing.cuts_clips or (longest is not None and pairing.seconds <= longest):
            continue
        cost = pairing.compute_cost(stage.budget.per_example)
        if cost > stage.budget.audio_seconds:
            # a length in milliseconds is no matter of the budget
            refuse_undecodable([pairing], f"stages.{stage.name}")
            raise UserError(
                f"stages.{stage.name}.budget.audio_seconds: {stage.budget.audio_seconds:g} is less than the "
                f"average clip of {pairing.name} costs ({cost:.1f})"
            )


def check_long_clips(config: RunConfig, stage: Stage, recipe: Recipe) -> None:
    """Refuse crops and windows that are longer than the longest clip of a stage.

    Raises:
        UserError: see ``Entry.choose_long_clips``.
    """
    longest = config.find_longest_clip(stage)
    for entry in recipe.train:
        entry.choose_long_clips(longest, f"recipe {recipe.name}: {entry.name}")


def refuse_undecodable(seen: Sequence[CheckedEntry], where: str) -> None:
    """Refuse data of which no clip can be decoded, as far as those that were tried tell: all rows would be left out.

    Args:
        seen: of all sets that are read together; one of them is enough.

    Raises:
        UserError: with the reason of the first row.
    """
    if seen and all(one.undecodable for one in seen):
        names = ", ".join(f"{one.name}, split {one.split}" for one in seen)
        raise UserError(
            f"{where}: none of the clips tried of {names} can be decoded ({seen[0].undecodable}); correct these files, "
            "or what their rows state of them"
        )


def refuse_undecodable_sets(
    config: RunConfig, stage: Stage, recipe: Recipe, seen: Sequence[CheckedEntry]
) -> None:
    """Refuse a stage with a training set of which no clip that was tried can be decoded.

    Training would end with the first rows of the set, unless ``data.max_skipped_share`` lets most of them be lost.

    Args:
        seen: of the recipe's training sets.

    Raises:
        UserError: naming the set.
    """
    for one in seen if config.data.max_skipped_share < MOST_OF_A_SET else ():
        refuse_undecodable([one], f"stages.{stage.name}.recipe: {recipe.name}")


def refuse_nothing_to_measure(stage: Stage, recipe: Recipe, evaluated: Sequence[CheckedEntry]) -> None:
    """Refuse an adaptive mixture whose recipe has no set that a validation loss could be taken of.

    Args:
        evaluated: what the first rows of the recipe's evaluation sets are like.
    """
    measured = [seen for entry, seen in zip(recipe.evaluate, evaluated, strict=True) if not entry.condition]
    refuse_undecodable(measured, f"stages.{stage.name}.balance: evaluation sets of recipe {recipe.name}")
    if not measured:
        raise UserError(
            f"stages.{stage.name}.balance needs validation losses, but recipe {recipe.name} has no "
            "`evaluate` list without a condition; add one, or leave `balance` out"
        )
