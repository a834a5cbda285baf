"""XARES-LLM (Audio Encoder Capability Challenge): its YAML as cards, templates and a recipe, prompts to the letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from uniaudio.config.strict_yaml import load_yaml
from uniaudio.data.importers.base import ImportedData, ImportOptions, make_name
from uniaudio.data.sources.paths import expand_braces, is_remote
from uniaudio.errors import UserError

# in a checkout, an installed package, the package's folder
TASKS = ("src/xares_llm/tasks", "xares_llm/tasks", "tasks")
ALSO_READ = ("captions", "caption", "text")  # keys that its loader tries behind those that a set states
# its metric -> metric of a template; FENSE and DATE need models of their package, so METEOR takes their place here
METRICS = {
    "Accuracy": "accuracy",
    "iWER": "wer",
    "iCER": "cer",
    "mAP": "map",
    "FENSE": "meteor",
    "DATE": "meteor",
}
STAND_INS = ("FENSE", "DATE")
DOMAINS = (  # words of a set's name or prompt -> domain, the first that fits
    ("music", ("music", "instrument", "genre", "song")),
    (
        "speech",
        ("speech", "speaker", "keyword", "language", "emotion", "transcribe", "command", "spoof", "voice"),
    ),
)
HUB = "hf://datasets/"
CROP = 30.0  # seconds of longer clips that its loader takes in training, at a random place


@dataclass(frozen=True)
class SetFile:
    """One set of a training or evaluation file.

    Args:
        keys: of the sample's JSON, the first that has a value being the answer. share: `prob`, where it is stated.
    """

    name: str
    prompts: tuple[str, ...]
    patterns: tuple[str, ...]
    keys: tuple[str, ...]
    repo: str | None
    share: float | None
    metric: str | None
    where: str

    @property
    def num_shards(self) -> int:
        """Shards that the patterns name; of a glob, those that are there."""
        return len({file for pattern in self.patterns for file in list_shards(pattern)})


def read_xares_llm(source: Path, options: ImportOptions) -> ImportedData:
    """Read a checkout of xares-llm (or one of its training files): every set becomes a card and a template.

    Draws have the shares of its sampler: `prob` where a set states it, else its part of all shards, divided by their
    sum. Lists in the JSON of a sample are samples of their own, as in its loader.
    """
    train, evaluate, settings = read_configs(source, options.configs)
    if not train:
        raise UserError(f"{source}: names only test sets; also name a training file with --config")
    data = ImportedData()
    shards = sum(each.num_shards for each in train)
    metrics = {make_name(each.name): each.metric for each in evaluate}
    for each in train:
        name = make_name(each.name)
        template = add_template(data, name, each, metrics.get(name) or each.metric)
        add_card(data, name, each, "train", options.root)
        weight = each.share if each.share is not None else each.num_shards / shards
        long_clips = {"how": "crop", "seconds": float(settings.get("crop_audio_length") or CROP)}
        line = {
            "dataset": name,
            "template": template,
            "weight": round(weight, 6),
            "long_clips": long_clips,
        }
        data.train.append(line)
    for each in evaluate:
        name = make_name(each.name)
        template = add_template(data, name, each, each.metric)
        add_card(data, f"{name}_test", each, "test", options.root)
        data.evaluate.append({"dataset": f"{name}_test", "template": template, "split": "test"})
    data.notes += describe_differences(train, evaluate, settings)
    return data


def read_configs(source: Path, configs: Sequence[str]) -> tuple[list[SetFile], list[SetFile], dict[str, Any]]:
    """Return the training sets, the test sets and the settings of training that the files state.

    Raises:
        UserError: for a source or configuration that is none.
    """
    train: list[SetFile] = []
    evaluate: list[SetFile] = []
    settings: dict[str, Any] = {}
    for file in find_configs(source, configs):
        content = load_yaml(file)
        if isinstance(content.get("train_data"), Mapping):
            settings |= {key: value for key, value in content.items() if key != "train_data"}
            for name, facts in content["train_data"].items():
                train.append(read_set(str(name), facts, None, f"{file}: train_data.{name}"))
            continue
        for name, facts in content.items():
            if not isinstance(facts, Mapping) or "data" not in facts or "metric" not in facts:
                raise UserError(f"{file}: {name}: a test set of xares-llm has `data` and `metric`")
            plain = str(name).removeprefix("eval_")
            evaluate.append(read_set(plain, facts["data"], str(facts["metric"]), f"{file}: {name}"))
    for sets, what in ((train, "training"), (evaluate, "test")):
        names = [make_name(each.name) for each in sets]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{source}: the {what} set {doubled} is named twice; import one of the files")
    return train, evaluate, settings


def find_configs(source: Path, configs: Sequence[str]) -> list[Path]:
    """Return the files of the named configurations (`all`, `task1`, `clotho` or paths), by default `all`.

    Raises:
        UserError: with the names that there are.
    """
    if source.is_file():
        return [source, *(find_config_file(Path(config), source) for config in configs)]
    tasks = next((source / part for part in TASKS if (source / part).is_dir()), None)
    if tasks is None:
        raise UserError(
            f"{source}: holds no {TASKS[0]}; give a checkout of xares-llm, or one of its YAML files"
        )
    files: list[Path] = []
    for config in configs or ("all",):
        if config.endswith((".yaml", ".yml")):
            files.append(find_config_file(Path(config), source))
            continue
        groups = [sorted((tasks / config / part).glob("*.yaml")) for part in ("train", "eval")]
        single = [
            tasks / "single/train" / f"{config}_config.yaml",
            tasks / "single/eval" / f"{config}_test_config.yaml",
        ]
        chosen = [group[0] for group in groups if group] or [file for file in single if file.is_file()]
        if not chosen:
            known = {folder.name for folder in tasks.iterdir() if (folder / "train").is_dir()} - {"single"}
            known |= {file.stem.removesuffix("_config") for file in (tasks / "single/train").glob("*.yaml")}
            raise UserError(
                f"{tasks}: there is no configuration '{config}'; there are {', '.join(sorted(known))}"
            )
        files += chosen
    return files


def find_config_file(path: Path, source: Path) -> Path:
    """Return a file by its path, which may be relative to the source."""
    for file in (path, source / path):
        if file.is_file():
            return file
    raise UserError(f"--config: there is no file {path}")


def read_set(name: str, facts: Any, metric: str | None, where: str) -> SetFile:
    """Return what a file says of one set.

    Raises:
        UserError: when it has no `data`, or a prompt that is no text.
    """
    if not isinstance(facts, Mapping) or not facts.get("data"):
        raise UserError(f"{where}: has no `data`, the patterns of its shards")
    patterns = facts["data"] if isinstance(facts["data"], list) else [facts["data"]]
    prompt = facts.get("prompt", "")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise UserError(f"{where}: prompt: only a text or a list of texts can be imported")
    stated = facts.get("key") or ""
    listed = stated if isinstance(stated, list) else [stated]
    keys = [key.strip() for text in listed for key in str(text).split(";") if key.strip()]
    share, repo = facts.get("prob"), facts.get("repo_id")
    if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not share > 0):
        raise UserError(f"{where}: prob: must be a share of the draws above 0, not {share!r}")
    if repo is not None and not isinstance(repo, str):
        raise UserError(f"{where}: repo_id: must be a name of the Hub, not {repo!r}")
    return SetFile(
        name=name,
        prompts=tuple(prompts),
        patterns=tuple(map(str, patterns)),
        keys=tuple(dict.fromkeys([*keys, *ALSO_READ])),
        repo=repo,
        share=share,
        metric=metric,
        where=where,
    )


def list_shards(pattern: str) -> list[str]:
    """Return the shards of a pattern: braces expanded, and globs of local files looked up."""
    files: list[str] = []
    for place in expand_braces(pattern):
        files += ([] if is_remote(place) else sorted(glob(place))) or [place]
    return files


def add_card(data: ImportedData, name: str, each: SetFile, split: str, root: str | None) -> None:
    """Add the card of a set with the shards of one split."""
    place, files = locate_shards(each, root)
    keys: dict[str, Any] = {
        "load": {"webdataset": place},
        "columns": {"answer": {"first_of": list(each.keys), "each": True}},
        "splits": {split: {"name": split, "files": files}},
    }
    if each.repo is not None:
        keys["license"] = f"see https://huggingface.co/datasets/{each.repo}"
    data.add_card(name, **keys)


def locate_shards(each: SetFile, root: str | None) -> tuple[str, list[str]]:
    """Return the place of a card and the patterns below it.

    With a root, the shards of a repository lie in it or in its folder of the repository's name; without, on the Hub.
    """
    if root is None and each.repo is not None:
        return f"{HUB}{each.repo}", list(each.patterns)
    first = expand_braces(each.patterns[0])[0]
    if root is not None:
        folder = Path(root).expanduser().absolute()
        below = folder / (each.repo or "").rpartition("/")[2]
        is_below = (below / first).exists() or (below.is_dir() and not (folder / first).exists())
        return str(below if is_below else folder), list(each.patterns)
    if is_remote(first):
        return first.rpartition("/")[0], list(each.patterns)
    paths = [p if is_remote(p) else str(Path(p).expanduser().absolute()) for p in each.patterns]
    return str(Path(expand_braces(paths[0])[0]).parent), paths


def add_template(data: ImportedData, name: str, each: SetFile, metric: str | None) -> str:
    """Add the template of a set, and return its name: that of training sets where the test set asks the same."""
    if metric is not None and metric not in METRICS:
        raise UserError(f"{each.where}: metric {metric} is not known; known: {', '.join(METRICS)}")
    content = {
        "task": name,
        "domain": guess_domain(f"{each.name} {each.prompts[0]}"),
        "inputs": ["answer"],
        "prompts": [f"<audio>{escape_jinja(prompt)}" for prompt in each.prompts],
        "target": "{{ answer }}",
        "scoring": {"metric": METRICS[metric or "Accuracy"], "normalize": "words"},
    }
    if data.templates.get(name, content) != content:
        name = f"{name}_test"
        content["task"] = name
    data.templates[name] = content
    return name


def escape_jinja(text: str) -> str:
    """Return a text that Jinja writes as it stands."""
    return "{{ " + repr(text) + " }}" if any(sign in text for sign in ("{{", "{%", "{#", "<|")) else text


def guess_domain(text: str) -> str:
    """Return the domain of a set by the words of its name and prompt; sounds where none is known."""
    return next((domain for domain, words in DOMAINS if any(word in text.lower() for word in words)), "sound")


def describe_differences(
    train: Sequence[SetFile], evaluate: Sequence[SetFile], settings: Mapping[str, Any]
) -> list[str]:
    """Return what the suite's files state that a recipe does not hold."""
    notes = []
    if stand_ins := sorted({each.metric for each in evaluate if each.metric in STAND_INS and each.metric}):
        names = ", ".join(make_name(each.name) for each in evaluate if each.metric in STAND_INS)
        notes.append(
            f"{' and '.join(stand_ins)} (of {names}) need the challenge's package; here METEOR "
            "takes their place, and `uniaudio eval --protocol xares-llm` excludes them from the "
            "mean"
        )
    if settings:
        stated = ", ".join(f"{key} {value}" for key, value in settings.items())
        notes.append(
            f"the training file also states {stated}: settings of a run config (`stages`, `train`, `data`)"
        )
    missing = {make_name(each.name) for each in evaluate} - {make_name(each.name) for each in train}
    if missing:
        notes.append(f"evaluated but not trained on: {', '.join(sorted(missing))}")
    return notes
