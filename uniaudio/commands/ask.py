"""One clip: a question about it, or its embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from uniaudio.build.embedder import load_embedder
from uniaudio.build.model import LoadedModel, load_model
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.data.audio import decode
from uniaudio.data.clip_notices import ADVICE
from uniaudio.data.collate import collate_prompts
from uniaudio.data.template import AUDIO
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.generation.greedy import generate
from uniaudio.evaluate.probing.task_embeddings import LONGEST
from uniaudio.types import Example


def read_clip(path: Path) -> Any:
    """Decode one file for a question.

    Raises:
        UserError: when it cannot be used.
    """
    try:
        return decode(path, LONGEST, str(path))
    except RowError as problem:
        raise UserError(str(problem)) from problem


def answer_question(loaded: LoadedModel, clip: Path, text: str, max_new_tokens: int) -> str:
    """Ask a loaded model one question about one clip; an answer that is cut says so."""
    pieces = marked_pieces(text)
    return answer_samples(loaded, read_clip(clip), pieces, max_new_tokens)


def marked_pieces(text: str) -> tuple[str, ...]:
    """Return a question cut at the place of its one clip, which is before the text where none is marked.

    Raises:
        UserError: when several places are marked.
    """
    pieces = tuple((text if AUDIO in text else f"{AUDIO}{text}").split(AUDIO))
    if len(pieces) != 2:
        raise UserError(f"the question holds {len(pieces) - 1} {AUDIO} marks for one clip")
    return pieces


def answer_samples(
    loaded: LoadedModel, samples: NDArray[np.int16], pieces: tuple[str, ...], max_new_tokens: int
) -> str:
    """Answer a question, cut at the place of its clip, about int16 samples ``[S]`` at 16 kHz.

    An answer that has not ended after ``max_new_tokens`` says so behind its text.

    Raises:
        UserError: when the question holds the text of a special token, or has more tokens than allowed with its clip.
    """
    example = Example("question", "ask", "ask", (samples,), pieces, "-")
    try:
        loaded.format.check_question(pieces, example.answer, loaded.model.slots_for(len(samples)))
        batch = collate_prompts([example], loaded.format, loaded.model.slots_for, ("ask",))
    except RowError as problem:
        raise UserError(f"the question cannot be asked: {problem}") from problem
    device = next(loaded.model.parameters()).device
    said = generate(loaded.model, batch.to(device), loaded.format, max_new_tokens)[0]
    return f"{said.text} … (cut after {max_new_tokens} tokens)" if said.is_cut else said.text


def ask(spec: str, clip: Path, text: str, max_new_tokens: int, trust: Trust = NO_TRUST) -> str:
    """Load a model and ask it one question about one clip."""
    read_clip(clip)  # a wrong path is told before a model is loaded
    return answer_question(load_model(spec, trust=trust), clip, text, max_new_tokens)


def embed_files(spec: str, files: Sequence[Path], out: Path, frames: bool, trust: Trust = NO_TRUST) -> None:
    """Write ``files``, ``embeddings [C, E]``, ``frame_rate`` and, on request, ``frames_0 ...`` to an NPZ file.

    A file that cannot be used is named on the console and left out, and so is what is odd about a clip.

    Raises:
        UserError: when no file can be used, before a model is loaded.
    """
    console = Console()
    used: list[str] = []
    clips: list[NDArray[np.int16]] = []
    refusals: list[RowError] = []
    for file in files:
        notices: list[str] = []
        try:
            clips.append(decode(file, LONGEST, str(file), notices=notices))
            used.append(str(file))
        except RowError as problem:
            refusals.append(problem)
            console.print(f"{file} is left out: {problem}", style="yellow", highlight=False, markup=False)
        for kind in dict.fromkeys(notices):
            console.print(f"{file}: {kind}: {ADVICE[kind]}", style="yellow", highlight=False, markup=False)
    if not clips:
        raise UserError(f"none of {len(files)} file(s) can be used; the first: {refusals[0]}")
    embedder = load_embedder(spec, trust=trust)
    arrays: dict[str, Any] = {
        "files": np.array(used),
        "embeddings": embedder.embed(clips),
        "frame_rate": np.array(embedder.frame_rate),
    }
    if frames:
        arrays |= {f"frames_{i}": value for i, value in enumerate(embedder.embed(clips, pool="none"))}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **arrays)
    left_out = f", {len(refusals)} file(s) left out" if refusals else ""
    console.print(f"{out}: {len(clips)} clip(s), {embedder.dim} dimensions{left_out}")
