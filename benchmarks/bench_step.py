"""A whole training step, forward and backward: ours against the stock way.

    python benchmarks/bench_step.py [--quick] [--cases CASE ...] [--encoder base] [--decoder 0.6B]
                                    [--out FILE.json] [--plot FILE.png]

Stock: transformers' extractor and Whisper encoder padded to 30 s, the same adapter, text padded on the right, Qwen3
with its own SDPA attention, logits at every position, its own loss. Ours: ``AudioLM`` over packed batches. Both have
the same weights, clips, ids, dtype and threads, and no optimizer; waveforms and ids lie ready, the mel spectrogram is
part of the step.

Cases ``at 25 Hz``: stock is ``Qwen2AudioForConditionalGeneration`` with the same weights (see ``peer.py``), its
extractor, attention mask over the padding and all. Ours has the same tower, projector and decoder: at 30 s both compute
the same. The peer takes four clips at a time, for eight of 30 s would need more than 20 GiB; ours as above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from measure import Benchmark, Run, Step, main, time_steps
from peer import FRAMES_PER_SECOND, IGNORED, labelled, new_peer, new_projector
from setting import (
    CASES,
    QUICK_CASES,
    as_float,
    clip_seconds,
    noise,
    our_micro_batches,
    stock_micro_batches,
)
from sizes import Sizes
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor

from uniaudio.data.collate import collate
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.whisper_decoder import LinearBridge
from uniaudio.types import SAMPLE_RATE, Example

BEFORE, AFTER = 4, 16  # prompt tokens around the clip
ANSWER_RATE = 3  # answer tokens per second of audio, at least three in all
AT_25 = " at 25 Hz"
PEER_CLIPS = 4  # at a time


class WrittenIds:
    """Stands for the chat format of a tokenizer: texts are token ids, written as numbers."""

    def encode_prompt(self, pieces: Sequence[str]) -> list[list[int]]:
        """Return the ids of every piece."""
        return [[int(word) for word in piece.split()] for piece in pieces]

    def answer(self, text: str) -> list[int]:
        """Return the ids of the answer."""
        return [int(word) for word in text.split()]


def figures(run: Run) -> dict[str, float]:
    """Time one side's step."""
    case, sides = run.case.removesuffix(AT_25), SIDES[run.case.endswith(AT_25)]
    clips = (2, 4) if run.quick else (8, 16)
    seconds = clip_seconds(case, clips[case == "mix"])
    step = sides[run.side](seconds, examples_of(seconds, run.sizes), run.sizes)
    return {"clips": len(seconds), **time_steps(step, run.steps)}


def examples_of(
    seconds: list[float], sizes: Sizes, before: int = BEFORE, after: int = AFTER, system: int = 0
) -> list[Example]:
    """Return one example for every clip, with random ids as its text.

    Args:
        before, after: tokens of the prompt around the clip. system: tokens in front of them that all examples have.
    """
    generator = np.random.default_rng(0)

    def written(count: int) -> str:
        return " ".join(map(str, generator.integers(audio_id(sizes), size=count)))

    opening = written(system)
    return [
        Example(
            id=str(i),
            task="asr",
            dataset="noise",
            clips=(clip,),
            prompt=(f"{opening} {written(before)}", written(after)),
            answer=written(max(3, int(ANSWER_RATE * length))),
        )
        for i, (clip, length) in enumerate(zip(noise(seconds), seconds, strict=True))
    ]


def audio_id(sizes: Sizes) -> int:
    """Return the token that stands for an audio frame in the peer's rows; no text has it."""
    return sizes.vocabulary - 1


def new_adapter(sizes: Sizes) -> StackAdapter:
    width, decoder_width = sizes.widths
    torch.manual_seed(2)
    return StackAdapter(width, 50.0, decoder_width)


def stock(seconds: list[float], examples: list[Example], sizes: Sizes) -> Step:
    """Everything padded: clips to 30 s, text to the longest of the micro-batch, logits everywhere."""
    whisper, adapter, lm = sizes.new_encoder(), new_adapter(sizes), sizes.new_decoder()
    extractor = WhisperFeatureExtractor(feature_size=sizes.mel_bins)
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
                audio = clip[: round(seconds[i] * 12.5)]
                rows.append(torch.cat([table(before), audio, table(after), table(answer)]))
                labels.append(F.pad(answer, (len(rows[-1]) - len(answer), 0), value=IGNORED))
            part = padded_loss(lm, rows, labels, answer_tokens)
            part.backward()
            loss += part.item()
        return {"loss": loss, "audio_seconds": sum(seconds)}

    return step


def padded_loss(lm: torch.nn.Module, rows: list[Tensor], labels: list[Tensor], answer_tokens: int) -> Tensor:
    """Return the stock model's own loss over rows padded on the right, divided by the answer tokens of the step."""
    mask = pad_sequence([torch.ones_like(row_labels) for row_labels in labels], batch_first=True)
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
    return [*written.encode_prompt(example.prompt), written.answer(example.answer)]


def ours(seconds: list[float], examples: list[Example], sizes: Sizes, pad_to: float | None = None) -> Step:
    """``AudioLM`` over packed batches, as a run trains it.

    Args:
        pad_to: seconds of every clip with the silence behind it. None: no silence.
    """
    encoder = WhisperAudioEncoder(sizes.new_encoder(), pad_to)
    model = AudioLM(encoder, new_adapter(sizes), TextDecoder(sizes.new_decoder()))
    return packed_step(seconds, examples, model)


def ours_at_25(seconds: list[float], examples: list[Example], sizes: Sizes) -> Step:
    """The same with the peer's parts: pairs of frames averaged, a linear map."""
    encoder, lm = WhisperAudioEncoder(sizes.new_encoder(), pool=2), sizes.new_decoder()
    bridge = LinearBridge(encoder.dim, lm.config.hidden_size)
    bridge.map = new_projector(encoder.dim, lm.config.hidden_size)
    return packed_step(seconds, examples, AudioLM(encoder, bridge, TextDecoder(lm)))


def packed_step(seconds: list[float], examples: list[Example], model: AudioLM) -> Step:
    """Forward and backward over micro-batches by audio seconds."""
    model.train()
    batches = [
        collate([examples[i] for i in members], WrittenIds(), model.count_slots, ("asr",), share=True)
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


def peer(seconds: list[float], examples: list[Example], sizes: Sizes) -> Step:
    """Qwen2-Audio's own forward: features padded to 30 s, text padded on the right, logits and loss as it has them."""
    model = new_peer(sizes.new_encoder(), sizes.new_decoder(), audio_id(sizes))
    extractor = WhisperFeatureExtractor(feature_size=sizes.mel_bins)
    waves = [as_float(example.clips[0]) for example in examples]
    rows = []
    for example, length in zip(examples, seconds, strict=True):
        before, after, answer = ids_of(example)
        audio_ids = [audio_id(sizes)] * round(length * FRAMES_PER_SECOND)
        rows.append(labelled([*before, *audio_ids, *after], answer))
    answer_tokens = sum(int((labels != IGNORED).sum()) for _, labels in rows)

    def step() -> dict[str, float]:
        model.zero_grad(set_to_none=True)
        loss = 0.0
        for members in stock_micro_batches(seconds, PEER_CLIPS):
            mel = extractor(
                [waves[i] for i in members],
                sampling_rate=SAMPLE_RATE,
                return_attention_mask=True,
                padding="max_length",
                return_tensors="pt",
            )
            ids, labels = ([rows[i][part] for i in members] for part in (0, 1))
            padded = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
            mean = model(
                input_ids=pad_sequence(ids, batch_first=True),
                attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
                input_features=mel.input_features,
                feature_attention_mask=mel.attention_mask,
                labels=padded,
                use_cache=False,
            ).loss
            part = mean * int((padded != IGNORED).sum()) / answer_tokens
            part.backward()
            loss += part.item()
        return {"loss": loss, "audio_seconds": sum(seconds)}

    return step


SIDES: tuple[dict[str, Callable[[list[float], list[Example], Sizes], Step]], ...] = (
    {"stock": stock, "ours": ours},
    {"Qwen2-Audio": peer, "ours": ours_at_25},
)
AT_BOTH = ("5", "30", "mix")  # clip lengths that are compared with the peer, too

if __name__ == "__main__":
    main(
        Benchmark(
            name="step",
            title="Training step, forward and backward",
            cases={
                **dict.fromkeys(CASES, tuple(SIDES[0])),
                **dict.fromkeys([case + AT_25 for case in AT_BOTH], tuple(SIDES[1])),
            },
            figures=figures,
            same={"30": tuple(SIDES[0]), "30" + AT_25: tuple(SIDES[1])},
            quick_cases=(*QUICK_CASES, "30" + AT_25),
        )
    )
