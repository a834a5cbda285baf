"""Both sides of a step over the same weights and clips: ours packed, and the stock transformers way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bench_step import AFTER, ANSWER_RATE, BEFORE, WrittenIds, padded_loss
from gpu_timing import Setting
from peer import IGNORED
from setting import clip_seconds, noise
from sizes import new_qwen3, new_whisper
from torch import Tensor
from torch.nn import functional as F

from uniaudio.data.collate import collate
from uniaudio.estimate import flops
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM, cast_to_audio_lm
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged
from uniaudio.train.engines.base import Engine
from uniaudio.types import SAMPLE_RATE, Batch, Example

RATE = 12.5  # audio tokens per second
MEAN_OF_MIX = 12.0  # seconds of a clip
REACH = 30 * SAMPLE_RATE
Step = Callable[[], tuple[Tensor, float]]  # returns the mean loss and the norm of the gradient


@dataclass(frozen=True)
class Clips:
    """The clips of a step, sorted by length, each with a question and an answer of random ids.

    Args:
        examples: B of them, one clip each.
    """

    examples: list[Example]

    @property
    def lengths(self) -> list[float]:
        """Seconds of every clip."""
        return [len(example.clips[0]) / SAMPLE_RATE for example in self.examples]

    @property
    def seconds(self) -> float:
        """Real audio in all clips."""
        return sum(self.lengths)

    def first(self, count: int) -> Clips:
        """Return the first so many."""
        return Clips(self.examples[:count])

    def every(self, step: int) -> Clips:
        """Return every so-manieth clip, which keeps a mix a mix."""
        return Clips(self.examples[::step])


def clips_of(case: float | str, budget: float, vocabulary: int) -> Clips:
    """Return clips of so many seconds each, or of the ``mix``, that fill a budget of seconds (two at least)."""
    mean = MEAN_OF_MIX if case == "mix" else float(case)
    seconds = clip_seconds(str(case), max(2, round(budget / mean)))
    generator = np.random.default_rng(0)

    def written(count: int) -> str:
        return " ".join(map(str, generator.integers(vocabulary, size=count)))

    return Clips(
        [
            Example(
                id=str(i),
                task="asr",
                dataset="noise",
                clips=(clip,),
                prompt=tuple(written(count) for count in (BEFORE, AFTER)),
                answer=written(answer_length(length)),
            )
            for i, (clip, length) in enumerate(zip(noise(seconds), seconds, strict=True))
        ]
    )


def answer_length(seconds: float) -> int:
    """Return the answer tokens of a clip."""
    return max(3, int(ANSWER_RATE * seconds))


def new_model(setting: Setting, decoder: str) -> AudioLM:
    """Build encoder and adapter in float32 and a frozen decoder, with random weights, on the device."""
    lm = TextDecoder(new_qwen3(decoder, setting.device, setting.weights))
    encoder = WhisperAudioEncoder(new_whisper(setting.encoder, setting.device))
    adapter = StackAdapter(encoder.dim, encoder.frame_rate, lm.dim, RATE)
    return AudioLM(encoder, adapter, lm).to(setting.device).train()


def new_engine(setting: Setting, model: AudioLM) -> Engine:
    """Return the engine of a run in one process: AdamW, fused on CUDA, float32 weights, autocast.

    The rate of learning is 0, so that every step of every side computes the same.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=setting.cuda)
    return Engine(model, optimizer, setting.precision)


def our_batch(model: AudioLM, clips: Clips, share: bool = False) -> Batch:
    """Pack clips into one micro-batch, on the host; with ``share`` questions about one clip share its tokens."""
    return collate(clips.examples, WrittenIds(), model.count_slots, ("asr",), share)


def our_step(engine: Engine, batch: Batch, device: torch.device) -> Step:
    """Return a step as the loop takes it: to the device, mel, forward, backward, clipping, AdamW."""

    def step() -> tuple[Tensor, float]:
        here = batch.to(device, non_blocking=True)
        loss = engine.forward(here).total / batch.answer_tokens
        engine.backward(loss)
        return loss.detach(), engine.step(1.0)

    return step


def stock_step(engine: Engine, clips: Clips, micro_batch: int, device: torch.device) -> Step:
    """Return a step the stock way over the same modules: clips padded to 30 s, text padded on the right, all logits.

    The mel spectrograms and ids lie ready on the device, so the stock side gets them for nothing.
    """
    model = cast_to_audio_lm(engine.plain)
    written = WrittenIds()
    texts = [
        [
            torch.tensor(ids, device=device)
            for ids in (*written.encode_prompt(e.prompt), written.answer(e.answer))
        ]
        for e in clips.examples
    ]
    answer_tokens = sum(len(answer) for _, _, answer in texts)
    parts = [
        range(first, min(first + micro_batch, len(texts))) for first in range(0, len(texts), micro_batch)
    ]
    features = [padded_mel(model, [clips.examples[i] for i in part], device) for part in parts]
    model.decoder.set_attention(model.decoder.stock_attention)

    def step() -> tuple[Tensor, float]:
        losses = []
        for part, mel in zip(parts, features, strict=True):
            with engine.autocast():
                audio_tokens = padded_audio(model, mel)
                chosen = [
                    audio[: round(clips.lengths[i] * RATE)]
                    for i, audio in zip(part, audio_tokens, strict=True)
                ]
                loss = stock_loss(model, chosen, [texts[i] for i in part], answer_tokens)
            engine.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum(), engine.step(1.0)

    return step


def padded_mel(model: AudioLM, examples: Sequence[Example], device: torch.device) -> Tensor:
    """Return the mel spectrograms ``[B, M, 3000]`` of clips filled up to 30 s with silence."""
    samples = torch.zeros(len(examples), REACH, dtype=torch.int16)
    for row, example in zip(samples, examples, strict=True):
        row[: len(example.clips[0])] = torch.from_numpy(example.clips[0])
    lengths = torch.full((len(examples),), REACH)
    encoder: Any = model.encoder
    mel = encoder.mel(Ragged(samples.flatten().to(device), lengths))
    return mel.values.view(len(examples), -1, mel.values.shape[1]).transpose(1, 2).contiguous()


def padded_audio(model: AudioLM, mel: Tensor) -> Tensor:
    """Return the audio tokens ``[B, 375, D]`` of padded clips, through transformers' encoder."""
    adapter: Any = model.adapter
    encoder: Any = model.encoder
    hidden = encoder.whisper(mel).last_hidden_state
    stacked = hidden.reshape(len(mel), -1, adapter.stack * hidden.shape[2])
    return adapter.down(F.gelu(adapter.up(adapter.norm(stacked))))


def stock_loss(
    model: AudioLM, audio: Sequence[Tensor], texts: Sequence[Sequence[Tensor]], answer_tokens: int
) -> Tensor:
    """Return the stock model's own loss over rows padded on the right, divided by the answer tokens of the step."""
    lm = model.decoder.lm
    table = lm.get_input_embeddings()
    rows, labels = [], []
    for audio_tokens, (before, after, answer) in zip(audio, texts, strict=True):
        words = table(torch.cat([before, after, answer]))
        audio_tokens = audio_tokens.to(words.dtype)
        rows.append(torch.cat([words[: len(before)], audio_tokens, words[len(before) :]]))
        labels.append(F.pad(answer, (len(rows[-1]) - len(answer), 0), value=IGNORED))
    return padded_loss(lm, rows, labels, answer_tokens)


def useful_flops(model: AudioLM, lengths: Sequence[float]) -> float:
    """Return the operations that clips of these seconds need in a step: no padding, logits at answers only.

    The same number for both sides. The encoder and the adapter are trained, the decoder is frozen.
    """
    parts: Any = model
    config = parts.decoder.lm.config
    adapter = sum(2 * linear.weight.numel() for linear in (parts.adapter.up, parts.adapter.down))
    total = 0.0
    for seconds in lengths:
        answer = answer_length(seconds)
        audio_tokens = seconds * RATE
        total += flops.TRAINED * flops.count_whisper_flops(parts.encoder.whisper.config, seconds)
        total += flops.TRAINED * adapter * audio_tokens
        tokens = audio_tokens + BEFORE + AFTER + answer
        total += flops.FROZEN_BELOW_GRADIENT * flops.count_decoder_flops(config, tokens)
        total += flops.FROZEN_BELOW_GRADIENT * flops.count_head_flops(config, answer)
    return total
