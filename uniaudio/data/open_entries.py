"""Entries of a recipe with their rows opened, and with the closed sets that only the data themselves state."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from uniaudio.data.closed_sets import may_name_classes, name_answers
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import RecipeEntry
from uniaudio.data.sources.base import Source
from uniaudio.data.sources.source_kinds import open_source

AnyEntry = TypeVar("AnyEntry", bound=RecipeEntry)


def open_entry(entry: AnyEntry) -> tuple[AnyEntry, Source]:
    """Open the rows of an entry; return it with the closed sets that the data themselves state.

    Raises:
        UserError: when the source cannot be opened, or a wording lists labels that nothing states.
    """
    source = open_source(entry.dataset, entry.split)
    return take_class_names(entry, source), source


def open_training_entries(recipe: Recipe) -> tuple[Recipe, list[Source]]:
    """Open all training entries of a recipe, as ``open_entry`` does.

    Of the names of classes training needs those that a wording lists; for the others no file is opened.
    """
    sources = [open_source(entry.dataset, entry.split) for entry in recipe.train]
    entries = tuple(
        take_class_names(entry, source)
        if any(template.lists_labels for template in entry.templates)
        else entry
        for entry, source in zip(recipe.train, sources, strict=True)
    )
    return replace(recipe, train=entries), sources


def take_class_names(entry: AnyEntry, source: Source) -> AnyEntry:
    """Return an entry with the names of the source's classes as closed sets, where nothing before them states one."""
    if not any(may_name_classes(template, entry.dataset) for template in entry.templates):
        return entry
    return replace(
        entry, templates=name_answers(entry.templates, entry.dataset, entry.constants, source.classes)
    )
