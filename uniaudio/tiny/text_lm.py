"""A small Qwen3 with its byte-level BPE tokenizer, trained on the texts of a recipe: a decoder without a hub."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from uniaudio.config.decoder import MiniatureConfig
from uniaudio.config.path_variables import CACHE_VARIABLE, get_cache_root
from uniaudio.config.text_files import read_text_file
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import Recipe
from uniaudio.errors import RowError, UserError
from uniaudio.outputs import apply_umask, check_output_folder
from uniaudio.tiny.curriculum import Curriculum
from uniaudio.tiny.pretrain import Progress, fit, measure_reading_accuracy, use_one_thread
from uniaudio.tiny.recipe_texts import RecipeText, collect_recipe_texts, list_text_pieces

TRAINING_VERSION = 3  # part of the cache key: raise it when the training below changes

FACTS = "training.json"  # in the folder of a decoder: how its training went
POSITION_LIMIT = 4096  # positions of the configuration; rotary positions cost nothing
END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

SMALL_VOCABULARY = 512  # of the tokenizer that stands for a decoder's where token counts are estimated
SMALLEST_VOCABULARY = 256 + 3  # all bytes and the three special tokens

# Qwen's pre-tokenization: contractions, words with their leading space, single digits, punctuation, white
# space.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a ChatML template; any text at all can be encoded with it.

    Args:
        texts: what the merges are learned from. The words of the chat template are added.
        vocabulary: most pieces to have, special tokens included; few texts give fewer pieces.

    Raises:
        UserError: when ``vocabulary`` has no room for the 256 bytes and the three special tokens.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise UserError(
            f"decoder.miniature.vocabulary is {vocabulary}, but a byte-level tokenizer needs at least "
            f"{SMALLEST_VOCABULARY}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "user\nassistant\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def make_small_format(recipe: Recipe) -> ChatFormat:
    """Return the prompts of a small tokenizer trained on texts of a recipe: for counts of tokens without a decoder."""
    pieces = list_text_pieces(collect_recipe_texts(recipe, limit=200))
    return ChatFormat(train_tokenizer(pieces, SMALL_VOCABULARY))


def make_qwen_config(settings: MiniatureConfig, vocabulary: int, end: int, pad: int) -> Qwen3Config:
    """Return the architecture of a miniature decoder."""
    return Qwen3Config(
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


def build_text_lm(settings: MiniatureConfig, vocabulary: int, end: int, pad: int) -> Qwen3ForCausalLM:
    """A Qwen3 of the given sizes with random weights and tied embeddings (about 0.6 M parameters by default).

    Raises:
        UserError: when the width does not divide into the heads, or the heads into the key-value heads.
    """
    if settings.hidden % (2 * settings.heads) or settings.heads % settings.kv_heads:
        raise UserError(
            f"decoder.miniature: hidden ({settings.hidden}) must be an even multiple of heads "
            f"({settings.heads}), and heads a multiple of kv_heads ({settings.kv_heads})"
        )
    lm = Qwen3ForCausalLM(make_qwen_config(settings, vocabulary, end, pad))
    # Five times the usual size: at 0.02 copying forms later (tied embeddings give too small logits at first).
    torch.nn.init.normal_(lm.get_input_embeddings().weight, std=0.1)
    return lm


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
    require_texts(texts)
    extra = read_extra_texts(settings)
    tokenizer = train_tokenizer([*list_text_pieces(texts), *extra], settings.vocabulary)
    format = ChatFormat(tokenizer)
    texts = [text for text in texts if can_encode(format, text.pieces, text.answer)]
    extra = [line for line in extra if can_encode(format, (), line)]
    require_texts(texts)
    book = Curriculum(texts, extra, format, seed=settings.seed)
    with torch.random.fork_rng(devices=[]), use_one_thread():
        torch.manual_seed(settings.seed)
        lm = build_text_lm(settings, len(tokenizer), format.end_of_turn, format.pad)
        started = time.monotonic()
        fit(lm, book, settings, progress)
        facts = {
            "texts": len(texts),
            "seconds": round(time.monotonic() - started, 1),
            "accuracy_known": measure_reading_accuracy(lm, book.list_held_out("known")),
            "accuracy_unseen": measure_reading_accuracy(lm, book.list_held_out("unseen")),
            "accuracy_no_cue": measure_reading_accuracy(lm, book.list_held_out("empty")),
        }
    if progress:
        progress(
            f"text model: correct answer tokens with a text cue {facts['accuracy_known']:.3f}, "
            f"on unseen strings {facts['accuracy_unseen']:.3f}, without a text cue {facts['accuracy_no_cue']:.3f}"
        )
    return save(lm, tokenizer, facts, out_dir)


def require_texts(texts: Sequence[RecipeText]) -> None:
    """Refuse to train on nothing.

    Raises:
        UserError: when there are no texts.
    """
    if not texts:
        raise UserError(
            "a miniature decoder needs texts, but no row of the recipe's train entries could be read"
        )


def can_encode(format: ChatFormat, pieces: Sequence[str], answer: str) -> bool:
    """Return whether texts can be used: what is too long or holds markup of the chat is skipped in training, too."""
    try:
        format.answer(answer)
        if pieces:
            format.encode_prompt(pieces)
    except RowError:
        return False
    return True


def save(
    lm: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: dict[str, float], out_dir: Path
) -> Path:
    """Write model, tokenizer and ``training.json`` under a temporary name and rename."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    lm.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    (unfinished / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    apply_umask(unfinished)
    if not (out_dir / FACTS).is_file():
        shutil.rmtree(out_dir, ignore_errors=True)
    try:
        unfinished.rename(out_dir)
    except OSError:  # another run was faster, and may be reading its own
        shutil.rmtree(unfinished)
    return out_dir


def read_extra_texts(settings: MiniatureConfig) -> list[str]:
    """The non-empty lines of ``extra_texts``, or nothing."""
    if settings.extra_texts is None:
        return []
    path = Path(settings.extra_texts)
    if not path.is_file():
        raise UserError(f"decoder.miniature.extra_texts: there is no file {path}")
    return [line.strip() for line in read_text_file(path).split("\n") if line.strip()]


def build_miniature_decoder(
    settings: MiniatureConfig, recipes: Sequence[Recipe], progress: Progress | None = print
) -> Path:
    """The folder of the decoder for these settings and recipes; trained on the first call, found on the next.

    The folder's name is a hash of settings and texts, so a changed recipe never meets an old decoder. Call it
    on one process first: the others then only find it.
    """
    texts = list(dict.fromkeys(text for recipe in recipes for text in collect_recipe_texts(recipe)))
    content = json.dumps(
        [
            TRAINING_VERSION,
            transformers.__version__,
            settings.model_dump(mode="json"),
            read_extra_texts(settings),
            [[text.task, text.pieces, text.answer] for text in texts],
        ]
    )
    folder = get_cache_root() / "miniature" / hashlib.sha256(content.encode()).hexdigest()[:16]
    if (folder / FACTS).is_file():
        return folder
    check_output_folder(folder.parent, CACHE_VARIABLE)  # before minutes of training
    return train_text_lm(texts, settings, folder, progress)
