"""``uniaudio schema``: the JSON schema of a kind of file, and the page of documentation with all of their keys."""

from __future__ import annotations

import json

from uniaudio.config.json_schema import FileKind, build_json_schema
from uniaudio.config.nearest import suggest_name
from uniaudio.config.reference import render_reference
from uniaudio.config.run import RunConfig
from uniaudio.data.card_file import CardFile
from uniaudio.data.recipe_file import RecipeFile
from uniaudio.data.template_file import TemplateFile
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.suite import SuiteFile

KINDS = {
    kind.name: kind
    for kind in (
        FileKind("run", RunConfig, preset=("output_dir",)),
        FileKind("recipe", RecipeFile),
        FileKind("card", CardFile),
        FileKind("template", TemplateFile, inherits=False),
        FileKind("suite", SuiteFile),
    )
}

# what stands for several commands behind "Read by:" in the docstrings of records and fields
COMMAND_GROUPS = {
    "run commands": "train, check, plan, tune-batch, model commands",
    "model commands": "probe, eval, ask, serve, embed, export, report, forgetting, soup, check-encoder",
    "recipe commands": "train, check, plan, tune-batch, preview, data stats, data pack, data bench",
    "data commands": "recipe commands, eval, forgetting, report, probe",
}

INTRODUCTION = """\
# Config reference

All keys of the five kinds of YAML files: run config, recipe, dataset card, template and probe suite.
[File formats](formats.md) explains them with examples. This page is generated from the sources by
`make reference`.

In a key, `NAME` stands for a name of your choice and `[]` for every item of a list. *Read by* names the commands whose
result depends on a key; some names stand for several commands:

{groups}

Unknown keys and values of the wrong type are errors. [Check files in the
editor](quickstart.md#check-files-in-the-editor) describes how an editor completes and validates them.
"""


def show_schema(name: str) -> str:
    """Return the JSON schema of a kind of file as text.

    Raises:
        UserError: for a kind that is not known.
    """
    if name not in KINDS:
        raise UserError(f"there is no schema '{name}'{suggest_name(name, KINDS)}; give {', '.join(KINDS)}")
    return json.dumps(build_json_schema(KINDS[name]), indent=1, ensure_ascii=False)


def show_reference() -> str:
    """Return the page docs/config-reference.md."""
    groups = "\n".join(f"- *{name}*: {commands}" for name, commands in COMMAND_GROUPS.items())
    return render_reference(INTRODUCTION.format(groups=groups), list(KINDS.values()))
