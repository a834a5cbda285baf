"""A folder that transformers loads: weights, configuration, code that needs nothing of this package, a model card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio import __version__
from uniaudio.export.describe import describe_encoder, find_parts
from uniaudio.export.hub_config import UniaudioConfig
from uniaudio.export.source_code import flatten_modules, flatten_name
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.outputs import apply_umask
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

CONFIG, MODEL = "configuration_uniaudio", "modeling_uniaudio"
CLASSIFIER = "UniaudioForAudioClassification"
HEADER = f"# Written by uniaudio {__version__} from its own source. License: Apache-2.0.\n"
NO_PARTS = "PARTS: Mapping[str, type[nn.Module]] = {}"  # the line of hub_model.py that is filled in
STOCK = "whisper_encoder"  # subfolder with a plain Whisper encoder as the stock class reads it
TRIAL = (16_000, 7_777, 23_456)  # samples of the clips on which model and encoder are compared
NOISE = 3000  # standard deviation of those clips, of 32768


def write_hf(encoder: AudioEncoder, folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write an encoder, its low-rank updates merged, so that ``AutoModel.from_pretrained`` loads it.

    ``AutoModel`` runs the code in the folder, so it wants ``trust_remote_code=True``. A plain Whisper encoder is stored
    a second time under ``whisper_encoder/``, which the stock ``WhisperEncoder.from_pretrained`` reads without any code.

    Raises:
        UserError: when the encoder holds code of others, see ``describe_encoder``.
    """
    described = describe_encoder(encoder)
    folder.mkdir(parents=True, exist_ok=True)
    config = UniaudioConfig(
        encoder=described,
        hidden_size=encoder.dim,
        frame_rate=encoder.frame_rate,
        hidden_sizes=encoder.layer_dims,
        reach=encoder.reach,
        sampling_rate=SAMPLE_RATE,
        provenance=dict(provenance),
        architectures=["UniaudioModel"],
        auto_map={
            "AutoConfig": f"{CONFIG}.UniaudioConfig",
            "AutoModel": f"{MODEL}.UniaudioModel",
            "AutoModelForAudioClassification": f"{MODEL}.{CLASSIFIER}",
        },
        dtype="float32",
    )
    config.to_json_file(folder / "config.json")
    tensors = {f"encoder.{name}": detach_tensor(tensor) for name, tensor in encoder.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE, do_normalize=False, return_attention_mask=True
    )
    extractor.save_pretrained(folder)
    for name, text in collect_code(find_parts(described)).items():
        (folder / name).write_text(text, encoding="utf-8")
    if type(encoder) is WhisperAudioEncoder and isinstance(encoder.whisper, WhisperEncoder):
        write_stock_whisper(encoder, folder / STOCK)
    apply_umask(folder)


def detach_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor as it can be stored: on the CPU, whole, with memory of its own."""
    return tensor.detach().cpu().contiguous().clone()


def collect_code(
    parts: set[str],
    root: str = "uniaudio.export.hub_model",
    names: Sequence[str] = ("UniaudioModel", CLASSIFIER),
) -> dict[str, str]:
    """Return the Python files, by name, of a model made of these classes.

    Args:
        root: the module that transformers loads, with a table ``PARTS`` to be filled in. names: its classes.

    transformers 4 copies next to the modelling file only what that file itself imports, not what its imports import.
    So the modelling file names every other file, for the eyes of transformers alone: nothing is imported twice.
    transformers 5 keeps one model class for every configuration class, and tells those of local folders apart by the
    folder's last name and the text of the configuration file alone; so that file carries a hash of all the code.
    """
    roots: dict[str, set[str]] = {root: {*names}}
    imports, lines = [], []
    for part in sorted(parts):
        module, _, name = part.partition(":")
        roots.setdefault(module, set()).add(name)
        imports.append(f"from .{flatten_name(module)} import {name}")
        lines.append(f'    "{part}": {name},')
    files = flatten_modules(roots, HEADER)
    modeling = f"{flatten_name(root)}.py"
    others = [f"    from .{name.removesuffix('.py')} import *" for name in sorted(files) if name != modeling]
    imports += [
        "from typing import TYPE_CHECKING",
        "",
        "if TYPE_CHECKING:  # all files, so that all are copied",
        *others,
    ]
    table = "\n".join([*imports, "", "PARTS = {", *lines, "}"])
    files[modeling] = files[modeling].replace(NO_PARTS, table)
    configuration = next(name for name in files if name.startswith("configuration_"))
    code = "".join(files[name] for name in sorted(files))
    files[configuration] += f"\n# of the model code {hashlib.sha256(code.encode()).hexdigest()[:16]}\n"
    return files


def write_stock_whisper(encoder: WhisperAudioEncoder, folder: Path) -> None:
    """Write the encoder alone for ``transformers``' own ``WhisperEncoder``, with the extractor that it needs."""
    encoder.whisper.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=encoder.whisper.config.num_mel_bins).save_pretrained(folder)


def make_noise(lengths: Sequence[int]) -> Ragged:
    """Return clips of int16 noise, a function of the lengths."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return Ragged.from_rows([(torch.randn(n, generator=generator) * NOISE).to(torch.int16) for n in lengths])


@torch.no_grad()
def verify_hf(encoder: AudioEncoder, folder: Path) -> None:
    """Load what was written and compare its frames with the encoder's on clips of noise, bit by bit.

    Raises:
        RuntimeError: when a value differs, which is a fault of the export.
    """
    loaded = AutoModel.from_pretrained(folder, trust_remote_code=True)
    encoder = encoder.cpu().eval()
    audio = make_noise(TRIAL)
    samples, mask = audio.pad()
    output = loaded.eval()(samples, attention_mask=mask)
    for row, expected in enumerate(encoder(audio).frames.rows()):
        if not torch.equal(output.last_hidden_state[row, : len(expected)], expected):
            raise RuntimeError(f"{folder}: the frames of the exported model differ from those of the encoder")
