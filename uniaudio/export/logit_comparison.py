"""The logits of a written model against those of the run, on clips of noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor

from uniaudio.data.collate import collate_prompts
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.export.hf import make_noise
from uniaudio.export.stock_formats import StockFormat
from uniaudio.model.audio_lm import AudioLM
from uniaudio.types import SAMPLE_RATE, Example

TRIAL = (16_000, 7_777, 23_456, 480_000)  # samples of the clips about which both models are asked
QUESTION = "What is this?"
CLOSE = 1e-3  # greatest difference of logits, over their largest value, that rounding explains


@dataclass(frozen=True)
class LogitComparison:
    """How far a written model is from the run on clips of noise, in float32.

    Args:
        difference: greatest difference of the logits that were compared, over their largest value.
        same_token: clips of which the likeliest first token is the same. clips: of how many.
    """

    difference: float
    same_token: int
    clips: int

    def describe(self) -> str:
        """Return the result as a sentence."""
        return (
            f"Compared with the run on {self.clips} clips of noise of 0.5 to 30 s, in float32: the "
            f"most likely first token is the same for {self.same_token}, and its logits differ by "
            f"at most {self.difference:.1g} of the largest."
        )


@torch.no_grad()
def compute_prompt_logits(
    model: AudioLM, format: ChatFormat, clips: Sequence[NDArray[np.int16]]
) -> list[Tensor]:
    """Return for one question about every clip the logits ``[T, V]`` of its prompt, in float32 on the CPU."""
    rows = []
    for clip in clips:
        example = Example("question", "ask", "ask", (clip,), ("", QUESTION), "-")
        batch = collate_prompts([example], format, model.count_slots, ("ask",))
        hidden, _ = model.read(batch)
        rows.append(model.decoder.logits(hidden).float())
    return rows


def compare_stock_model(
    ours: Sequence[Tensor], clips: Sequence[NDArray[np.int16]], folder: Path, target: StockFormat, exact: bool
) -> LogitComparison:
    """Load what was written with the stock class, and compare its logits of the first answer token with the run's.

    Args:
        ours, exact: see ``compare_logits``.

    Raises:
        RuntimeError: see ``compare_logits``.
    """
    assert target.model is not None
    stock = target.model.from_pretrained(folder, dtype=torch.float32).eval()
    floats = [clip / np.float32(32768) for clip in clips]  # stock processors do not scale int16
    return compare_logits(ours, floats, folder, stock, exact, slice(-1, None))


def verify_hf_lm(ours: Sequence[Tensor], clips: Sequence[NDArray[np.int16]], folder: Path) -> float:
    """Load what was written with its own code, compare its logits of whole prompts with the run's, and return the
    greatest difference over the largest logit.

    Raises:
        RuntimeError: when it is more than rounding, which is a fault of the export.
    """
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    return compare_logits(ours, clips, folder, loaded, True, slice(None)).difference


@torch.no_grad()
def compare_logits(
    ours: Sequence[Tensor],
    clips: Sequence[NDArray[Any]],
    folder: Path,
    model: Any,
    exact: bool,
    tokens: slice,
) -> LogitComparison:
    """Ask a written model about clips, one at a time, and compare its logits with those of the run.

    Args:
        ours: logits of the prompts, see ``compute_prompt_logits``. clips: as its processor takes them.
        folder: of the processor. exact: whether a difference is a fault. tokens: of a prompt, whose logits count.

    Raises:
        RuntimeError: when the model ought to be equal and is not, or gives NaN, which is a fault of the export.
    """
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    differences, same = [], 0
    for clip, logits in zip(clips, ours, strict=True):
        inputs = processor(
            text=[write_prompt(processor)], audio=[clip], sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )
        theirs = model(**inputs).logits[0]
        if exact and len(theirs) != len(logits):
            raise RuntimeError(f"{folder}: {len(theirs)} tokens in a prompt, but the run has {len(logits)}")
        # a table of embeddings may have been given more rows than the run's
        written, wanted = theirs[tokens, : logits.shape[1]], logits[tokens]
        differences.append(float((written - wanted).abs().max() / wanted.abs().max()))
        same += int(written[-1].argmax() == wanted[-1].argmax())
    difference = float(np.max(differences))  # max() of Python would pass over values that are no numbers
    if not difference <= (CLOSE if exact else math.inf):
        raise RuntimeError(f"{folder}: the logits of the exported model differ from those of the run")
    return LogitComparison(difference, same, len(clips))


def write_prompt(processor: Any) -> str:
    """Return the text of the question about one clip, as the chat template writes it."""
    contents = [{"type": "audio"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": contents}], add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def make_trial_clips() -> list[NDArray[np.int16]]:
    """Return clips of noise of several lengths."""
    return [row.numpy() for row in make_noise(TRIAL).rows()]
