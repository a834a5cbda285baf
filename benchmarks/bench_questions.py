"""Several questions about each clip, forward and backward: what is read once for all of them.

    python benchmarks/bench_questions.py [--quick] [--cases CASE ...] [--encoder base] [--decoder 0.6B]
                                         [--out FILE.json]

Clips of 12 s, each with 2, 4 or 8 questions of 20 tokens and answers of 8. All sides have the same weights,
clips and ids, and must give the same loss.

alone        every question encodes its clip and reads it anew
clips once   a clip is encoded once; the decoder reads its audio tokens for every question
ours         the decoder too reads them once

Case ``step`` is the whole step. Cases ``layers`` and ``layers and loss`` begin at the audio tokens, where ``alone`` is
the same as ``clips once``; ``layers`` has a function of the hidden states at the answers as its loss.
"""

from __future__ import annotations

import numpy as np
import torch
from bench_step import WrittenIds, new_adapter
from measure import Benchmark, Run, Step, main, time_steps
from setting import noise

from uniaudio.data.collate import collate
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged
from uniaudio.types import Batch, Example

SECONDS = 12.0
BEFORE, QUESTION, ANSWER = 4, 20, 8  # tokens
ALONE, CLIPS_ONCE, OURS = SIDES = ("alone", "clips once", "ours")
LAYERS, LOSS, STEP = "layers", "layers and loss", "step"
DECODER = [f"{part}, {count} questions" for part in (LAYERS, LOSS) for count in (2, 4, 8)]
WHOLE = f"{STEP}, 4 questions"


def examples_of(clips: int, questions: int, shares_clips: bool, vocabulary: int) -> list[Example]:
    """Return so many questions for every clip, with random ids as their text."""
    generator = np.random.default_rng(0)

    def written(count: int) -> str:
        return " ".join(map(str, generator.integers(vocabulary, size=count)))

    before = written(BEFORE)
    return [
        Example(
            id=f"{number}/{question}",
            task="asked",
            dataset="noise",
            clips=(clip,),
            prompt=(before, written(QUESTION)),
            answer=written(ANSWER),
            shares_clips=shares_clips and question > 0,
        )
        for number, clip in enumerate(noise([SECONDS] * clips))
        for question in range(questions)
    ]


def figures(run: Run) -> dict[str, float]:
    """Time one side's step."""
    part, questions = run.case.split(", ")
    sizes, count = run.sizes, int(questions.split()[0])
    examples = examples_of(1 if run.quick else 4, count, run.side != ALONE, sizes.vocabulary)
    encoder, lm = WhisperAudioEncoder(sizes.new_encoder()), sizes.new_decoder()
    model = AudioLM(encoder, new_adapter(sizes), TextDecoder(lm)).train()
    batch = collate(examples, WrittenIds(), model.count_slots, ("asked",), share=run.side == OURS)
    step = whole_step(model, batch) if part == STEP else decoder_step(model, batch, part == LOSS)
    return {"clips": len(batch.audio), "tokens": len(batch.tokens.values), **time_steps(step, run.steps)}


def whole_step(model: AudioLM, batch: Batch) -> Step:
    """From samples to the gradients of encoder and adapter."""

    def step() -> dict[str, float]:
        model.zero_grad(set_to_none=True)
        loss = model(batch)
        (loss.total / loss.answer_tokens).backward()
        return {"loss": float(loss.total.detach()) / loss.answer_tokens}

    return step


def decoder_step(model: AudioLM, batch: Batch, with_loss: bool) -> Step:
    """From audio tokens to their gradients."""
    generator = torch.Generator().manual_seed(0)
    width = model.decoder.dim
    audio = torch.randn(batch.audio_tokens, width, generator=generator).mul(0.02).requires_grad_()
    probe = torch.randn(width, generator=generator)
    text = model.decoder.embed(batch.tokens.values)

    def step() -> dict[str, float]:
        audio.grad = None
        embeds = text.index_copy(0, batch.audio_positions, audio[batch.audio_index])
        hidden = model.decoder.hidden(Ragged(embeds, batch.tokens.lengths), batch.prefixes)
        answers = hidden[batch.label_positions]
        if with_loss:
            loss = model.decoder.losses(answers, batch.labels, model.label_chunk)[0] / batch.answer_tokens
        else:
            loss = (answers @ probe).square().mean()
        loss.backward()
        return {"loss": loss.item()}

    return step


if __name__ == "__main__":
    cases = {**dict.fromkeys(DECODER, (CLIPS_ONCE, OURS)), WHOLE: SIDES}
    main(
        Benchmark(
            name="questions",
            title="Several questions about each clip of 12 s, forward and backward",
            cases=cases,
            figures=figures,
            same=cases,
            quick_cases=(DECODER[1], WHOLE),
        )
    )
