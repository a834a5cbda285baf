"""A training step with real weights, Whisper base and a frozen language model: ours against the stock way, short clips.

    python benchmarks/bench_real.py [--quick] [--cases CASE ...] [--out FILE.json]

UNIAUDIO_REALMODELS names the folder of models (docs/real-models.md). Both sides are those of ``bench_step.py``: stock
pads every clip to 30 s and has logits at every position, ours packs. 16 clips of 0.3 to 5.5 s, prompts as long as those
of a chat template with a system prompt, SmolLM2-135M or Qwen2.5-Coder-0.5B. In the cases ``equal`` ours pads its clips
to 30 s, too, and must have the stock loss to within 2e-5.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import bench_step
from measure import Benchmark, Run, main, time_steps
from setting import GRID
from sizes import Sizes
from transformers import AutoConfig, AutoModelForCausalLM, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.config.path_variables import real_root

ENCODER = "whisper-base"
DECODERS = {"SmolLM2-135M": "smollm2-135m-instruct", "Qwen2.5-Coder-0.5B": "qwen2.5-coder-0.5b-instruct"}
EQUAL = " equal"
SYSTEM, BEFORE, AFTER = 24, 4, 14  # prompt tokens: of the system prompt, and around a clip
SHORTEST, LONGEST = 0.3, 5.5  # seconds
PADDED = "ours, padded"
AGREEMENT = 2e-5


@dataclass(frozen=True)
class RealParts(Sizes):
    """Real models in the place of named sizes: ``encoder`` and ``decoder`` are folders."""

    def new_encoder(self) -> WhisperEncoder:
        """Return Whisper's encoder with its weights, in training mode and float32."""
        return WhisperModel.from_pretrained(self.encoder, dtype="float32").get_encoder().train()

    def new_decoder(self) -> AutoModelForCausalLM:
        """Return the frozen language model with its weights, in float32."""
        return (
            AutoModelForCausalLM.from_pretrained(self.decoder, dtype="float32").requires_grad_(False).eval()
        )

    @property
    def mel_bins(self) -> int:
        return int(AutoConfig.from_pretrained(self.encoder).num_mel_bins)

    @property
    def widths(self) -> tuple[int, int]:
        """Of encoder and decoder."""
        encoder, decoder = map(AutoConfig.from_pretrained, (self.encoder, self.decoder))
        return int(encoder.d_model), int(decoder.hidden_size)

    @property
    def vocabulary(self) -> int:
        return int(AutoConfig.from_pretrained(self.decoder).vocab_size)


def real_parts(decoder: str) -> RealParts:
    """Return Whisper base and a language model by its name in ``DECODERS``.

    Raises:
        SystemExit: when the folder of models does not hold them.
    """
    root = real_root("realmodels") or Path("UNIAUDIO_REALMODELS")
    folders = [root / ENCODER, root / DECODERS[decoder]]
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise SystemExit(f"there is no {folder}; set UNIAUDIO_REALMODELS (docs/real-models.md)")
    return RealParts(*map(str, folders))


def short_clips(count: int) -> list[float]:
    """Return the lengths of ``count`` clips in seconds, sorted; the same ones in every process."""
    generator = random.Random(0)
    return sorted(round(generator.uniform(SHORTEST, LONGEST) / GRID) * GRID for _ in range(count))


def figures(run: Run) -> dict[str, float]:
    """Time one side's step."""
    parts = real_parts(run.case.removesuffix(EQUAL))
    seconds = short_clips(4 if run.quick or run.case.endswith(EQUAL) else 16)
    examples = bench_step.examples_of(seconds, parts, BEFORE, AFTER, SYSTEM)
    if run.side == "stock":
        step = bench_step.stock(seconds, examples, parts)
    else:
        step = bench_step.ours(seconds, examples, parts, 30.0 if run.side == PADDED else None)
    return {"clips": len(seconds), **time_steps(step, run.steps)}


if __name__ == "__main__":
    main(
        Benchmark(
            name="real",
            title="Training step with real weights on clips of 0.3 to 5.5 s",
            cases={
                **dict.fromkeys(DECODERS, ("stock", "ours")),
                **dict.fromkeys([name + EQUAL for name in DECODERS], ("stock", PADDED)),
            },
            figures=figures,
            same={name + EQUAL: ("stock", PADDED) for name in DECODERS},
            agreement=AGREEMENT,
            quick_cases=("SmolLM2-135M equal",),
        )
    )
