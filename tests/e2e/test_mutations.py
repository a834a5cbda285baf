"""Ten thousand damaged clips, manifests, cards and templates: read, skipped with a reason, or refused in a sentence."""

import io
import json
import random
import time
import traceback
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import soundfile
from conftest import tone
from helpers.damage import mutate_bytes, mutate_text

from uniaudio.config.path_variables import real_root
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.audio import decode
from uniaudio.data.encoded_audio import FilePart
from uniaudio.data.eval_examples import iterate_examples, open_examples
from uniaudio.data.loader import make_loader
from uniaudio.data.mixture import Mixture
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError

LONGEST = 5.0  # seconds that one damaged file may take
FORMATS = (
    *(
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "FLOAT"),
        ("WAV", "ULAW"),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "GSM610"),
    ),
    *(("WAVEX", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
    *(("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16"), ("NIST", "PCM_16")),
)
TEMPLATE = """\
task: tone
domain: sound
inputs: [label]
labels: [low, high, "no"]
prompts:
  - "<audio>Which tone is it?"
  - "Answer with one of: {{ labels | join(', ') }}.<audio>"
target: "{{ label }}"
scoring: {metric: accuracy, normalize: lowercase}
"""
CARD = """\
dataset: tones
load: {jsonl: manifest.jsonl}
license: CC0-1.0
audio: audio
columns: {label: "{{ pitch | replace('_', ' ') }}"}
splits:
  train: {keep: "fold != 5"}
  test: {keep: "fold == 5"}
"""


class Outcomes:
    """What became of each damaged file; everything but the three right ends is kept to be shown."""

    def __init__(self):
        self.counts, self.wrong, self.slowest = Counter(), [], 0.0

    def run(self, seed, read):
        """Call ``read``, which returns whether something could be used."""
        begin = time.monotonic()
        try:
            self.counts["used" if read() else "skipped"] += 1
        except RowError:
            self.counts["skipped"] += 1
        except UserError as problem:
            text = str(problem)
            if not text or "\n" in text or len(text) > 2000:
                self.wrong.append(f"seed {seed}: no sentence: {text[:300]!r}")
            self.counts["refused"] += 1
        except Exception:
            self.wrong.append(f"seed {seed}: {traceback.format_exc(limit=-3)}")
        self.slowest = max(self.slowest, time.monotonic() - begin)

    def check(self, *expected):
        kinds = {case.splitlines()[-1][:80]: case for case in self.wrong}
        assert not self.wrong, f"{len(self.wrong)} of them, {len(kinds)} kinds:\n" + "\n".join(kinds.values())
        assert self.slowest < LONGEST
        assert all(self.counts[kind] for kind in expected), self.counts


def clips():
    """Short clips in every format that is written here, of a recording where there is one."""
    root = real_root("realdata")
    if root is None:
        samples = tone(0.4, 700, 0)
    else:
        samples, _ = soundfile.read(next(root.glob("fsdd_digits/**/*.flac")), dtype="int16", frames=6400)
    for format, subtype in FORMATS:
        rate = 48000 if subtype == "OPUS" else 16000
        for channels in (1, 2) if subtype not in ("GSM610",) else (1,):
            buffer = io.BytesIO()
            soundfile.write(buffer, np.stack([samples] * channels, 1), rate, format=format, subtype=subtype)
            yield buffer.getvalue()


def decode_or_reason(source):
    try:
        return decode(source, 3.0, "clip"), ""
    except RowError as problem:
        return np.zeros(0, np.int16), problem.reason


@pytest.mark.slow
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_damaged_clips(tmp_path):
    """Read as bytes, and every fourth as a part of a file too: both must say the same."""
    whole, outcomes = list(clips()), Outcomes()
    file = tmp_path / "clips.bin"
    for seed in range(4000):
        rng = random.Random(seed)
        data = mutate_bytes(whole[seed % len(whole)], rng)

        def read(data=data):
            samples = decode(data, 3.0, "clip")
            assert samples.dtype == np.int16
            assert samples.ndim == 1
            return len(samples) > 0

        outcomes.run(seed, read)
        if seed % 4 == 0:
            file.write_bytes(b"before" + data + b"behind")
            part = FilePart(file, 6, len(data))

            def read_part(data=data, part=part):
                samples, reason = decode_or_reason(data)
                again, same = decode_or_reason(part)
                assert reason == same
                np.testing.assert_array_equal(samples, again)
                return not reason

            outcomes.run(seed, read_part)
    outcomes.check("used", "skipped")


@pytest.fixture
def folder(tmp_path):
    """A recipe with its template, card and manifest over twelve clips."""
    rows = []
    for index in range(12):
        name, pitch = f"{index}.wav", "low" if index % 2 else "high"
        samples = tone(0.2 + 0.02 * index, 200 if index % 2 else 2000, index)
        soundfile.write(tmp_path / name, samples, 16000)
        rows.append({"audio": name, "pitch": pitch, "fold": index % 6, "duration": len(samples) / 16000})
    manifest = "".join(json.dumps(row) + "\n" for row in rows)
    lines = [{"dataset": "tones", "template": "tone"}]
    recipe = dump_yaml({"recipe": "mix", "train": lines, "evaluate": lines})
    files = {"tone.yaml": TEMPLATE, "tones.yaml": CARD, "mix.yaml": recipe, "manifest.jsonl": manifest}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def read_everything(recipe: Recipe, format: ChatFormat) -> bool:
    """Go through the evaluation set and one step of training; return whether an example came of it."""
    usable = False
    for entry in recipe.evaluate:
        for _, item in iterate_examples(open_examples(entry, 4), 3.0):
            if isinstance(item, Skip):
                assert item.reason
            else:
                usable = True
    sources = [open_source(entry.dataset, entry.split) for entry in recipe.train]
    limits = {
        "audio_seconds": 3.0,
        "per_example": 0.1,
        "max_seconds": 3.0,
        "micro_batches": 1,
        "streams": 1,
        "pool": 8,
    }
    mixture = Mixture(recipe, sources, format, lambda samples: samples // 1280 + 1, seed=0, **limits)
    for step in islice(make_loader(mixture, recipe.list_tasks(), 0, 1, 0, 2), 1):
        assert all(skip.reason and skip.row for skip in step.skips)
        usable |= any(len(batch.labels) for batch in step.micro)
    return usable


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("manifest.jsonl", 3000), ("tones.yaml", 1500), ("tone.yaml", 1200), ("mix.yaml", 300)],
)
def test_damaged_text_files(folder, chat_tokenizer, name, count):
    whole, outcomes, format = (folder / name).read_text(), Outcomes(), ChatFormat(chat_tokenizer)
    recipe = load_recipe(str(folder / "mix.yaml"))
    assert read_everything(recipe, format)

    def read() -> bool:
        # a manifest is no part of the recipe, so that stays as it was read
        return read_everything(
            recipe if name == "manifest.jsonl" else load_recipe(str(folder / "mix.yaml")), format
        )

    for seed in range(count):
        (folder / name).write_bytes(mutate_text(whole, random.Random(seed)))
        outcomes.run(seed, read)
    outcomes.check("used", "refused")
