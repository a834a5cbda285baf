"""A whole training step, forward and backward: ours against the stock way, under a vocabulary of 151,936.

    python benchmarks/bench_step.py [--quick] [--out FILE.json] [--plot FILE.png]

Stock: transformers' extractor and Whisper encoder padded to 30 s, the same adapter, text padded on the right, Qwen3
with its own SDPA attention, logits at every position, its own loss. Ours: ``AudioLM`` over packed batches. Both have
the same weights, clips, ids, dtype and threads, and no optimizer; waveforms and ids lie ready, the mel spectrogram is
part of the step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from measure import Step, main
from setting import (
    VOCABULARY,
    as_float,
    clip_seconds,
    noise,
    our_micro_batches,
    small_qwen,
    stock_micro_batches,
    whisper_tiny,
)
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor

from uniaudio.data.batch import collate
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.types import SAMPLE_RATE, Example

IGNORED = -100  # a position without a label, for the stock loss
BEFORE, AFTER = 4, 16  # prompt tokens around the clip
ANSWER_RATE = 3  # answer tokens per second of audio, at least three in all


class WrittenIds:
    """Stands for the chat format of a tokenizer: texts are token ids, written as numbers."""

    def prompt(self, pieces: tuple[str, ...]) -> list[list[int]]:
        """Return the ids of every piece."""
        return [[int(word) for word in piece.split()] for piece in pieces]

    def answer(self, text: str) -> list[int]:
        """Return the ids of the answer."""
        return [int(word) for word in text.split()]


def prepare(side: str, case: str, clips: int) -> Step:
    """Build one side's step over ``clips`` clips."""
    seconds = clip_seconds(case, clips)
    return (stock if side == "stock" else ours)(seconds, examples_of(seconds))


def examples_of(seconds: list[float]) -> list[Example]:
    """Return one example for every clip, with random ids as its text."""
    generator = np.random.default_rng(0)

    def written(count: int) -> str:
        return " ".join(map(str, generator.integers(VOCABULARY, size=count)))

    return [
        Example(
            id=str(i),
            task="asr",
            dataset="noise",
            clips=(clip,),
            prompt=(written(BEFORE), written(AFTER)),
            answer=written(max(3, int(ANSWER_RATE * length))),
        )
        for i, (clip, length) in enumerate(zip(noise(seconds), seconds, strict=True))
    ]


def new_adapter() -> StackAdapter:
    torch.manual_seed(2)
    return StackAdapter(384, 50.0, 256)


def stock(seconds: list[float], examples: list[Example]) -> Step:
    """Everything padded: clips to 30 s, text to the longest of the micro-batch, logits everywhere."""
    whisper, adapter, lm = whisper_tiny(), new_adapter(), small_qwen()
    extractor = WhisperFeatureExtractor(feature_size=80)
    table = lm.get_input_embeddings()
    waves = [as_float(example.clips[0]) for example in examples]
    texts = [[torch.tensor(ids) for ids in ids_of(example)] for example in examples]
    answer_tokens = sum(len(answer) for _, _, answer in texts)
    batches = stock_micro_batches(seconds)

    def step() -> dict[str, float]:
        whisper.zero_grad(set_to_none=True)
        adapter.zero_grad(set_to_none=True)
        loss = 0.0
        for members in batches:
            mel = extractor([waves[i] for i in members], sampling_rate=SAMPLE_RATE, return_tensors="pt")
            hidden = whisper(mel.input_features).last_hidden_state
            stacked = hidden.reshape(len(members), -1, adapter.stack * hidden.shape[2])
            audio = adapter.down(F.gelu(adapter.up(adapter.norm(stacked))))
            rows, labels = [], []
            for clip, i in zip(audio, members, strict=True):
                before, after, answer = texts[i]
                heard = clip[: round(seconds[i] * 12.5)]
                rows.append(torch.cat([table(before), heard, table(after), table(answer)]))
                labels.append(F.pad(answer, (len(rows[-1]) - len(answer), 0), value=IGNORED))
            part = padded_loss(lm, rows, labels, answer_tokens)
            part.backward()
            loss += part.item()
        return {"loss": loss, "audio_seconds": sum(seconds)}

    return step


def padded_loss(lm: torch.nn.Module, rows: list[Tensor], labels: list[Tensor], answer_tokens: int) -> Tensor:
    """Return the stock model's own loss over rows padded on the right, divided by the answer tokens of the step."""
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return lm(
        inputs_embeds=pad_sequence(rows, batch_first=True),
        attention_mask=mask,
        labels=pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        num_items_in_batch=answer_tokens,
        use_cache=False,
    ).loss


def ids_of(example: Example) -> list[list[int]]:
    """Return the ids before the clip, after it, and of the answer."""
    written = WrittenIds()
    return [*written.prompt(example.prompt), written.answer(example.answer)]


def ours(seconds: list[float], examples: list[Example]) -> Step:
    """``AudioLM`` over packed batches, as a run trains it."""
    model = AudioLM(WhisperAudioEncoder(whisper_tiny()), new_adapter(), TextDecoder(small_qwen())).train()
    batches = [
        collate([examples[i] for i in members], WrittenIds(), model.slots_for, ("asr",))  # type: ignore[arg-type]
        for members in our_micro_batches(seconds)
    ]
    answer_tokens = sum(batch.answer_tokens for batch in batches)

    def step() -> dict[str, float]:
        model.zero_grad(set_to_none=True)
        loss = 0.0
        for batch in batches:
            part = model(batch).total / answer_tokens
            part.backward()
            loss += part.item()
        return {"loss": loss, "audio_seconds": sum(seconds)}

    return step


if __name__ == "__main__":
    main(
        Path(__file__),
        "Training step, forward and backward, vocabulary 151,936",
        prepare,
        headline="seconds",
        counts=(8, 16),
    )
