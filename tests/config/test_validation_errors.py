"""What is said of a key or value that a config file must not have."""

from pathlib import Path

import pytest

from uniaudio.config.nearest import suggest_name
from uniaudio.config.records import build
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import parse_run
from uniaudio.config.usual_names import UsualNames
from uniaudio.config.validation_errors import list_key_places
from uniaudio.data.card_file import CardFile
from uniaudio.data.recipe_file import RecipeFile
from uniaudio.data.template_file import TemplateFile
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.suite import SuiteFile

RUN = {
    "output_dir": "runs/x",
    "encoders": {"whisper": {"path": "models/whisper"}},
    "decoder": {"path": "models/decoder"},
    "stages": [{"name": "one", "recipe": "r", "steps": 8, "budget": {"audio_seconds": 9}}],
}
CARD = {"dataset": "x", "load": {"csv": "a.csv"}, "license": "CC0-1.0", "splits": {"train": {}}}
RECIPE = {"recipe": "x", "train": [{"dataset": "a", "template": "b"}]}
TEMPLATE = {
    "task": "x",
    "domain": "speech",
    "inputs": ["word"],
    "prompts": ["<audio>?"],
    "target": "{{ word }}",
}
SUITE = {"suite": "x", "tasks": {"a": {"dataset": "b", "domain": "speech"}}}


def refuse(kind, data):
    with pytest.raises(UserError) as mistake:
        build(kind, data, "file")
    message = str(mistake.value)
    assert "\n" not in message
    return message.removeprefix("file: ")


def refuse_override(override):
    with pytest.raises(UserError) as mistake:
        parse_run(RUN, Path(), [override])
    return str(mistake.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.warmup_ratio=0.1", "(did you mean 'warmup', a number of steps?)"),
        ("train.warmup=10", "(did you mean 'stages[].warmup', a number of steps?)"),
        ("train.gradient_accumulation_steps=4", "(did you mean 'micro_batches', the micro-batches of one step"),
        ("batch_size=8", "did you mean 'stages[].budget.audio_seconds', the seconds of audio in a micro-batch"),
        ("stages.0.batch_size=8", "(did you mean 'budget.audio_seconds', the seconds"),
        ("evaluate.batch_size=8", "(did you mean 'batch_seconds', in seconds of audio?)"),
        ("num_workers=2", "(did you mean 'data.workers'?)"),
        ("encoders.whisper.freeze=true", "(did you mean 'train', which is full, lora or frozen?)"),
        ("train.lr_scheduler=cosine", "(did you mean 'stages[].schedule'?)"),
        ("train.eval_steps=100", "(did you mean 'evaluate_every'?)"),
        ("train.seed=1", "train.seed: unknown key (did you mean 'seed'?)"),
        ("learning_rate=1e-4", "(did you mean 'encoders.NAME.lr', or 'fusion.lr', or 'adapter.lr', or 'decoder.lr'?)"),
        ("adapter.learning_rate=1e-4", "adapter.learning_rate: unknown key (did you mean 'lr'?)"),
        ("decoder.lora_rank=8", "(did you mean 'lora.rank'?)"),
        ("train.resume=true", "unknown key; to continue a run, give `uniaudio train` the option --resume"),
        ("stages.0.replay=0.1", "unknown key; `replay` is a key of the recipe"),
        ("train.max_step=1", "train.max_step: unknown key (did you mean 'max_steps'?)"),
    ],
)  # fmt: skip
def test_a_name_of_other_trainers_is_answered_with_our_key(override, message):
    assert message in refuse_override(override)


@pytest.mark.parametrize("kind", [RunConfig, RecipeFile, CardFile, TemplateFile, SuiteFile])
def test_only_keys_that_exist_are_suggested(kind):
    places = list_key_places(kind)
    names = kind.usual_names
    assert isinstance(names, UsualNames)
    suggested = {key for keys in names.keys.values() for key in keys}
    assert suggested - set(places) == set()
    assert set(names.notes) - suggested == set()
    assert set(names.keys) & set(names.sentences) == set()
    for name, keys in names.keys.items():  # a name that is a key itself is never unknown there
        assert name not in keys


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (CardFile, {**CARD, "load": {"hf": "a/b"}}, "load.hf: unknown key (did you mean 'hub'?)"),
        (CardFile, {**CARD, "label": "x"}, "label: unknown key (did you mean 'columns', inputs of templates by name?)"),
        (RecipeFile, {**RECIPE, "datasets": []}, "datasets: unknown key (did you mean 'train'?)"),
        (RecipeFile, {**RECIPE, "replay": [{"recipe": "a", "ratio": 0.1}]},
         "replay.0.ratio: unknown key (did you mean 'share', a share of all examples?)"),
        (TemplateFile, {**TEMPLATE, "metric": "wer"}, "metric: unknown key (did you mean 'scoring.metric'?)"),
        (TemplateFile, {**TEMPLATE, "scoring": {"metric": "WER"}},
         "scoring.metric: 'WER' is not one of accuracy, uar, macro_f1, wer, cer, bleu, meteor, cider, map "
            "(did you mean 'wer'?)"),
        (SuiteFile, {**SUITE, "tasks": {"a": {"dataset": "b", "domain": "speech", "label": "x"}}},
         "tasks.a.label: unknown key (did you mean 'column'?)"),
    ],
)  # fmt: skip
def test_other_files_have_usual_names_too(kind, data, message):
    assert refuse(kind, data) == message


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (CardFile, {**CARD, "load": "a.csv"},
         "load: input should be a mapping with the keys hub, parquet, webdataset, audiofolder, jsonl, csv, kaldi, "
         "config, revision, timeout, got 'a.csv'"),
        (CardFile, {**CARD, "load": {"parquet": 3}}, "load.parquet: input should be text or a list, got 3"),
        (CardFile, {**CARD, "columns": {"str": 3}},
         "columns.str: input should be text or a mapping with the keys first_of, each, got 3"),
        (CardFile, {**CARD, "segment": {"start": 3}}, "segment.start: input should be text, got 3"),
        (CardFile, {**CARD, "labels": {"word": 3}}, "labels.word: input should be a list or text, got 3"),
        (CardFile, {**CARD, "splits": {"train": None}},
         "splits.train: input should be a mapping with the keys name, keep, files, rows, hours, got null"),
        (CardFile, {**CARD, "splits": {}}, "splits: needs at least 1 entry"),
        (RecipeFile, {**RECIPE, "train": []}, "train: needs at least 1 entry"),
        (RecipeFile, {**RECIPE, "train": [{"dataset": "a"}]}, "train.0.template: is required"),
        (RecipeFile, {**RECIPE, "train": [{**RECIPE["train"][0], "labels": 3}]},
         "train.0.labels: input should be a list or text or a mapping, got 3"),
        (SuiteFile, {**SUITE, "tasks": {"a": {"dataset": "b", "domain": "speech", "kind": "frame",
                                              "frame": {"collar": "wide"}}}},
         "tasks.a.frame.collar: input should be a valid number, got 'wide'"),
    ],
)  # fmt: skip
def test_values_are_described_in_the_words_of_yaml(kind, data, message):
    """No name of a validator, of a type or of a kind stands in the path of a key."""
    assert refuse(kind, data) == message


def test_a_file_of_another_kind_is_called_by_its_kind():
    assert refuse(RunConfig, TEMPLATE) == "this is a template, not a run config"
    assert refuse(RunConfig, RECIPE) == "this is a recipe, not a run config"
    assert refuse(RecipeFile, RUN) == "this is a run config, not a recipe"
    assert refuse(CardFile, SUITE) == "this is a probe suite, not a dataset card"
    assert (
        refuse(RunConfig, {**RUN, "recipe": "r"}) == "recipe: unknown key (did you mean 'stages[].recipe'?)"
    )


def test_a_key_of_another_kind_is_named():
    """`tokens` is the name of a kind, and of a key of that kind."""
    message = refuse_override("adapter={kind: linear, tokens: 4}")
    assert message == "config: adapter.tokens: unknown key of this kind; it belongs to kind tokens"
    message = refuse_override("adapter={kind: tokens, tokens: -1}")
    assert message == "config: adapter.tokens: input should be greater than 0, got -1"


def test_a_name_alone_is_shown_as_a_mapping():
    message = refuse_override("fusion=gate")
    assert message == "config: fusion: input should be a mapping such as {kind: gate}, got 'gate'"
    message = refuse_override("encoders.whisper=openai/whisper-tiny")
    assert "whisper: input should be a mapping such as {path: openai/whisper-tiny}, got 'openai" in message


def test_names_that_have_little_in_common_are_not_suggested():
    assert suggest_name("text", ["dataset", "load"]) == ""
    assert suggest_name("MAP", ["accuracy", "map"]) == " (did you mean 'map'?)"
