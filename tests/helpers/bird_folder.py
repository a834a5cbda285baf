"""The folder that a reader of the documentation has: clips, the files of the README, small models by their names."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from conftest import tiny_qwen, tiny_whisper, tone
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

README = Path(__file__).parent.parent.parent / "README.md"
# the size of the run alone: the README's is for a GPU
SMALLER = {
    "steps: 2000, warmup: 100, budget: {audio_seconds: 300}": "steps: 6, warmup: 2, budget: {audio_seconds: 6}"
}
FROGS = {
    "templates/frog_call.yaml": """\
task: frog_call
domain: sound
inputs: [label]
prompts: ["<audio>Which frog is calling?"]
target: "{{ label }}"
""",
    "data_recipes/datasets/my_frogs.yaml": """\
dataset: my_frogs
load: {jsonl: /data/frogs/manifest.jsonl}
license: CC-BY-4.0
splits: {train: {keep: "split == 'train'"}, test: {keep: "split == 'test'"}}
""",
    "data_recipes/frogs.yaml": """\
recipe: frogs
train: [{dataset: my_frogs, template: frog_call}]
evaluate: [{dataset: my_frogs, template: frog_call}]
""",
    "data_recipes/birds_hard.yaml": """\
base: birds
recipe: birds_hard
""",
}


def readme_files() -> Iterator[tuple[str, str]]:
    """The files that the README writes under its heading 'Train on your data', by the paths that it gives them."""
    for path, text in re.findall(r"`([\w/]+\.yaml)`:\n```yaml\n(.*?)```", README.read_text(), re.DOTALL):
        for large, small in SMALLER.items():
            text = text.replace(large, small)
        yield path, text


def write_clips(folder: Path, species: tuple[str, str]) -> None:
    """Write clips and their manifest as the README has it."""
    folder.mkdir(parents=True)
    rows = []
    for index in range(40):
        name = f"{index}.wav"
        samples = tone(0.3 + 0.05 * (index % 9), 2000 if index % 2 else 200, index)
        soundfile.write(folder / name, samples, 16000)
        split = "test" if index % 4 < 2 else "train"
        rows.append({"audio": name, "label": species[index % 2], "split": split})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_folder(text: str, folder: Path) -> str:
    """Put the documentation's one absolute path, /data, into the test's folder."""
    return re.sub(r"(?<![\w/])/data/", f"{folder}/data/", text)


def make_bird_folder(folder: Path, tokenizer: PreTrainedTokenizerFast, models: Path | None = None) -> None:
    """Write everything that the README's commands take for granted.

    Args:
        models: where its models are written, as OWNER/NAME; None: in the folder itself.
    """
    for path, text in [*readme_files(), *FROGS.items()]:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(in_folder(text, folder))
    write_clips(folder / "data" / "birds", ("wren", "rook"))
    write_clips(folder / "data" / "frogs", ("tree frog", "toad"))
    for name in ("clip.wav", "dog.flac", "rain.wav"):
        soundfile.write(folder / name, tone(0.5, 700, 1).astype(np.int16), 16000)
    whisper, qwen = ((models or folder) / name for name in ("openai/whisper-small", "Qwen/Qwen3-0.6B"))
    tiny_whisper().save_pretrained(whisper)
    WhisperFeatureExtractor().save_pretrained(whisper)
    tiny_qwen(len(tokenizer)).save_pretrained(qwen)
    tokenizer.save_pretrained(qwen)
