"""Whether the fast paths compute the same on this device as plain ones: relative errors against float32."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from gpu_models import clips_of, new_engine, new_model, our_batch
from gpu_timing import Setting
from setting import noise
from sizes import QWEN_VOCABULARY, new_qwen3, new_whisper
from torch import Tensor
from torch.nn import functional as F

from uniaudio.model.attention import Segments, packed_attention
from uniaudio.model.cross_entropy import frozen_head_cross_entropy
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged

Row = dict[str, Any]
CLIPS = (1, 3, 5, 10, 10, 12, 15, 30)  # seconds, for attention
WORSE = 1.5  # a fast path in low precision may be so many times further from float32 than the stock one in it
EXACT = 1e-4  # relative error of two ways in float32


class Heads(NamedTuple):
    """Query heads, key heads, width of a head, whether it is causal, and tokens before every second row."""

    queries: int
    keys: int
    width: int
    causal: bool
    prefix: int = 0


HEADS = {
    "encoder": Heads(20, 20, 64, False),
    "decoder": Heads(16, 8, 128, True),
    "full": Heads(16, 8, 128, False),
    "shared prefix": Heads(16, 8, 128, True, 37),
}


def error(one: Tensor, other: Tensor) -> float:
    """Return ``|one - other| / |other|`` in float32; NaN stays NaN."""
    return float((one.float() - other.float()).norm() / other.float().norm())


def largest(errors: Sequence[float]) -> float:
    """Return the largest of some errors; NaN where one is."""
    return float(torch.tensor(errors).max())


def judged(name: str, ours: float, stock: float | None, allowed: float, **more: Any) -> Row:
    """Return a row with a verdict; a NaN fails."""
    row: Row = {"name": name, "error": ours}
    if stock is not None:
        row["stock error"] = stock
    return {**row, **more, "allowed": allowed, "verdict": "same" if ours <= allowed else "DIFFERENT"}


def parity(setting: Setting) -> Iterator[Row]:
    """Yield a row for every fast path."""
    # convolutions would else round float32 to 10 bits on CUDA, and the truth with them
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield from attention_rows(setting)
        yield native_grouped_query(setting)
        yield mel_row(setting)
        yield from encoder_rows(setting)
        yield from decoder_rows(setting)
        yield from cross_entropy_rows(setting)


def lengths_of(setting: Setting) -> list[int]:
    """Return frames of clips at 50 Hz, fewer on a CPU."""
    return [round(seconds * (50 if setting.cuda else 2)) for seconds in CLIPS]


def random_attention(setting: Setting, case: Heads, keys: int) -> tuple[list[Tensor], Tensor]:
    """Return float32 queries, keys and values over packed clips, and a gradient of the result."""
    generator = torch.Generator(setting.device).manual_seed(0)
    queries = sum(lengths_of(setting))
    sizes = ((queries, case.queries), (keys, case.keys), (keys, case.keys), (queries, case.queries))
    *given, gradient = (
        torch.randn(*size, case.width, device=setting.device, generator=generator) for size in sizes
    )
    return given, gradient


def gradients_of(
    function: Callable[..., Tensor], given: Sequence[Tensor], gradient: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Return the result and the gradients of all inputs, computed in ``dtype``."""
    leaves = [x.detach().clone().to(dtype).requires_grad_() for x in given]
    result = function(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, gradient.to(dtype))]


def hidden_from(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return ``[q, k]`` bool: the keys that come after each query, the last query standing at the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attend within one segment by the formula, ``[t, H, d]`` and ``[s, G, d]``."""
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(hidden_from(len(q), len(k), q.device), -torch.inf)
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attend within one segment with torch's kernel, ``[t, H, d]`` and ``[s, G, d]``."""
    mask = ~hidden_from(len(q), len(k), q.device) if causal else None
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return mixed[0].transpose(0, 1)


def attention_rows(setting: Setting) -> Iterator[Row]:
    """Compare packed attention with the formula, forward and gradients, in float32 and in bfloat16."""
    lengths = lengths_of(setting)
    for name, case in HEADS.items():
        seen = [n + case.prefix * (i % 2) for i, n in enumerate(lengths)]
        segments, keys = (Segments.of(rows, setting.device) for rows in (lengths, seen))
        given, gradient = random_attention(setting, case, sum(seen))

        def by_segment(
            way: Callable[..., Tensor], causal: bool = case.causal, seen: list[int] = seen
        ) -> Callable[..., Tensor]:
            def all_segments(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                rows = zip(q.split(lengths), k.split(seen), v.split(seen), strict=True)
                return torch.cat([way(*row, causal) for row in rows])

            return all_segments

        ours = partial(packed_attention, segments=segments, causal=case.causal, key_segments=keys)
        true = gradients_of(by_segment(plain_attention), given, gradient, torch.float32)
        for dtype in (torch.float32, torch.bfloat16):
            ways = (ours, by_segment(sdpa_attention))
            waits, usual = (
                [error(a, b) for a, b in zip(gradients_of(way, given, gradient, dtype), true, strict=True)]
                for way in ways
            )
            label = f"{name} {case.queries}/{case.keys} heads, {str(dtype).removeprefix('torch.')}"
            allowed = EXACT if dtype == torch.float32 else WORSE * largest(usual)
            parts = dict(zip(("forward", "dq", "dk", "dv"), waits, strict=True))
            yield judged(label, largest(waits), largest(usual), allowed, **parts)


def native_grouped_query(setting: Setting) -> Row:
    """Say whether torch's kernel takes fewer key heads than query heads, which would save repeating them."""
    name = "kernel takes grouped queries"
    if not setting.cuda:
        return {"name": name, "verdict": "needs CUDA"}
    from torch.nn.attention.varlen import varlen_attn

    lengths = lengths_of(setting)
    given, _ = random_attention(setting, HEADS["decoder"], sum(lengths))
    q, k, v = (x.bfloat16() for x in given)
    cut = Segments.of(lengths, setting.device)
    rows = zip(*(x.split(lengths) for x in given), strict=True)
    true = torch.cat([plain_attention(one, keys, values, True) for one, keys, values in rows])
    borders = (cut.cu_seqlens, cut.cu_seqlens, cut.longest, cut.longest)
    ways: dict[str, dict[str, Any]] = {"as it is": {}, "with enable_gqa": {"enable_gqa": True}}
    for how, more in ways.items():
        try:
            mixed = varlen_attn(q, k, v, *borders, window_size=(-1, 0), **more)
        except Exception as problem:  # a keyword or a shape that this version does not know
            ways[how] = {"refused": f"{type(problem).__name__}: {problem}".splitlines()[0][:60]}
        else:
            assert isinstance(mixed, Tensor)  # a pair only when the log-sum-exp is asked for
            ways[how] = {"error": error(mixed, true)}
    return {
        "name": name,
        **{how: next(iter(values.values())) for how, values in ways.items()},
        "verdict": "told",
    }


def mel_row(setting: Setting) -> Row:
    """Compare the spectrogram of int16 samples made here with that of the CPU."""
    encoder = WhisperAudioEncoder(new_whisper("miniature"))
    audio = Ragged.from_rows([torch.from_numpy(clip) for clip in noise([0.5, 1.0, 7.3, 30.0])])
    true = encoder.mel(audio).values
    here = encoder.to(setting.device).mel(audio.to(setting.device)).values
    return judged("log-mel from int16, against the CPU", error(here.cpu(), true), None, EXACT)


def encoder_rows(setting: Setting) -> Iterator[Row]:
    """Compare the packed encoder with transformers' at 30 s: frames and the gradient of the first convolution."""
    whisper = new_whisper(setting.encoder, setting.device)
    encoder = WhisperAudioEncoder(whisper).to(setting.device).train()
    seconds = [30.0] * (2 if setting.cuda else 1)
    audio = Ragged.from_rows([torch.from_numpy(clip) for clip in noise(seconds)]).to(setting.device)
    mel = encoder.mel(audio)
    stock_mel = mel.values.view(len(seconds), 3000, -1).transpose(1, 2)
    direction = torch.randn(encoder.dim, generator=torch.Generator().manual_seed(0)).to(setting.device)

    def stock() -> Tensor:
        return whisper(stock_mel).last_hidden_state.flatten(0, 1)

    def ours() -> Tensor:
        return encoder.encode(mel, layers=False)[-1].values

    def both(way: Callable[[], Tensor], dtype: torch.dtype | None) -> list[Tensor]:
        whisper.zero_grad(set_to_none=True)
        with torch.autocast(setting.device.type, dtype, enabled=dtype is not None):
            frames = way()
        (frames.float() @ direction).square().mean().backward()
        assert whisper.conv1.weight.grad is not None
        return [frames.detach(), whisper.conv1.weight.grad.clone()]

    true = both(stock, None)
    for dtype in (None, torch.bfloat16):
        label = "float32" if dtype is None else "bfloat16 autocast"
        waits, usual = (
            [error(a, b) for a, b in zip(both(way, dtype), true, strict=True)] for way in (ours, stock)
        )
        for part, mine, theirs in zip(("frames", "gradient"), waits, usual, strict=True):
            allowed = EXACT if dtype is None else WORSE * theirs
            yield judged(f"encoder {setting.encoder} at 30 s, {part}, {label}", mine, theirs, allowed)


def decoder_rows(setting: Setting) -> Iterator[Row]:
    """Compare packed rows with padded ones in the dtype of a run, both against padded ones in float32."""
    name = setting.decoders[0]
    exact = TextDecoder(new_qwen3(name, setting.device))
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([7, 40, 133, 480] if setting.cuda else [3, 9, 20])
    ids = torch.randint(exact.vocabulary, (int(lengths.sum()),), generator=generator).to(setting.device)
    with torch.no_grad():
        rows = Ragged(exact.embed(ids), lengths)
        true = exact.padded_hidden(rows)
        in_float32 = error(exact.packed_hidden(rows), true)
        rough = TextDecoder(new_qwen3(name, setting.device, torch.bfloat16))
        low = rows.with_values(rows.values.bfloat16())
        packed, padded = (error(way(low), true) for way in (rough.packed_hidden, rough.padded_hidden))
    yield judged(f"decoder {name} packed, float32", in_float32, None, EXACT)
    yield judged(f"decoder {name} packed, bfloat16", packed, padded, WORSE * padded)


def cross_entropy_rows(setting: Setting) -> Iterator[Row]:
    """Compare the loss through the frozen head, and its gradient, with the plain one over all logits."""
    generator = torch.Generator(setting.device).manual_seed(0)
    count, width, vocabulary = (4096, 1024, QWEN_VOCABULARY) if setting.cuda else (64, 32, 1000)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, device=setting.device, generator=generator)

    hidden, weight = drawn(count, width), drawn(vocabulary, width) * 0.05
    labels = torch.randint(vocabulary, (count,), device=setting.device, generator=generator)

    def plain(rows: Tensor) -> Tensor:
        return F.cross_entropy((rows @ weight.to(rows.dtype).t()).float(), labels, reduction="sum")

    def ours(rows: Tensor) -> Tensor:
        return frozen_head_cross_entropy(rows, weight.to(rows.dtype), None, labels, 2048)[0]

    one = torch.ones((), device=setting.device)
    true = gradients_of(plain, [hidden], one, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        waits, usual = (
            [error(a, b) for a, b in zip(gradients_of(way, [hidden], one, dtype), true, strict=True)]
            for way in (ours, plain)
        )
        allowed = EXACT if dtype == torch.float32 else max(WORSE * largest(usual), 1e-3)
        label = f"cross-entropy and gradient, {str(dtype).removeprefix('torch.')}"
        yield judged(label, largest(waits), largest(usual), allowed)


def synchronisations(setting: Setting) -> Iterator[Row]:
    """Count how often a step waits for the device: forward, backward, and clipping with the update."""
    if not setting.cuda:
        yield {"name": "waiting for the device", "verdict": "needs CUDA"}
        return
    model = new_model(setting, setting.decoders[0])
    engine = new_engine(setting, model)
    batch = our_batch(model, clips_of("mix", 60, model.decoder.vocabulary))
    kept: dict[str, Tensor] = {}

    def forward() -> None:
        here = batch.to(setting.device, non_blocking=True)
        kept["loss"] = engine.forward(here).total / batch.answer_tokens

    def backward() -> None:
        engine.backward(kept["loss"])

    def update() -> None:
        engine.step(1.0)

    parts = {"forward, transfer included": (forward, 0), "backward": (backward, 0), "update": (update, 1)}
    for action, _ in parts.values():  # libraries load and caches fill, which waits
        action()
    for name, (action, allowed) in parts.items():
        places = waits(action)
        verdict = "same" if len(places) <= allowed else "WAITS"
        first = f" {places[0]}" if places else ""
        yield {
            "name": f"waits in {name}",
            "waits": len(places),
            "allowed": allowed,
            "verdict": verdict + first,
        }


def waits(action: Callable[[], None]) -> list[str]:
    """Return where an action waited for the device, as file and line."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing" in str(w.message)]
    return [f"{'/'.join(w.filename.split('/')[-2:])}:{w.lineno}" for w in waits]
