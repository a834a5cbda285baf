"""The data of a run's stages."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from uniaudio.config.run import RunConfig
from uniaudio.console import print_warning
from uniaudio.data.loader import PlanState, StepBatch, describe_sharing, join_states, make_loader
from uniaudio.data.mixture import Mixture
from uniaudio.data.permutation import hash_parts
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.data.shard_contents import (
    Contents,
    Times,
    describe_contents,
    describe_rewritten_files,
    explain_change,
    merge_contents,
    read_write_times,
)
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.distributed import is_main, raise_together, rank, world_size
from uniaudio.errors import UserError, mask_values
from uniaudio.model.audio_lm import cast_to_audio_lm
from uniaudio.model.cached_encoder import list_frame_stores
from uniaudio.train.adaptive_mixture import AdaptiveMixture, compute_shares
from uniaudio.train.host_agreement import require_same_data
from uniaudio.types import Batch

# keys of a position: what is known of the files, and when they were last written
CONTENTS, WRITTEN = "contents", "written"


@dataclass(frozen=True)
class StageData:
    """Opens the data of the stages for a model: the ``TrainingData`` of a run, which describes the methods.

    Args:
        recipes: one per stage. format: of the conversations, with the decoder's tokenizer.
        contents, written: what the main process knows of the files of the stages that were opened, and when they were
            last written.
        skips: rows left out by ``iterate_examples`` that ``take_skips`` has not returned yet.
    """

    config: RunConfig
    recipes: Sequence[Recipe]
    format: ChatFormat
    contents: dict[int, Contents] = field(default_factory=dict)
    written: dict[int, Times] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of all tasks that are trained, sorted."""
        return tuple(sorted({task for recipe in self.recipes for task in recipe.list_tasks()}))

    def encode_in_text(self, ids: Sequence[int]) -> list[int]:
        return self.format.encode_in_text(ids)

    def list_entry_tasks(self, stage: int) -> dict[str, list[str]]:
        return {entry.name: [t.task for t in entry.templates] for entry in self.recipes[stage].train}

    def open_mixture(self, stage: int, model: nn.Module, recipe: Recipe | None = None) -> Mixture:
        """Open the sources of a recipe (default: the stage's own) and mix them as the stage says."""
        recipe, sources = (recipe or self.recipes[stage]).open_training_entries()
        lm = cast_to_audio_lm(model)
        budget, data = self.config.stages[stage].budget, self.config.data
        micro_batches = self.config.train.micro_batches or world_size()
        return Mixture(
            recipe=recipe,
            sources=sources,
            format=self.format,
            count_slots=lm.count_slots,
            seed=self.config.seed + stage,
            audio_seconds=budget.audio_seconds,
            per_example=budget.per_example,
            tokens=budget.tokens,
            max_seconds=self.config.find_longest_clip(self.config.stages[stage]),
            micro_batches=micro_batches,
            streams=-(-data.streams // micro_batches) * micro_batches,
            pool=data.pool,
            window=data.window,
            patience=data.patience,
            max_outage=data.max_outage,
            shares_prefixes=lm.shares_prefixes,
        )

    def open_steps(
        self, stage: int, model: nn.Module, balance: AdaptiveMixture, state: dict[str, Any] | None
    ) -> tuple[dict[str, Any], Generator[StepBatch, None, None]]:
        """Open the steps of a stage; every round of an adaptive mixture has its own shares and its own order."""
        mixture = self.open_mixture(stage, model)
        require_same_data(mixture)
        if balance.round:
            train = mixture.recipe.train
            moved = compute_shares([(entry.name, entry.share) for entry in train], balance.factors)
            entries = tuple(replace(entry, share=share) for entry, share in zip(train, moved, strict=True))
            mixture = replace(
                mixture,
                recipe=replace(mixture.recipe, train=entries),
                seed=hash_parts(mixture.seed, "round", balance.round),
            )
        data = self.config.data
        note_of_sharing = describe_sharing(mixture, data.workers, world_size())
        notes = [note_of_sharing] if note_of_sharing else []
        for entry, source in zip(mixture.recipe.train, mixture.sources, strict=True):
            if skipped := describe_left_out(source.left_out):
                notes.append(f"{entry.name}, split {entry.split}: skipped: {skipped}")
            notes += entry.augmenter.list_notes() if entry.augmenter is not None else []
        # once for a stage, at its beginning
        for note in notes if is_main() and state is None and not balance.round else ():
            print_warning(note)
        if stage not in self.contents:
            self.contents[stage] = compare_contents(mixture, state)
            self.written[stage] = compare_write_times(mixture, state)
        position = PlanState.from_json(state) if state else PlanState.at_beginning(mixture)
        steps = make_loader(
            mixture,
            self.tasks,
            rank(),
            world_size(),
            data.workers,
            data.prefetch,
            position,
            list_frame_stores(model),
        )
        return position.to_json(), steps

    def join_states(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        last = max(self.contents, default=0)
        known = {CONTENTS: self.contents.get(last), WRITTEN: self.written.get(last)}
        return {**join_states(states), **{key: facts for key, facts in known.items() if facts}}

    def iterate_examples(self, stage: int, model: nn.Module, name: str | None) -> Iterator[Batch]:
        """Yield batches of one row each of a named recipe, or that of the stage before; the same on every rank.

        Rows that cannot be used are skipped; ``take_skips`` returns them.

        Raises:
            UserError: when there is no stage before and none is named, and when no row of a pool can be used.
        """
        if name is None and stage == 0:
            raise UserError(
                f"stages.{self.config.stages[stage].name}.continual.ewc.recipe: the first stage has "
                "no previous stage to take it from; name the old recipe"
            )
        recipe = load_recipe(name, near=self.config.folder) if name is not None else self.recipes[stage - 1]
        # every row is above this budget
        alone = replace(
            self.open_mixture(stage, model, recipe), audio_seconds=1e-6, tokens=None, micro_batches=1
        )
        known = tuple(sorted({*self.tasks, *recipe.list_tasks()}))
        lost = 0
        for step in make_loader(alone, known, 0, 1, 0, 2):
            (batch,) = step.micro
            self.skips.extend(step.skips)
            if batch.ids:
                lost = 0
                yield batch
            else:
                lost += 1
            if lost == alone.pool:
                last = step.skips[-1]
                fix = "repair them" + (", then continue with --resume" if stage else "")
                raise UserError(
                    f"recipe {recipe.name}: none of {lost} rows in a row can be used ({last.source}: {last.reason}, as "
                    f"row {last.row}, {last.detail}); {fix}"
                )

    def take_skips(self) -> list[Skip]:
        """Return the rows that ``iterate_examples`` left out since the last call, each once; the same on every rank."""
        skips = list(dict.fromkeys(self.skips))
        self.skips.clear()
        return skips


def compare_contents(mixture: Mixture, state: Mapping[str, Any] | None) -> Contents:
    """Return what the main process knows of the files of a mixture, on other processes nothing.

    Every rank must call it at the same point.

    Args:
        state: the position of a checkpoint; None at the beginning. Of a dataset whose fingerprint is another one its
            files are not compared: ``make_loader`` refuses it.

    Raises:
        UserError: on all ranks, when a file has changed since.
    """
    contents: Contents = {}
    complaint = ""
    if is_main():
        before, now = select_same_sources(mixture, state, CONTENTS), describe_contents(mixture)
        complaint, contents = explain_change(mixture, before, now), merge_contents(before, now)
    raise_together(complaint)
    return contents


def compare_write_times(mixture: Mixture, state: Mapping[str, Any] | None) -> Times:
    """Return when the files of a mixture were last written, and say on the console which were since a checkpoint.

    Args:
        state: see ``compare_contents``.
    """
    if not is_main():
        return {}
    before, now = select_same_sources(mixture, state, WRITTEN), read_write_times(mixture)
    for sentence in describe_rewritten_files(mixture, before, now):
        print_warning(mask_values(sentence))
    return now


def select_same_sources(mixture: Mixture, state: Mapping[str, Any] | None, key: str) -> dict[str, Any]:
    """Return what a position holds under a key of the entries whose fingerprint is the same now."""
    stored = state or {}
    sources = stored.get("sources", {})
    return {
        name: known
        for name, known in stored.get(key, {}).items()
        if sources.get(name) == mixture.source_fingerprints.get(name)
    }
