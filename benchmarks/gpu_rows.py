"""One technique at a time, off and on: compiled layers, recomputed activations, shared prefixes, FP8, closed sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu_models import Clips, clips_of, new_engine, new_model, our_batch, our_step, padded_mel
from gpu_step import AGREEMENT
from gpu_timing import Setting, fastest, free, peak_gib, settle
from torch import Tensor
from torch._dynamo.utils import counters

from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.compile import compile_layers
from uniaudio.model.decoding import pad_left
from uniaudio.model.fp8 import convert_to_float8
from uniaudio.model.label_likelihoods import label_log_likelihoods
from uniaudio.ragged import Ragged
from uniaudio.types import Batch

Row = dict[str, Any]
QUESTIONS = 4  # about one clip
LABELS, PROMPTS = 50, 64
FEW = 4  # prompts on a CPU
PROMPT_TOKENS = (76, 92)  # five seconds of audio at 12.5 Hz and a question
LABEL_TOKENS = 5  # at most, with the end of turn
END = 1  # the end of turn
STOCK_CLIPS = 32  # of a padded batch


def measured(setting: Setting, model: AudioLM, batch: Batch) -> Row:
    """Time full steps over one micro-batch; the first one, in which layers are compiled, is told apart."""
    free(setting.device)
    step = our_step(new_engine(setting, model), batch, setting.device)
    began = setting.clock.used
    loss, norm = step()
    settle(setting.device)
    first = setting.clock.used - began
    seconds = fastest(step, setting)
    hours = batch.audio_seconds / seconds
    row = {"seconds": seconds, "first": first, "hours": hours, "GiB": peak_gib(setting.device)}
    return {**row, "loss": float(loss), "norm": norm}


def off_and_on(name: str, off: Row, on: Row, exact: bool = True) -> Row:
    """Return one row about both, with how much faster it is when it is on; ``exact`` ones must compute the same."""
    differs = {name: abs(on[name] / off[name] - 1) for name in AGREEMENT}
    row = {
        "name": name,
        "off s": off["seconds"],
        "on s": on["seconds"],
        "times": off["seconds"] / on["seconds"],
        "off GiB": off["GiB"],
        "on GiB": on["GiB"],
        **{f"{name} differs by": value for name, value in differs.items()},
    }
    if exact:
        same = all(differs[name] <= allowed for name, allowed in AGREEMENT.items())
        row["verdict"] = "same" if same else "DIFFERENT"
    return row


def mix(setting: Setting, model: AudioLM, share: float = 1.0) -> Clips:
    """Return the mix of lengths over a share of the budget."""
    return clips_of("mix", setting.budget * share, model.decoder.vocabulary)


def compiled(setting: Setting) -> Iterator[Row]:
    """Yield the step of compiled layers against the plain one for every decoder, and how often torch compiled.

    Batches of other sizes must not be compiled anew.
    """
    for decoder in setting.decoders:
        model = new_model(setting, decoder)
        batch, other = (our_batch(model, mix(setting, model, share)) for share in (1.0, 0.6))
        off = measured(setting, model, batch)
        compile_layers(model, backend_of(setting))
        counters.clear()
        on = measured(setting, model, batch)
        graphs = counters["stats"]["unique_graphs"]
        our_step(new_engine(setting, model), other, setting.device)()
        again = counters["stats"]["unique_graphs"] - graphs
        name = f"{setting.encoder} + {decoder}, mix, compiled"
        yield {
            **off_and_on(name, off, on),
            "decoder": decoder,
            "audio-h/GPU-h": on["hours"],
            "compilation s": on["first"] - on["seconds"],
            "graphs": graphs,
            "more for another size": again,
        }
        del model


def recomputed(setting: Setting) -> Iterator[Row]:
    """Yield the step that keeps activations against the one that makes them again."""
    model = new_model(setting, setting.decoders[0])
    batch = our_batch(model, mix(setting, model))
    off = measured(setting, model, batch)
    model.encoder.recompute()
    model.decoder.recompute()
    yield off_and_on("activations made again", off, measured(setting, model.train(), batch))


def shared_prefixes(setting: Setting) -> Iterator[Row]:
    """Yield several questions about one clip: each with its clip, with the clip encoded once, and read once."""
    model = new_model(setting, setting.decoders[0])
    clips = mix(setting, model, 1 / QUESTIONS)
    alone = make_questions(clips, together=False)
    beside = make_questions(clips, together=True)
    rows = {
        "each with its clip": measured(setting, model, our_batch(model, alone)),
        "clip encoded once": measured(setting, model, our_batch(model, beside)),
        "prefix read once too": measured(setting, model, our_batch(model, beside, share=True)),
    }
    first = rows["each with its clip"]
    for name, row in rows.items():
        figures = off_and_on(f"{QUESTIONS} questions a clip, {name}", first, row)
        yield {**figures, "questions/s": len(alone.examples) / row["seconds"]}


def make_questions(clips: Clips, together: bool) -> Clips:
    """Ask several questions about every clip, the clip being the same one or another one with the same samples."""
    return Clips(
        [
            replace(example, id=f"{example.id}/{i}", shares_clips=together and i > 0)
            for example in clips.examples
            for i in range(QUESTIONS)
        ]
    )


def eight_bits(setting: Setting) -> Iterator[Row]:
    """Yield the step with the frozen decoder in bfloat16 against 8-bit floating point; the last one compiled too."""
    for name in setting.decoders:
        model = new_model(setting, name)
        batch = our_batch(model, mix(setting, model))
        off = measured(setting, model, batch)
        convert_to_float8(model.decoder.lm.base_model)
        on = measured(setting, model, batch)
        yield off_and_on(f"decoder {name} in FP8", off, on, exact=False)
        if name == setting.decoders[-1]:
            compile_layers(model, backend_of(setting))
            yield off_and_on(f"decoder {name} in FP8, compiled", on, measured(setting, model, batch))
        del model


def backend_of(setting: Setting) -> str:
    """Return the compiler; on a CPU it makes graphs, but no kernels."""
    return "inductor" if setting.cuda else "eager"


@torch.no_grad()
def labels(setting: Setting) -> Iterator[Row]:
    """Yield the scoring of all labels of a closed set against generating one answer."""
    decoder = new_model(setting, setting.decoders[0]).decoder
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, LABEL_TOKENS, (LABELS,), generator=generator)
    rows = [torch.randint(2, decoder.vocabulary, (int(n),), generator=generator) for n in lengths]
    ids = Ragged.from_rows([torch.cat([row, row.new_tensor([END])]) for row in rows])
    count = PROMPTS if setting.cuda else FEW
    lengths = torch.randint(*PROMPT_TOKENS, (count,), generator=generator)
    values = torch.randn(int(lengths.sum()), decoder.dim, generator=generator) * 0.02
    prompts = Ragged(values.to(setting.device, setting.weights), lengths)

    def scored() -> Tensor:
        return label_log_likelihoods(decoder, prompts, ids, decoder.packed_hidden)

    def generated() -> Tensor:
        padded, mask = pad_left(prompts)
        return decoder.generate(padded, mask, max_new_tokens=LABEL_TOKENS, do_sample=False, pad_token_id=0)

    off, on = (fastest(action, setting) for action in (generated, scored))
    yield {
        "name": f"{LABELS} labels scored for {count} prompts, against generating {LABEL_TOKENS} tokens",
        "off s": off,
        "on s": on,
        "times": off / on,
    }


@torch.no_grad()
def embeddings(setting: Setting) -> Iterator[Row]:
    """Yield the encoding of clips of one second against clips padded to 30 s."""
    model = new_model(setting, setting.decoders[0]).eval()
    clips = clips_of(1.0, setting.budget, model.decoder.vocabulary)
    audio = our_batch(model, clips).audio
    padded = padded_mel(model, clips.first(STOCK_CLIPS).examples, setting.device)

    def under_autocast(action: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with torch.autocast(
                setting.device.type, setting.precision, enabled=setting.precision is not None
            ):
                return action()

        return run

    ours = under_autocast(lambda: model.encoder(audio.to(setting.device, non_blocking=True)))
    encoder: Any = model.encoder
    stock = under_autocast(lambda: encoder.whisper(padded))
    off = fastest(stock, setting) / len(padded)
    on = fastest(ours, setting) / len(audio)
    yield {"name": "clips of 1 s embedded", "off clips/s": 1 / off, "on clips/s": 1 / on, "times": off / on}
