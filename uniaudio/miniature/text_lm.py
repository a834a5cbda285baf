"""A small Qwen3 trained on text alone, so that a machine without a hub has a decoder to freeze."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from uniaudio.config.run import MiniatureConfig
from uniaudio.data.recipe import Recipe
from uniaudio.data.tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.miniature.lessons import Lesson, LessonBook
from uniaudio.miniature.texts import RecipeText, recipe_texts
from uniaudio.miniature.tokenizer import train_tokenizer

Progress = Callable[[str], None]

LESSONS_VERSION = 1  # part of the cache key: raise it when the training below changes

POSITION_LIMIT = 4096  # positions of the configuration; rotary positions cost nothing


def build_text_lm(settings: MiniatureConfig, vocabulary: int, end: int, pad: int) -> Qwen3ForCausalLM:
    """A Qwen3 of the given sizes with random weights and tied embeddings (about 0.6 M parameters by default).

    Raises:
        UserError: when the width does not divide into the heads, or the heads into the key-value heads.
    """
    if settings.hidden % (2 * settings.heads) or settings.heads % settings.kv_heads:
        raise UserError(
            f"decoder.miniature: hidden ({settings.hidden}) must be an even multiple of heads ({settings.heads}), "
            f"and heads a multiple of kv_heads ({settings.kv_heads})"
        )
    lm = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=settings.hidden,
            intermediate_size=settings.intermediate,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.kv_heads,
            head_dim=settings.hidden // settings.heads,
            max_position_embeddings=POSITION_LIMIT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )
    # Five times the usual size: at 0.02 copying forms later (tied embeddings give too small logits at first).
    torch.nn.init.normal_(lm.get_input_embeddings().weight, std=0.1)
    return lm


def cue_embeddings(lm: Qwen3ForCausalLM, lessons: Sequence[Lesson], generator: torch.Generator) -> Tensor:
    """``[B, T, D]`` embeddings of the lessons, padded at the right; cues carry Gaussian noise.

    The adapter will never hit an embedding exactly, so the language model must not expect it: every cue position is
    moved by noise of up to 0.7 of the typical length of an embedding, and a noise position is noise alone.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([lesson.ids for lesson in lessons], batch_first=True, padding_value=0)
    cue = pad([lesson.cue for lesson in lessons], batch_first=True, padding_value=0.0)
    table = lm.get_input_embeddings()
    embedded = table(ids.clamp(min=0)) * (ids >= 0)[..., None]
    size = table.weight.detach().std()
    strength = 0.7 * torch.rand(len(lessons), 1, generator=generator)
    strength = cue * torch.where(ids < 0, torch.ones_like(cue), strength)
    noise = torch.randn(embedded.shape, generator=generator)
    return embedded + noise * size * strength[..., None]


def answer_losses(lm: Qwen3ForCausalLM, lessons: Sequence[Lesson], embeds: Tensor) -> tuple[Tensor, Tensor]:
    """``(losses [L], right [L])`` at the answer tokens, which are the last ones of every lesson.

    Rows are padded at the right, which causal attention never sees, so no mask is needed.
    """
    hidden = lm.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    rows, columns, labels = [], [], []
    for row, lesson in enumerate(lessons):
        length = len(lesson.ids)
        rows += [row] * lesson.answer
        columns += range(length - lesson.answer - 1, length - 1)
        labels.append(lesson.ids[length - lesson.answer :])
    logits = lm.lm_head(hidden[rows, columns])
    target = torch.cat(labels)
    return F.cross_entropy(logits, target, reduction="none"), logits.argmax(-1) == target


def build_optimizers(lm: Qwen3ForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon at ``10 * lr`` for the weight matrices, AdamW at ``lr`` for embeddings and norms.

    With AdamW alone copying from a cue does not form within the few hundred steps that we can wait for (measured:
    10 % of plainly copied tokens right after 300 steps, 35 % after 150 with Muon).
    """
    embeddings = lm.get_input_embeddings().weight
    matrices = [p for p in lm.parameters() if p.dim() == 2 and p is not embeddings]
    others = [p for p in lm.parameters() if p.dim() != 2 or p is embeddings]
    return [
        torch.optim.Muon(matrices, lr=10 * lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak: linear warm-up over the first 5 %, then linear down to 2 %."""
    warmup = max(1, steps // 20)
    return min((step + 1) / warmup, 0.02 + 0.98 * (1 - step / steps))


def fit(lm: Qwen3ForCausalLM, book: LessonBook, settings: MiniatureConfig, progress: Progress | None) -> None:
    """Train in place on freshly drawn lessons, one optimizer step each ``settings.batch`` of them."""
    optimizers = build_optimizers(lm, settings.lr)
    generator = torch.Generator().manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    started = time.monotonic()
    schedules = [LambdaLR(each, lambda step: learning_rate(step, settings.steps)) for each in optimizers]
    lm.train()
    for step, lessons in enumerate(book.batches(rng, settings.batch, settings.steps)):
        losses, right = answer_losses(lm, lessons, cue_embeddings(lm, lessons, generator))
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if progress and (step % 100 == 99 or step + 1 == settings.steps):
            progress(
                f"text model: step {step + 1} of {settings.steps}, loss {losses.mean().item():.3f}, "
                f"answer tokens right {right.float().mean().item():.3f}, {time.monotonic() - started:.0f} s"
            )


@torch.no_grad()
def reading_accuracy(lm: Qwen3ForCausalLM, lessons: Sequence[Lesson], seed: int = 0) -> float:
    """Share of the answer tokens that the model predicts right (given the ones before) from noisy cues."""
    lm.eval()
    generator = torch.Generator().manual_seed(seed)
    right = [
        answer_losses(lm, lessons[i : i + 32], cue_embeddings(lm, lessons[i : i + 32], generator))[1]
        for i in range(0, len(lessons), 32)
    ]
    return torch.cat(right).float().mean().item()


def train_text_lm(
    texts: Sequence[RecipeText], settings: MiniatureConfig, out_dir: Path, progress: Progress | None = None
) -> Path:
    """Train tokenizer and language model on texts alone and save both like any model of ``transformers``.

    ``training.json`` in the folder holds the token accuracy with a cue, for the answers of the recipe
    (``accuracy_known``) and for word strings it was never trained on (``accuracy_unseen``), and without one
    (``accuracy_no_cue``, what the question alone gives away).

    Returns:
        ``out_dir``, which appears only when everything is in it.

    Raises:
        UserError: when there are no texts, the sizes do not fit, or ``extra_texts`` does not exist.
    """
    if not texts:
        raise UserError(
            "a miniature decoder needs texts, but no row of the recipe's train entries could be read"
        )
    extra = read_extra_texts(settings)
    tokenizer = train_tokenizer(
        [*(piece for text in texts for piece in text.pieces), *(text.answer for text in texts), *extra],
        settings.vocabulary,
    )
    format = ChatFormat(tokenizer)
    book = LessonBook(texts, extra, format, seed=settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        lm = build_text_lm(settings, len(tokenizer), format.end_of_turn, format.pad)
        started = time.monotonic()
        fit(lm, book, settings, progress)
    facts = {
        "texts": len(texts),
        "seconds": round(time.monotonic() - started, 1),
        "accuracy_known": reading_accuracy(lm, book.held_out("known")),
        "accuracy_unseen": reading_accuracy(lm, book.held_out("unseen")),
        "accuracy_no_cue": reading_accuracy(lm, book.held_out("empty")),
    }
    if progress:
        progress(
            f"text model: answer tokens right with a cue {facts['accuracy_known']:.3f}, "
            f"on unseen strings {facts['accuracy_unseen']:.3f}, without a cue {facts['accuracy_no_cue']:.3f}"
        )
    return save(lm, tokenizer, facts, out_dir)


def save(
    lm: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: dict[str, float], out_dir: Path
) -> Path:
    """Write model, tokenizer and ``training.json`` beside ``out_dir`` and rename, so it is never half there."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    lm.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    (unfinished / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    if out_dir.exists():
        shutil.rmtree(out_dir)
    unfinished.rename(out_dir)
    return out_dir


def read_extra_texts(settings: MiniatureConfig) -> list[str]:
    """The non-empty lines of ``extra_texts``, or nothing."""
    if settings.extra_texts is None:
        return []
    path = Path(settings.extra_texts)
    if not path.is_file():
        raise UserError(f"decoder.miniature.extra_texts: there is no file {path}")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def cache_root() -> Path:
    """Where miniature decoders are kept: ``$UNIAUDIO_CACHE``, else ``$XDG_CACHE_HOME/uniaudio``."""
    own = os.environ.get("UNIAUDIO_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uniaudio"


def miniature_decoder(
    settings: MiniatureConfig, recipes: Sequence[Recipe], progress: Progress | None = print
) -> Path:
    """The folder of the decoder for these settings and recipes; trained on the first call, found on the next.

    The folder's name is a hash of settings and texts, so a changed recipe never meets an old decoder. Call it on one
    process first: the others then only find it.
    """
    texts = list(dict.fromkeys(text for recipe in recipes for text in recipe_texts(recipe)))
    content = json.dumps(
        [
            LESSONS_VERSION,
            transformers.__version__,
            settings.model_dump(mode="json"),
            read_extra_texts(settings),
            [[text.task, text.pieces, text.answer] for text in texts],
        ]
    )
    folder = cache_root() / "miniature" / hashlib.sha256(content.encode()).hexdigest()[:16]
    if (folder / "training.json").is_file():
        return folder
    return train_text_lm(texts, settings, folder, progress)
