"""Recipes: read with the cards, templates and replayed recipes that they name."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uniaudio.config.base_files import read_layers
from uniaudio.config.nearest import suggest_name
from uniaudio.config.records import build
from uniaudio.config.search_paths import find_file, require_name_of_file
from uniaudio.data.augment import Augmenter
from uniaudio.data.card import DatasetCard, load_card
from uniaudio.data.eval_conditions import CONDITIONS
from uniaudio.data.labels import close_answers
from uniaudio.data.long_clips import LongClips
from uniaudio.data.mixing_weights import compute_line_shares, join_pairings, refuse_namesakes
from uniaudio.data.recipe_entries import Entry, EvalEntry, take_class_names
from uniaudio.data.recipe_file import EntryFile, EvaluateFile, RecipeFile
from uniaudio.data.sources.base import Source
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.template import Template, load_template
from uniaudio.data.template_file import JOINED_METRICS
from uniaudio.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """Resolved: names are files that were read, weights are shares that add up to 1."""

    name: str
    train: tuple[Entry, ...]
    evaluate: tuple[EvalEntry, ...]
    path: Path

    def compute_train_shares(self) -> list[float]:
        """Return the share of draws of every training entry, in order."""
        return [entry.share for entry in self.train]

    def list_tasks(self) -> tuple[str, ...]:
        """Return the names of all tasks, sorted."""
        trained = [template for entry in self.train for template in entry.templates]
        return tuple(sorted({template.task for template in [*trained, *(e.template for e in self.evaluate)]}))

    def open_training_entries(self) -> tuple[Recipe, list[Source]]:
        """Open all training entries; return the recipe with the closed sets that the data themselves state.

        Of the names of classes training needs those that a wording lists, or that hold before the labels of a template;
        for the others no file is opened.
        """
        sources = [open_source(entry.dataset, entry.split) for entry in self.train]
        entries = tuple(
            take_class_names(entry, source)
            if any(template.lists_labels or template.labels for template in entry.templates)
            else entry
            for entry, source in zip(self.train, sources, strict=True)
        )
        return replace(self, train=entries), sources


def load_recipe(name_or_path: str, near: Path | None = None) -> Recipe:
    """Read a recipe and everything it names.

    Raises:
        UserError: unknown names, a replay or base that goes round in a circle, constants that no template input
            takes, a mix by hours without hours on a card, the same pairing twice.
    """
    return resolve(find_file("recipe", name_or_path, near), ())


def resolve(path: Path, seen: tuple[Path, ...]) -> Recipe:
    if path.resolve() in seen:
        raise UserError(f"{path}: recipes replay each other in a cycle")
    data = build(RecipeFile, read_layers(path, "recipe"), str(path))
    require_name_of_file(path, "recipe", data.recipe)
    questions = [(line.dataset, line.template, line.split) for line in data.train]
    refuse_duplicates(data.train, questions, path, "train")
    pairs = [
        open_pair(line.template, line, f"{path}: train[{i}]", path.parent)
        for i, line in enumerate(data.train)
    ]
    shares = compute_line_shares(data, [card for card, _ in pairs], path)
    entries = [
        Entry(
            dataset=card,
            templates=templates,
            split=line.split,
            share=share,
            constants=line.constants,
            augmenter=Augmenter(line.augment, f"{path}: train[{i}].augment") if line.augment else None,
            long_clips=choose_long_clips(line, card, f"{path}: train[{i}]"),
        )
        for i, (line, (card, templates), share) in enumerate(zip(data.train, pairs, shares, strict=True))
    ]
    for replay in data.replay:
        old = resolve(find_file("recipe", replay.recipe, path.parent), (*seen, path.resolve()))
        entries += [replace(entry, share=entry.share * replay.share) for entry in old.train]
    refuse_namesakes(entries, path)
    evaluate = [
        resolve_evaluation(line, f"{path}: evaluate[{i}]", path.parent)
        for i, line in enumerate(data.evaluate)
    ]
    refuse_duplicates(data.evaluate, [entry.name for entry in evaluate], path, "evaluate")
    return Recipe(data.recipe, tuple(join_pairings(entries)), tuple(evaluate), path)


def resolve_evaluation(line: EvaluateFile, where: str, near: Path) -> EvalEntry:
    """Resolve one line of `evaluate`."""
    card, templates = open_pair((line.template,), line, where, near)
    augmenter = None
    if line.condition is not None:
        if line.condition not in CONDITIONS:
            raise UserError(
                f"{where}: condition: there is no '{line.condition}'"
                f"{suggest_name(line.condition, CONDITIONS)}; known: {', '.join(sorted(CONDITIONS))}"
            )
        augmenter = Augmenter(CONDITIONS[line.condition], f"{where}.condition")
    changed = {name: getattr(line.scoring, name) for name in line.scoring.model_fields_set}
    scoring = templates[0].scoring.model_copy(update=changed)
    long_clips = choose_long_clips(line, card, where)
    if long_clips is not None and long_clips.overlaps and scoring.metric in JOINED_METRICS:
        raise UserError(
            f"{where}: long_clips.hop: the answers to windows are joined for {scoring.metric}, and "
            "overlapping windows would repeat words; leave hop out"
        )
    return EvalEntry(
        dataset=card,
        templates=(replace(templates[0], scoring=scoring),),
        split=line.split,
        max_examples=line.max_examples,
        scoring=changed,
        constants=line.constants,
        condition=line.condition,
        augmenter=augmenter,
        long_clips=long_clips,
    )


def choose_long_clips(line: EntryFile | EvaluateFile, card: DatasetCard, where: str) -> LongClips | None:
    """Return what becomes of long clips as a line of a recipe says, else as its card does.

    Raises:
        UserError: for windows of several clips.
    """
    if line.long_clips is None:
        return card.long_clips
    if line.long_clips.how == "windows" and len(card.audio) > 1:
        raise UserError(
            f"{where}: long_clips: only a single clip can be cut into windows, but {card.name} has "
            "several; use crop"
        )
    return LongClips.of(line.long_clips)


def refuse_duplicates(
    lines: Sequence[EntryFile | EvaluateFile], questions: Sequence[Hashable], path: Path, key: str
) -> None:
    """Refuse a dataset that two lines ask the same of: one result would hide the other.

    Args:
        questions: what tells whether two lines ask the same. path, key: of the recipe and of the lines in it.
    """
    seen: dict[Hashable, int] = {}
    for i, (line, question) in enumerate(zip(lines, questions, strict=True)):
        first = seen.setdefault(question, i)
        if first != i:
            template_names = line.template if isinstance(line.template, str) else ", ".join(line.template)
            raise UserError(
                f"{path}: {key}[{i}]: {line.dataset} with {template_names} on split {line.split} "
                f"is already in {key}[{first}]; keep one entry"
            )


def open_pair(
    names: Sequence[str], line: EntryFile | EvaluateFile, where: str, near: Path
) -> tuple[DatasetCard, tuple[Template, ...]]:
    """Read card and templates of a line and check its split, number of clips and constants."""
    try:
        card = load_card(line.dataset, near / "datasets" if (near / "datasets").is_dir() else near)
        card.split(line.split)
        templates = tuple(load_template(name, near) for name in names)
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from problem
    if len({template.task for template in templates}) < len(templates):
        raise UserError(f"{where}: the same template is listed twice; each question is asked once per clip")
    for template in templates:
        if len(card.audio) != template.num_clips:
            raise UserError(
                f"{where}: template {template.task} asks about {template.num_clips} clip(s), "
                f"but dataset {card.name} has {len(card.audio)} audio column(s)"
            )
    inputs = sorted({name for template in templates for name in template.inputs})
    for name in line.constants:
        if name not in inputs:
            template_names = ", ".join(template.task for template in templates)
            raise UserError(
                f"{where}: constants: template {template_names} has no input '{name}'"
                f"{suggest_name(name, inputs)}; inputs: {', '.join(inputs)}"
            )
        if line.constants[name] is None:
            raise UserError(f"{where}: constants: '{name}' has no value; give it one, or leave it out")
    used = frozenset(inputs) - set(line.constants)
    read = used.union(*(card.columns[name].names for name in used if name in card.columns))
    closed = close_answers(templates, card, line.labels, line.constants, f"{where}: labels", near)
    return replace(card, used=used, segment=card.segment.without(read)), closed
