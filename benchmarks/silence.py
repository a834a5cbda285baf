"""Silence behind a clip: what it costs and what it gives a Whisper encoder, by the length of the clips.

    python benchmarks/silence.py [OPTIONS ...] [--models MODEL ...] [--sets SET ...] [--out runs/silence]
                                       [--store benchmarks/results] [--threads 2] [--clips 320] [--texts 20] [--quick]

OPTIONS are those of a MODEL, such as 'pad_to=10' or 'pad_to=30&pad_stride=16&tail_frames=10', and are measured beside
the usual ones: no silence, 5 to 150 frames, 30 s. A MODEL is a Whisper or a run that trained one; without any, those in
the folder that UNIAUDIO_REALMODELS names. Sets need UNIAUDIO_REALDATA and UNIAUDIO_REALAUDIO; those that are not there
are left out.

Sets with labels: kNN, linear probe (three seeds), mean cosine to the vector of the same clip padded to 30 s. Sets with
texts: error rates of Whisper's own decoder, which reads the frames of the clip alone, or those of the silence, too
(``_with_silence``); of a run it is the decoder of the checkpoint that the run started from. Processor seconds are those
of the encoder. Every model, set and length of silence is a cell, a JSON file under OUT: the same command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import machine
from results import Result, gathered, store_result
from rich.console import Console
from safetensors.torch import load_file, save_file
from tables import one_table
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput

from uniaudio.build.encoders import load_encoder
from uniaudio.build.untrained_encoders import find_reference
from uniaudio.config.model_spec import parse_model_spec
from uniaudio.config.path_variables import real_root
from uniaudio.config.records import build
from uniaudio.data.card import load_card
from uniaudio.errors import UserError
from uniaudio.evaluate.metrics.normalization import normalize_text
from uniaudio.evaluate.metrics.text_metrics import error_rate
from uniaudio.evaluate.probing.suite import TaskFile
from uniaudio.evaluate.probing.suite_table import shorten_paths
from uniaudio.evaluate.probing.task_embeddings import encode_task, hold_clips
from uniaudio.evaluate.probing.task_rows import TaskRows, read_task
from uniaudio.evaluate.probing.task_scores import score_task
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

BEST = "pad_to=30"
USUAL = ("", *(f"tail_frames={count}" for count in (5, 10, 25, 50, 100, 150)), BEST)
NAMES = {"": "no silence", BEST: "to 30 s"}  # of options in tables
MODELS = ("whisper-tiny.en", "whisper-base")
LABELLED = {  # name in tables -> the set with labels, and where they are
    "digits, 0.3 to 0.6 s": ("fsdd_digits", "label"),
    "languages, 1 s": ("langid", "label"),
    "roles, 2 to 10 s": ("fillets_nl_roles", "speaker"),
    "sounds, 5 s": ("esc10", "label"),
}
TRANSCRIBED = {  # name in tables -> the set with English texts
    "digit strings, 1 to 3 s": "fsdd_connected",
    "sentences, 2 to 10 s": "ljspeech_mini",
}
SEEDS = 3
NORMALIZED = "whisper_english"  # texts, before they are compared
LONGEST = 120  # tokens of a transcript; a decoder that repeats itself goes on to the end
FRAME = 320  # samples


@dataclass(frozen=True)
class Measurement:
    """One cell: a model with some silence on one set.

    Args:
        options: of the MODEL, behind its question mark.
    """

    model: str
    options: str
    set: str

    @property
    def spec(self) -> str:
        """Return the MODEL with its options."""
        return f"{self.model}?{self.options}" if self.options else self.model

    def file(self, out: Path) -> Path:
        """Return where the figures are kept."""
        words = [
            text.replace("/", "_").replace(" ", "_")
            for text in (self.model, self.set, self.options or "none")
        ]
        return out / "cells" / words[0].strip("_.") / words[1].replace(",", "") / f"{words[2]}.json"


def measure_probes(cell: Measurement, rows: TaskRows, file: Path) -> dict[str, float]:
    """Return kNN, linear probe and processor seconds of a set with labels; its vectors are kept beside the figures."""
    encoder = load_encoder(cell.spec)
    started = time.process_time()
    (embedded,), _ = encode_task(encoder, rows, "masked")
    seconds = time.process_time() - started
    scores = score_task(rows, embedded, encoder.frame_rate, "masked", SEEDS)
    save_file({"vectors": embedded.values}, file.with_suffix(".safetensors"))
    return {kind: scores[kind]["mean"] for kind in ("knn", "linear")} | {"processor_seconds": seconds}


def measure_transcripts(cell: Measurement, rows: TaskRows) -> dict[str, float]:
    """Return the error rates of Whisper's own decoder on the test clips of a set, and the encoder's seconds."""
    encoder, bare = load_encoder(cell.spec), load_encoder(f"{cell.model}?pad_to=null&tail_frames=0")
    assert isinstance(encoder, WhisperAudioEncoder)
    folder = find_decoder(cell.model)
    whisper = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = WhisperProcessor.from_pretrained(folder).tokenizer
    language = {"language": "en", "task": "transcribe"} if whisper.generation_config.is_multilingual else {}
    test = rows.parts["test"].tolist()
    assert rows.clips is not None
    clips = [torch.from_numpy(rows.clips[row].copy()) for row in test]
    started = time.process_time()
    frames = encode_clips(encoder, clips)
    figures = {"processor_seconds": time.process_time() - started}
    read = {"": frames}
    if not parse_model_spec(cell.spec).options.get("pad_stride"):  # shared silence has no frames of a clip
        read["_with_silence"] = encode_clips(bare, [append_silence(clip, encoder) for clip in clips])
    for ending, states in read.items():
        answers = []
        for state in states:
            output = BaseModelOutput(last_hidden_state=state[None])
            ids = whisper.generate(encoder_outputs=output, max_new_tokens=LONGEST, **language)
            answers.append(normalize_text(tokenizer.decode(ids[0], skip_special_tokens=True), NORMALIZED))
        references = [[normalize_text(text, NORMALIZED) for text in rows.answers[row]] for row in test]
        for metric in ("wer", "cer"):
            errors, units = error_rate(answers, references, metric).rows.sum(0)
            figures[f"{metric}{ending}"] = float(errors / units)
    return figures


@torch.no_grad()
def encode_clips(encoder: AudioEncoder, clips: Sequence[Tensor]) -> list[Tensor]:
    """Return the frames ``[A, E]`` of every clip, encoded one by one as its decoder reads them."""
    return [encoder(Ragged.from_rows([clip])).frames.values for clip in clips]


def append_silence(clip: Tensor, encoder: WhisperAudioEncoder) -> Tensor:
    """Return a clip with the silence that its encoder would append, so that its frames are given out, too."""
    whole = -(-len(clip) // FRAME) * FRAME
    wanted = whole + encoder.tail_frames * FRAME if encoder.tail_frames else len(clip)
    wanted = min(max(wanted, round((encoder.pad_to or 0) * SAMPLE_RATE)), 30 * SAMPLE_RATE)
    return F.pad(clip, (0, max(0, wanted - len(clip))))


def find_decoder(model: str) -> str:
    """Return the folder of the full checkpoint with the decoder that belongs to an encoder."""
    reference = find_reference(model)
    return model if reference is None or reference.start is None else parse_model_spec(reference.start).path


def open_sets(names: Sequence[str], clips: int, texts: int, console: Console) -> dict[str, TaskRows]:
    """Read the sets that are on this machine and decode their clips."""
    values = {
        name: {"dataset": card, "column": column, "max_clips": clips, "probes": ["knn", "linear"]}
        for name, (card, column) in LABELLED.items()
    } | {
        name: {"dataset": card, "kind": "retrieval", "max_clips": texts} for name, card in TRANSCRIBED.items()
    }
    sets = {}
    for name in names:
        try:
            task = build(TaskFile, {**values[name], "domain": None}, name)
            sets[name], _ = hold_clips(read_task(name, task, load_card(task.dataset)))
        except UserError as problem:
            console.print(f"{name} is skipped: {problem}", style="yellow", highlight=False, markup=False)
    return sets


def measure(cell: Measurement, rows: TaskRows, out: Path) -> dict[str, float]:
    """Return the figures of a cell, from its file where it was measured before."""
    file = cell.file(out)
    if file.is_file():
        stored: dict[str, float] = json.loads(file.read_text())
        return stored
    file.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    is_labelled = rows.task.kind == "clip"
    figures = measure_probes(cell, rows, file) if is_labelled else measure_transcripts(cell, rows)
    figures |= {"clips": len(rows.answers) if is_labelled else len(rows.parts["test"]), "load": load}
    file.with_suffix(".part").write_text(json.dumps(figures, indent=1) + "\n")
    file.with_suffix(".part").replace(file)
    return figures


def compare_vectors(cell: Measurement, out: Path) -> dict[str, float]:
    """Return the mean cosine of the clips' vectors to those padded to 30 s, where both were measured."""
    files = [
        one.file(out).with_suffix(".safetensors") for one in (cell, Measurement(cell.model, BEST, cell.set))
    ]
    if not all(file.is_file() for file in files):
        return {}
    vectors, padded = (load_file(file)["vectors"] for file in files)
    return {"cosine": F.cosine_similarity(vectors, padded).mean().item()}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = [*LABELLED, *TRANSCRIBED]
    parser.add_argument(
        "options", nargs="*", metavar="OPTIONS", help="such as pad_to=10, beside the usual ones"
    )
    parser.add_argument("--models", nargs="+", metavar="MODEL", help=f"default: {', '.join(MODELS)}")
    parser.add_argument("--sets", nargs="+", choices=sets, metavar="SET", default=sets, help=f"of {sets}")
    parser.add_argument("--only", action="store_true", help="leave the usual lengths of silence out")
    parser.add_argument("--clips", type=int, default=320, help="most clips of each split with labels")
    parser.add_argument("--texts", type=int, default=20, help="most test clips with texts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("runs/silence"), help="folder of the cells")
    parser.add_argument(
        "--store", type=Path, default=Path(__file__).parent / "results", help="folder of results"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few clips, to see that it works; nothing is stored"
    )
    arguments = parser.parse_args()
    if arguments.models is None:
        root = real_root("realmodels")
        if root is None:
            parser.error("name --models, or set UNIAUDIO_REALMODELS to their folder")
        arguments.models = [str(root / name) for name in MODELS]
    if arguments.quick:
        arguments.clips, arguments.texts = min(arguments.clips, 40), min(arguments.texts, 2)
    # cells of the same clips
    arguments.out = arguments.out / f"{arguments.clips}_clips_{arguments.texts}_texts"
    return arguments


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    console = Console(width=max(160, Console().width))
    facts = machine(arguments.threads)
    sets = open_sets(arguments.sets, arguments.clips, arguments.texts, console)
    lengths = list(dict.fromkeys([*(() if arguments.only else USUAL), *arguments.options]))
    labels = shorten_paths(arguments.models)
    cases: Result = {}
    for model in arguments.models:
        for name, rows in sets.items():
            cells = [Measurement(model, options, name) for options in lengths]
            for cell in cells:
                figures = measure(cell, rows, arguments.out)
                line = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in figures.items())
                console.print(f"{labels[model]}, {name}, {cell.options or 'none'}: {line}", highlight=False)
            runs: dict[str, list[dict[str, Any]]] = {
                NAMES.get(cell.options, cell.options): [
                    {**measure(cell, rows, arguments.out), **compare_vectors(cell, arguments.out)}
                ]
                for cell in cells
            }
            cases[f"{labels[model]}, {name}"] = gathered(runs, {})
    result: Result = {
        "benchmark": "silence",
        "title": "Silence behind a clip: probes, own decoder and processor seconds",
        "machine": facts,
        "quick": arguments.quick,
        "quiet": False,
        "settings": {"clips": arguments.clips, "texts": arguments.texts, "seeds": SEEDS},
        "headline": "processor_seconds",
        "cases": cases,
    }
    console.print(one_table(result))
    if not arguments.quick:
        console.print(f"stored in {store_result(arguments.store, result)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
