"""The command `embed`: one vector per audio file, and its frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uniaudio.build.embedder import load_embedder
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import WorkProgress, make_console, print_warning
from uniaudio.data.audio import ADVICE, decode
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.embedding import MAX_CLIP_SECONDS
from uniaudio.ragged import Ragged

CLIPS_AT_A_TIME = 32  # so that progress shows


def embed_files(spec: str, files: Sequence[Path], out: Path, frames: bool, trust: Trust = NO_TRUST) -> None:
    """Write ``files``, ``embeddings [C, E]``, ``frame_rate`` and, on request, ``frames_0 ...`` to an NPZ file.

    A file that cannot be used is named on the console and left out, and so is what is odd about a clip.

    Raises:
        UserError: when no file can be used, before a model is loaded; when no embedding is finite.
    """
    console = make_console()
    used: list[str] = []
    clips: list[NDArray[np.int16]] = []
    refusals: list[RowError] = []
    for file in files:
        notices: list[str] = []
        try:
            clips.append(decode(file, MAX_CLIP_SECONDS, str(file), notices=notices))
            used.append(str(file))
        except RowError as problem:
            refusals.append(problem)
            print_warning(f"{file} is skipped: {problem}", console)
        for kind in dict.fromkeys(notices):
            print_warning(f"{file}: {kind}: {ADVICE[kind]}", console)
    if not clips:
        raise UserError(f"none of {len(files)} file(s) can be used; the first: {refusals[0]}")
    embedder = load_embedder(spec, trust=trust)
    means: list[NDArray[np.float32]] = []
    of_clips: list[NDArray[np.float32]] = []
    with WorkProgress(console, "clips") as progress:
        task = progress.begin("embedding", len(clips))
        for first in range(0, len(clips), CLIPS_AT_A_TIME):
            some = clips[first : first + CLIPS_AT_A_TIME]
            if frames:
                rows = embedder.embed(some, pool="none")
                means.append(Ragged.from_rows([torch.from_numpy(row) for row in rows]).mean().numpy())
                of_clips += rows
            else:
                means.append(embedder.embed(some))
            progress.count(task, len(some))
    vectors = np.concatenate(means)
    kept = list_finite_rows(vectors, spec)
    for name in sorted({*used} - {used[number] for number in kept}):
        print_warning(f"{name} is skipped: its embedding is not finite (NaN or infinite)", console)
    arrays: dict[str, Any] = {
        "files": np.array([used[number] for number in kept]),
        "embeddings": vectors[kept],
        "frame_rate": np.array(embedder.frame_rate),
        **{f"frames_{i}": of_clips[number] for i, number in enumerate(kept) if frames},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as stream:  # given a name, numpy would put .npz behind another one
        np.savez(stream, **arrays)
    count = len(files) - len(kept)
    left_out = f", {count} file(s) skipped" if count else ""
    console.print(f"{out}: {len(kept)} clip(s), {embedder.dim} dimensions{left_out}")


def list_finite_rows(vectors: NDArray[np.float32], spec: str) -> list[int]:
    """Return the rows of ``[C, E]`` without NaN or infinite values.

    Raises:
        UserError: naming the model, when there is none.
    """
    kept: list[int] = np.flatnonzero(np.isfinite(vectors).all(axis=1)).tolist()
    if not kept:
        raise UserError(
            f"{spec}: the embeddings of all {len(vectors):,} clip(s) are not finite (NaN or infinite); check the "
            "weights of the model"
        )
    return kept
