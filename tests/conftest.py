"""Tiny models, tokenizers and corpora that several test files share; nothing here needs a network."""

import atexit
import importlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hypothesis import settings
from jaxtyping import install_import_hook
from local_hub.clients import connect_clients
from local_hub.server import LocalHub
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

# the shapes in the annotations of the tensor functions are checked in every test, and nowhere else
with install_import_hook(["uniaudio.model"], "shape_checker.check"):
    import uniaudio.model.audio_lm
    import uniaudio.model.encoders.whisper  # noqa: F401

from uniaudio.config.path_variables import CACHE_VARIABLE, REAL_FOLDERS, real_root
from uniaudio.config.strict_yaml import dump_yaml

# recordings that lie beside the checkout are used without being named, also by the processes that tests start
RECORDINGS = Path(__file__).parents[2] / "shared" / "realdata"
if RECORDINGS.is_dir():
    os.environ.setdefault("UNIAUDIO_REALDATA", str(RECORDINGS))

# what is computed once is kept for one run of the tests: nothing that an earlier version stored is read. The workers of
# pytest-xdist, and the processes that tests start, have it from the process that starts them
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ[CACHE_VARIABLE] = tempfile.mkdtemp(prefix="uniaudio-tests-")
    atexit.register(shutil.rmtree, os.environ[CACHE_VARIABLE], ignore_errors=True)

# a first call may import or compile, and other tests run beside it
settings.register_profile("uniaudio", deadline=None)
settings.load_profile("uniaudio")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "<audio>Which tone is it?",
    "low",
    "high",
    "Name the tone.",
    "user assistant",
    "abcdefghijklmnopqrstuvwxyz",
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the workers of pytest-xdist begin with the files whose tests are slow, so that none is alone at the end."""
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name long bytes by their length: compressed ones hold the time, and the workers must collect equal names."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) and len(val) > 40 else None


@pytest.fixture(autouse=True)
def runs_made_here(tmp_path, monkeypatch):
    """Let tests remember the runs that they make, and what these were allowed, in a place of their own."""
    monkeypatch.setattr("uniaudio.config.trust.get_cache_root", lambda: tmp_path / "cache-of-runs")


@pytest.fixture
def fresh_accelerate():
    """Let accelerate forget its state after a test that trained in this process."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


COPIES = "transformers_modules"  # the package that transformers makes of the code of model folders


@pytest.fixture
def fresh_model_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Let transformers copy the code of model folders to a place of the test's own, and forget it afterwards."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == COPIES]:
            del sys.modules[name]
        importlib.invalidate_caches()

    forget()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    # transformers appends its place and leaves it there, so those of earlier tests would be found first
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / COPIES).is_dir()])
    yield
    forget()


def require_folder(name: str, root: Path | None) -> Path:
    """Return a folder of ``REAL_FOLDERS``, or skip the test and say which variable names it."""
    if root is None:
        variable, content = REAL_FOLDERS[name]
        pytest.skip(f"no folder of {content}: set {variable} to run this test")
    return root


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real recordings and weights; tests that use it carry the marker ``realdata``."""
    return require_folder("realdata", real_root("realdata"))


@pytest.fixture(scope="session")
def realaudio() -> Path:
    """The folder of labelled audio sets; tests that use it carry the marker ``realaudio``."""
    return require_folder("realaudio", real_root("realaudio"))


@pytest.fixture(scope="session")
def realmodels() -> Path:
    """The folder of pretrained models; tests that use it carry the marker ``realmodels``."""
    return require_folder("realmodels", real_root("realmodels"))


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML markup, as Qwen has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


def tiny_whisper(seed: int = 0, inner: int = 128) -> WhisperEncoder:
    """A random Whisper encoder: width 64, two layers of ``inner`` inside, reach 30 s."""
    torch.manual_seed(seed)
    config = WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=inner, num_mel_bins=80
    )
    config._attn_implementation = "sdpa"
    return WhisperEncoder(config).eval()


def tiny_qwen(
    vocabulary: int = 420, seed: int = 0, layers: int = 2, rope_theta: float = 10_000.0
) -> Qwen3ForCausalLM:
    """A random Qwen3: width 64, grouped-query attention."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
    )
    return Qwen3ForCausalLM(config)


@pytest.fixture
def whisper() -> WhisperEncoder:
    return tiny_whisper()


@pytest.fixture
def qwen() -> Qwen3ForCausalLM:
    return tiny_qwen()


def tone(seconds: float, hertz: float, seed: int) -> np.ndarray:
    """A noisy sine, int16 at 16 kHz."""
    time = np.arange(round(seconds * 16000)) / 16000
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (8000 * np.sin(2 * np.pi * hertz * time) + 300 * noise).astype(np.int16)


@pytest.fixture
def tone_run(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with everything a run needs: corpus, template, card, recipe, config, encoder and decoder.

    Returns:
        The run config. Its task: is a tone low or high?
    """
    clips = tmp_path / "tones"
    clips.mkdir()
    rows = []
    for index in range(40):
        label = "low" if index % 2 else "high"
        seconds = 0.3 + 0.05 * (index % 9)
        soundfile.write(clips / f"{index}.wav", tone(seconds, 200 if index % 2 else 2000, index), 16000)
        split = "train" if index < 30 else "test"
        rows.append({"audio": f"{index}.wav", "label": label, "split": split})
    (clips / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_whisper().save_pretrained(tmp_path / "whisper")
    tiny_qwen(len(chat_tokenizer)).save_pretrained(tmp_path / "qwen")
    chat_tokenizer.save_pretrained(tmp_path / "qwen")
    files = {
        "tone.yaml": {
            "task": "tone",
            "domain": "sound",
            "inputs": ["label"],
            "labels": ["low", "high"],
            "prompts": ["<audio>Which tone is it?", "Name the tone.<audio>"],
            "target": "{{ label }}",
        },
        "tones.yaml": {
            "dataset": "tones",
            "load": {"jsonl": "tones"},
            "license": "CC0-1.0",
            "splits": {"train": {"keep": "split == 'train'"}, "test": {"keep": "split == 'test'"}},
        },
        "tone_recipe.yaml": {
            "recipe": "tone_recipe",
            "train": [{"dataset": "tones", "template": "tone"}],
            "evaluate": [{"dataset": "tones", "template": "tone"}],
        },
        "run.yaml": {
            "output_dir": str(tmp_path / "out"),
            "encoders": {"whisper": {"path": "whisper", "lr": 1e-3}},
            "adapter": {"lr": 1e-3},
            "decoder": {"path": "qwen"},
            "data": {"workers": 0, "pool": 16, "log_ids": True},
            "train": {"micro_batches": 2, "log_every": 1, "save_every": 4, "tensorboard": False},
            "stages": [
                {
                    "name": "one",
                    "recipe": "tone_recipe",
                    "steps": 8,
                    "warmup": 2,
                    "budget": {"audio_seconds": 6},
                }
            ],
        },
    }
    for name, content in files.items():
        (tmp_path / name).write_text(dump_yaml(content))
    return tmp_path / "run.yaml"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub on this machine over ``tmp_path/hub``, and the only place that this process can reach.

    Users with the token ``hf_me`` are ``me``; ``connect_clients`` sets a token for what follows.
    """
    (tmp_path / "hub").mkdir()
    with LocalHub(tmp_path / "hub", tokens={"hf_me": "me"}) as serving:
        connect_clients(monkeypatch, serving, tmp_path / "hf")
        yield serving
