"""The files of the Audio Encoder Capability Challenge: prompts, answers, order and shares are those of its loader.

What its loader does is written here by hand and as loops, from its documented behaviour: keys in order and then
`captions`, `caption`, `text`; a text, a number or a list; one sample for each item; draws by `prob` or shards.
"""

import gzip
import json
import re
import tarfile

import pytest
from helpers.files import add, clip_bytes

from uniaudio.commands.data_import import import_data
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import load_recipe
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import UserError

TRAIN = """
max_steps: 100000
train_data:
    ESC-50:
        prompt: Name {{this}} sound, 100% sure.
        data:
            - ESC-50/train/esc50_fold_{1..4}_0000000.tar.gz
        key: label;labels
        repo_id: owner/data
    VoxCeleb1:
        prompt: One speaker or two?
        data:
            - VoxCeleb1/train/train_0000{00..01}.tar.gz
        key: label;labels
        repo_id: owner/data
    LibriCount:
        prompt: How many?
        data: ["LibriCount/train/libricount_fold{00..01}.tar.gz"]
        key: num_speakers
        prob: 0.2
        repo_id: owner/data
    Clotho:
        prompt: [Say it shortly., Say it.]
        data:
            - Clotho/train/train_0000{00..00}.tar.gz
        key: text;caption;captions;label;labels
        prob: 0.02
        repo_id: owner/data
    MECAT:
        prompt: Describe all.
        data:
            - 0M0/train_0000-0000000.tar.gz
            - S00/train_0001-0000000.tar.gz
        key: long
        repo_id: owner/Other-Set
"""
EVALUATE = """
eval_esc-50:
  data:
    data: [ESC-50/test/esc50_fold_5_0000000.tar.gz]
    key: text;caption;captions;label;labels
    prompt: Name {{this}} sound, 100% sure.
    repo_id: owner/data
  batch_size: 4
  num_workers: 0
  metric: Accuracy
eval_clotho:
  data:
    data: ["Clotho/test/valid_0000{00..00}.tar.gz"]
    key: caption;captions
    prompt: Say it shortly.
    repo_id: owner/data
  metric: FENSE
eval_libricount:
  data: {data: [LibriCount/test/libricount_fold04.tar.gz], key: num_speakers, prompt: "How many?", repo_id: owner/data}
  metric: mAP
  metric_args: {num_classes: 11}
"""
SAMPLES = {  # by the beginning of a shard's path
    "ESC-50/train": [
        {"label": "dog", "text": "a dog"},
        {"labels": "hand saw", "label": None},
        {"caption": "x"},
    ],
    "ESC-50/test": [{"label": "dog", "text": "a dog"}, {"labels": ["cat"], "label": "rooster"}],
    "VoxCeleb1/train": [{"label": "Same"}, {"labels": "Different"}],
    "LibriCount/train": [{"num_speakers": 3}, {"num_speakers": 0}, {"num_speakers": 2.0}],
    "LibriCount/test": [{"num_speakers": 10}],
    "Clotho/train": [{"captions": ["a b c", "d e f"], "label": "no"}, {"caption": "g h"}],
    "Clotho/test": [{"caption": "one", "captions": ["two", "three"]}, {"captions": ["four", "five"]}],
    "0M0": [{"long": ["m n", "o p"], "caption": "no"}],
    "S00": [{"long": "q r"}],
}


def list_answers(sample, keys):
    """The texts of one sample, as the suite's loader returns them."""
    for key in [*keys.split(";"), "captions", "caption", "text"]:
        value = sample.get(key)
        if value is None:
            continue
        if isinstance(value, str):
            return [value]
        if isinstance(value, int | float):
            return [str(value)]
        if isinstance(value, list) and value:
            return value
    raise ValueError(sample)


def expand(pattern):
    """Braces with a range of numbers as braceexpand expands them."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    width = max(len(match[1]), len(match[2])) if match[1].startswith("0") else 0
    files = []
    for number in range(int(match[1]), int(match[2]) + 1):
        files.append(pattern[: match.start()] + str(number).zfill(width) + pattern[match.end() :])
    return files


def write_shard(path):
    """A tar.gz with a clip and a json for each sample, as the suite documents its layout."""
    samples = next(listed for begin, listed in SAMPLES.items() if begin in str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for number, sample in enumerate(samples):
            add(tar, f"{number:03d}.flac", clip_bytes(number, "FLAC"))
            add(tar, f"{number:03d}.json", json.dumps(sample).encode())


ALL = "text;caption;captions;label;labels"
SETS = {  # card -> template, patterns, keys and prompt, as the two files above state them
    "esc_50": ("ESC-50/train/esc50_fold_{1..4}_0000000.tar.gz", "label;labels", "Name {{this}} sound, 100% sure."),
    "voxceleb1": ("VoxCeleb1/train/train_0000{00..01}.tar.gz", "label;labels", "One speaker or two?"),
    "libricount": ("LibriCount/train/libricount_fold{00..01}.tar.gz", "num_speakers", "How many?"),
    "clotho": ("Clotho/train/train_0000{00..00}.tar.gz", "text;caption;captions;label;labels", "Say it shortly."),
    "mecat": ("0M0/train_0000-0000000.tar.gz,S00/train_0001-0000000.tar.gz", "long", "Describe all."),
    "esc_50_test": ("ESC-50/test/esc50_fold_5_0000000.tar.gz", ALL, "Name {{this}} sound, 100% sure."),
    "clotho_test": ("Clotho/test/valid_0000{00..00}.tar.gz", "caption;captions", "Say it shortly."),
    "libricount_test": ("LibriCount/test/libricount_fold04.tar.gz", "num_speakers", "How many?"),
}  # fmt: skip


@pytest.fixture
def checkout(tmp_path):
    tasks = tmp_path / "checkout" / "src" / "xares_llm" / "tasks"
    for part, name, content in (("train", "all_train_config", TRAIN), ("eval", "evaluation_all", EVALUATE)):
        (tasks / "all" / part).mkdir(parents=True)
        (tasks / "all" / part / f"{name}.yaml").write_text(content)
    return tmp_path / "checkout"


@pytest.fixture
def shards(tmp_path):
    for patterns, _, _ in SETS.values():
        for pattern in patterns.split(","):
            for file in expand(pattern):
                other = pattern.startswith(("0M0", "S00"))
                write_shard(tmp_path / "data" / ("Other-Set" if other else "") / file)
    return tmp_path / "data"


def run_import(checkout, out, root=None, config=(), **more):
    return import_data("xares-llm", checkout, out, None, root, config, "last", **more)


def test_prompts_answers_and_order_are_those_of_the_suites_loader(tmp_path, checkout, shards):
    recipe = run_import(checkout, tmp_path / "aecc", shards)
    entries = {entry.dataset.name: entry for entry in (*recipe.train, *recipe.evaluate)}
    assert entries.keys() == SETS.keys()
    for name, (patterns, keys, prompt) in SETS.items():
        expected = []
        for pattern in patterns.split(","):
            for file in expand(pattern):
                for sample in next(listed for begin, listed in SAMPLES.items() if file.startswith(begin)):
                    for answer in list_answers(sample, keys):
                        expected.append(("", prompt, answer))
        entry = entries[name]
        read = []
        for row in open_source(entry.dataset, entry.split).rows():
            assert isinstance(row, Row), row
            rendered = entry.render_question(row, entry.templates[0])
            assert rendered.references == (rendered.answer,)
            read.append((*rendered.prompt, rendered.answer))
        assert read == expected


def test_draws_have_the_shares_of_the_suites_sampler(tmp_path, checkout):
    recipe = run_import(checkout, tmp_path / "aecc")
    shards = {"esc_50": 4, "voxceleb1": 2, "libricount": 2, "clotho": 1, "mecat": 2}
    stated = {"libricount": 0.2, "clotho": 0.02}
    weights = {}
    for name, count in shards.items():
        weights[name] = stated[name] if name in stated else count / sum(shards.values())
    total = sum(weights.values())
    for entry in recipe.train:
        assert entry.share == pytest.approx(weights[entry.dataset.name] / total, rel=1e-5)


def test_without_a_root_the_shards_are_those_of_the_hub(tmp_path, checkout, capsys):
    recipe = run_import(checkout, tmp_path / "aecc")
    cards = {entry.dataset.name: entry.dataset for entry in (*recipe.train, *recipe.evaluate)}
    assert cards["mecat"].load.places == ("hf://datasets/owner/Other-Set",)
    source = open_source(cards["voxceleb1"], "train")
    assert source.shards[1] == "hf://datasets/owner/data/VoxCeleb1/train/train_000001.tar.gz"
    assert cards["esc_50"].license == "see https://huggingface.co/datasets/owner/data"
    printed = capsys.readouterr().out
    assert (
        "esc_50, train, 38.4% of the draws: esc_50\n  4 shards at hf://datasets/owner/data, not opened"
        in printed
    )
    assert "note: FENSE (of clotho) need the challenge's package" in printed
    assert "the training file also states max_steps 100000" in printed
    assert f"next: uniaudio preview {tmp_path / 'aecc' / 'aecc.yaml'}" in printed


def test_what_the_metrics_become(tmp_path, checkout):
    recipe = run_import(checkout, tmp_path / "aecc")
    metrics = {entry.dataset.name: entry.template.scoring.metric for entry in recipe.evaluate}
    assert metrics == {"esc_50_test": "accuracy", "clotho_test": "meteor", "libricount_test": "map"}
    domains = {entry.dataset.name: entry.templates[0].domain for entry in recipe.train}
    assert domains == {name: "speech" if name == "voxceleb1" else "sound" for name in domains}


def test_one_file_and_single_sets(tmp_path, checkout):
    single = checkout / "src/xares_llm/tasks/single/train"
    single.mkdir(parents=True)
    content = "train_data:\n  NSynth:\n    prompt: ''\n    data: ['N/train_{0..1}.tar']\n    key: k\n"
    (single / "nsynth_config.yaml").write_text(content)
    for number, (source, config) in enumerate([(checkout, ["nsynth"]), (single / "nsynth_config.yaml", [])]):
        recipe = run_import(source, tmp_path / f"out{number}", tmp_path, config)
        assert [entry.dataset.name for entry in recipe.train] == ["nsynth"]
        assert recipe.train[0].templates[0].prompts[0].source == "\ue000"
        assert load_recipe(str(recipe.path)).evaluate == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "must be one mapping of keys to values"),
        ("train_data: {A: {prompt: x}}\n", r"train_data\.A: has no `data`"),
        ("train_data: {A: {prompt: [{role: x}], data: [a.tar]}}\n", "prompt: only a text or a list of texts"),
        ("train_data: {A-b: {data: [a.tar]}, A_b: {data: [a.tar]}}\n", "the training set a_b is named twice"),
        ("eval_a: {data: {data: [a.tar]}, metric: Accuracy}\n", "names only test sets"),
        ("a: {b: 1}\n", "a: a test set of xares-llm has `data` and `metric`"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        run_import(tmp_path / "x.yaml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checkouts_that_are_none(tmp_path, checkout):
    with pytest.raises(UserError, match=r"holds no src/xares_llm/tasks"):
        run_import(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=r"there is no configuration 'task9'; there are all"):
        run_import(checkout, tmp_path / "out", config=["task9"])


def test_the_ids_of_a_prompt_have_the_clip_before_the_suites_sentence(
    tmp_path, checkout, shards, chat_tokenizer
):
    """The chat markup of the decoder is ours and not the suite's, which docs/evaluation-answers.md says."""
    recipe = run_import(checkout, tmp_path / "aecc", shards)
    entry = next(e for e in recipe.train if e.dataset.name == "voxceleb1")
    row = next(iter(open_source(entry.dataset, "train").rows()))
    before, behind = ChatFormat(chat_tokenizer).encode_prompt(
        entry.render_question(row, entry.templates[0]).prompt
    )
    assert chat_tokenizer.decode(behind).startswith("One speaker or two?")
    assert "speaker" not in chat_tokenizer.decode(before)
