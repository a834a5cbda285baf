"""Which trained questions the page lists."""

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.recipe import load_recipe
from uniaudio.serve.tasks import TrainedTask, list_tasks

CARD = {"license": "CC0-1.0", "load": {"jsonl": "rows"}, "splits": {"train": {}, "test": {}}}
TEMPLATES = {
    "tone": {
        "domain": "sound",
        "inputs": ["label"],
        "labels": ["low", "high"],
        "prompts": ["<audio>Which tone?", "One of {{ labels | join(' or ') }}?\n<audio>"],
        "target": "{{ label }}",
    },
    "translate": {
        "domain": "speech",
        "inputs": ["language", "text"],
        "prompts": ["<audio>Translate into {{ language }}."],
        "target": "{{ text }}",
    },
    "qa": {
        "domain": "sound",
        "inputs": ["question", "text"],
        "prompts": ["<audio>{{ question }}"],
        "target": "{{ text }}",
    },
    "same": {
        "domain": "speech",
        "inputs": ["text"],
        "prompts": ["<audio><audio>Is it the same?"],
        "target": "{{ text }}",
    },
}


def recipe_of(folder):
    for name, template in TEMPLATES.items():
        (folder / f"{name}.yaml").write_text(dump_yaml({"task": name, **template}))
    (folder / "clips.yaml").write_text(dump_yaml({"dataset": "clips", **CARD}))
    (folder / "pairs.yaml").write_text(
        dump_yaml({"dataset": "pairs", **CARD, "audio": ["audio_1", "audio_2"]})
    )
    lines = [
        {"dataset": "clips", "template": ["tone", "qa"]},
        {"dataset": "pairs", "template": "same"},
    ]
    evaluated = [
        {"dataset": "clips", "template": "translate", "constants": {"language": name}}
        for name in ("English", "Welsh")
    ]
    evaluated[1]["split"] = "train"
    (folder / "all.yaml").write_text(dump_yaml({"recipe": "all", "train": lines, "evaluate": evaluated}))
    return load_recipe(str(folder / "all.yaml"))


def test_tasks_about_one_clip_whose_wordings_need_no_row(tmp_path):
    """``qa`` needs a column, ``same`` two clips; ``translate`` stands there with two constants."""
    recipe = recipe_of(tmp_path)
    assert list_tasks([recipe, recipe]) == [
        TrainedTask("tone", "sound", ("<audio>Which tone?", "One of low or high?\n<audio>"), ("low", "high")),
        TrainedTask(
            "translate",
            "speech",
            ("<audio>Translate into English.", "<audio>Translate into Welsh."),
            (),
        ),
    ]
