"""Exported folders in transformers, in a process that cannot import this package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_whisper
from helpers.checkpoints import MINIATURES, save_miniature
from helpers.files import assert_same_files
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.models.audio_spectrogram_transformer import modeling_audio_spectrogram_transformer
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.build.fusion import fuse
from uniaudio.commands.export import SUITE_FOLDER, write_suite_file
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.fusion import FusionConfig
from uniaudio.data.audio import decode
from uniaudio.errors import UserError
from uniaudio.export.hf import make_noise, verify_hf, write_hf
from uniaudio.model.encoders.ast import AstAudioEncoder
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.lora import add_lora, merge_lora
from uniaudio.model.rebuild import rebuild
from uniaudio.ragged import Ragged

FRESH = Path(__file__).parent.parent / "exported_in_a_fresh_process.py"
ENTRY = Path(__file__).parent.parent / "entry_in_a_fresh_process.py"
LENGTHS = (16_000, 7_777, 23_456)
HEARS_OTHER_RATES = (
    "clap",
    "clap, fused",
    "encodec",
    "mimi",
    "pe_audio",
)  # these resample, so their code imports soxr
FUSIONS = {
    "concat": {"kind": "concat", "start": "random"},
    "sum": {"kind": "sum", "start": "random"},
    "mix": {"kind": "mix", "start": "random", "align": "linear"},
    "gate": {"kind": "gate"},
    "gate with stft": {"kind": "gate", "stft": {"mels": 16}, "start": "pca"},
    "moe": {"kind": "moe_concat", "experts": 4},
    "moe_proj": {"kind": "moe_proj", "experts": 4},
    "injection": {"kind": "explicit"},
    "wq": {"kind": "wq", "heads": 2, "head_dim": 8},
    "wq, both": {"kind": "wq", "heads": 2, "head_dim": 8, "output": "both"},
    "unimoe": {"kind": "unimoe", "experts": 4},
    "layers": {"kind": "layers"},
    "hconv": {"kind": "hconv"},
    "chconv": {"kind": "chconv"},
    "mowe": {"kind": "mowe", "start": "pca"},
    "mowe, prompts": {"kind": "mowe", "per_frame": True, "weak_dim": 16, "reads_prompt": True},
}


def load(folder: Path) -> AudioEncoder:
    return load_audio_encoder(EncoderConfig(path=str(folder)), "test").eval()


def single(kind: str, tmp_path: Path) -> AudioEncoder:
    save_miniature(kind, tmp_path / f"{kind} weights")
    return load(tmp_path / f"{kind} weights")


def fused(settings: dict, tmp_path: Path, prompt_dim: int = 12) -> AudioEncoder:
    """Whisper with WavLM and an AST, every weight away from its start."""
    config = TypeAdapter(FusionConfig).validate_python(settings)
    parts = {name: single(name, tmp_path) for name in ("whisper", "wavlm", "ast")}
    torch.manual_seed(0)
    encoder = fuse(config, parts, prompt_dim=prompt_dim)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder.eval()


@torch.no_grad()
def export(encoder: AudioEncoder, folder: Path) -> Path:
    """Export, and store clips, frames and means beside the folder."""
    audio = make_noise(LENGTHS)
    frames = encoder(audio).frames
    wanted = {f"clip{i}": clip.clone() for i, clip in enumerate(audio.rows())}
    wanted |= {f"frames{i}": row.clone() for i, row in enumerate(frames.rows())}
    save_file({**wanted, "pooled": frames.mean()}, folder.parent / f"{folder.name}.safetensors")
    write_hf(encoder, folder, {"name": "test"})
    return folder


def loaded_elsewhere(
    folders: list[Path], tmp_path: Path, *options: str, python: str = sys.executable
) -> dict:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    # with AMX, oneDNN computes bfloat16 convolutions of 8 or 16 channels wrongly, which miniatures have
    environment["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"
    command = [python, str(FRESH), *map(str, folders), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_equal(results: dict, encoders: dict[str, AudioEncoder], most: float = 0.0) -> None:
    """Frames and means are at most ``most`` away from those of the encoder."""
    assert set(results) == set(encoders)
    for name, result in results.items():
        assert result["difference"] <= most, (name, result["difference"])
        assert result["int16 equal"], name
        assert result["padding is zero"], name
        assert 0 < result["bfloat16 away"] < 0.1, name  # not equal: the weights really are bfloat16
        assert result["rate"] == encoders[name].frame_rate
        assert result["dim"] == encoders[name].dim
        assert result["frames of a second"] == encoders[name].num_frames(16_000)


def test_whisper_a_fusion_and_a_mixture_of_encoders_without_this_package(tmp_path):
    encoders = {"whisper": single("whisper", tmp_path)}
    encoders |= {name: fused(FUSIONS[name], tmp_path) for name in ("gate with stft", "mowe")}
    folders = [export(encoder, tmp_path / name) for name, encoder in encoders.items()]
    assert_equal(loaded_elsewhere(folders, tmp_path), encoders)


@pytest.mark.slow
def test_every_family_without_this_package(tmp_path):
    for names, options in (
        ([kind for kind in MINIATURES if kind not in HEARS_OTHER_RATES], ()),
        (list(HEARS_OTHER_RATES), ("--with-soxr",)),
    ):
        encoders = {name: single(name, tmp_path) for name in names}
        folders = [export(encoder, tmp_path / name) for name, encoder in encoders.items()]
        assert_equal(loaded_elsewhere(folders, tmp_path, *options), encoders)


@pytest.mark.slow
def test_every_operator_without_this_package(tmp_path):
    encoders = {name: fused(settings, tmp_path) for name, settings in FUSIONS.items()}
    folders = [export(encoder, tmp_path / name) for name, encoder in encoders.items()]
    assert_equal(loaded_elsewhere(folders, tmp_path), encoders)


@pytest.mark.transformers4
def test_every_operator_under_transformers_4(tmp_path, transformers_4):
    encoders = {name: fused(settings, tmp_path) for name, settings in FUSIONS.items()}
    folders = [export(encoder, tmp_path / name) for name, encoder in encoders.items()]
    assert_equal(loaded_elsewhere(folders, tmp_path, python=transformers_4), encoders)


# families that transformers 4.57 does not have as transformers 5 has them
LATER = {
    *(
        "audioflamingo3",
        "gemma3n",
        "gemma4",
        "glmasr",
        "granite_speech",
        "granite_speech_plus",
        "lasr",
        "mimi",
    ),
    *("moonshine_streaming", "parakeet", "pe_audio", "qwen3_asr"),
}


@pytest.mark.transformers4
def test_every_family_under_transformers_4_is_the_same_or_refused_in_a_sentence(tmp_path, transformers_4):
    encoders = {name: single(name, tmp_path) for name in MINIATURES}
    folders = [export(encoder, tmp_path / name) for name, encoder in encoders.items()]
    results = loaded_elsewhere(folders, tmp_path, "--with-soxr", "--refusals", python=transformers_4)
    refused = {name: said for name, said in results.items() if isinstance(said, str)}
    assert {*refused} == LATER
    newer = r"transformers 4\.\S+( has (no|an older) \w+)?; install a newer release$"
    assert all(re.search(rf"{newer}|transformers 4\.\S+ needs librosa$", said) for said in refused.values())
    # w2v-BERT and the towers of SeamlessM4T compute their attention step by step there
    loaded = {name: encoder for name, encoder in encoders.items() if name not in refused}
    assert_equal({name: results[name] for name in loaded}, loaded, most=2e-6)


@pytest.mark.transformers4
def test_an_entry_of_the_challenge_under_transformers_4(tmp_path, transformers_4):
    encoder = fused(FUSIONS["mowe"], tmp_path)
    (tmp_path / "entry").mkdir()
    export(encoder, tmp_path / "entry" / SUITE_FOLDER)
    write_suite_file(tmp_path / "entry", "xares-llm")
    command = [transformers_4, str(ENTRY), str(tmp_path / "entry")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["difference"] == 0.0
    assert result["same after loading"]
    assert result["frames"] == [encoder.num_frames(n) for n in LENGTHS]
    assert result["mask"] == "torch.int64"
    assert not result["training"]  # after the suite's trainer said train()


def test_it_is_loaded_inside_another_model_that_is_being_loaded(tmp_path, monkeypatch):
    """transformers 4 makes no difference then between the two: all tensors are on the device ``meta``, where the values
    of the outer model's file come to them later. transformers 5 refuses such loading itself.
    """
    encoder = single("whisper", tmp_path)
    write_hf(encoder, tmp_path / "out", {})
    load_outside = PreTrainedModel.from_pretrained.__func__

    def load_inside(cls, *args, **kwargs):
        kwargs.pop("device_map", None)
        loaded, loading = load_outside(cls, *args, **kwargs)
        return loaded.to("meta"), loading

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(load_inside))
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    model.to_empty(device="cpu").load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    audio = make_noise((9_000,))
    with torch.no_grad():
        frames = model(audio.values[None]).last_hidden_state[0]
        assert torch.equal(frames, encoder(audio).frames.values)
    # with a device_map, nobody brings values
    with pytest.raises(ValueError, match="device_map: the encoder cannot be offloaded"):
        AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True, device_map={"": "meta"})


def test_tensors_of_another_model_are_refused(tmp_path):
    """transformers would leave what is in memory where a tensor is missing."""
    write_hf(single("whisper", tmp_path), tmp_path / "out", {})
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors["encoder.strange"] = tensors.pop("encoder.whisper.layers.0.fc1.bias")
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"2 tensors are missing or unknown, for example encoder\.strange"):
        AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)


def test_tensors_are_renamed_for_releases_that_name_those_of_an_ast_differently(tmp_path, monkeypatch):
    assert AstAudioEncoder.map_older_names() == {}
    monkeypatch.setattr(modeling_audio_spectrogram_transformer, "ASTEncoder", object, raising=False)
    patterns = AstAudioEncoder.map_older_names()
    layer = [name for name in single("ast", tmp_path).state_dict() if ".layers.1." in name]
    assert len(layer) == 16
    renamed = set()
    for name in layer:
        matches = [
            re.sub(pattern, older, name) for pattern, older in patterns.items() if re.search(pattern, name)
        ]
        assert len(matches) == 1, name  # transformers stops at the first
        renamed.add(matches[0])
    assert "model.encoder.layer.1.attention.attention.query.weight" in renamed
    assert "model.encoder.layer.1.output.dense.bias" in renamed
    assert len(renamed) == 16
    for other in ("whisper", "wavlm", "clap", "w2v_bert"):
        names = single(other, tmp_path).state_dict()
        assert not [name for name in names for pattern in patterns if re.search(pattern, name)]


def test_a_release_without_the_stock_class_is_named(monkeypatch):
    place = "transformers.models.later.modeling_later:LaterModel"
    monkeypatch.setattr("uniaudio.model.rebuild.STOCK_MODELS", (place,))
    with pytest.raises(ValueError, match=r"transformers \d.* has no LaterModel; install a newer release"):
        rebuild({"stock": place, "values": {}, "attention": None}, {}.__getitem__)


@pytest.mark.parametrize("name", ["whisper", "hubert", *FUSIONS])
def test_an_exported_folder_is_an_encoder_of_this_package_again(tmp_path, name):
    encoder = fused(FUSIONS[name], tmp_path) if name in FUSIONS else single(name, tmp_path)
    again = load(export(encoder, tmp_path / "out"))
    with torch.no_grad():
        one, other = (e(make_noise(LENGTHS)).frames for e in (encoder, again))
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.lengths, other.lengths)
    assert (again.dim, again.frame_rate, again.reach) == (encoder.dim, encoder.frame_rate, encoder.reach)
    export(again, tmp_path / "again")
    assert_same_files(tmp_path / "out", tmp_path / "again")


def test_a_model_loaded_with_its_extractor(tmp_path):
    """``kind: remote``: the stock model and its extractor travel, as long as both are classes of transformers."""
    save_miniature("wav2vec2", tmp_path / "weights")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "weights")
    settings = EncoderConfig(kind="remote", path=str(tmp_path / "weights"))
    encoder = load_audio_encoder(settings, "test").eval()
    write_hf(encoder, tmp_path / "out", {})
    verify_hf(encoder, tmp_path / "out")
    audio = make_noise(LENGTHS)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out")(audio).frames.values, encoder(audio).frames.values)


def test_low_rank_updates_are_exported_merged(tmp_path):
    encoder = WhisperAudioEncoder(tiny_whisper()).eval()
    add_lora(encoder, 4, 8, 0.0, "qkv")
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        updated = encoder(make_noise(LENGTHS)).frames.values
        merge_lora(encoder)
        again = load(export(encoder, tmp_path / "out"))
        torch.testing.assert_close(again(make_noise(LENGTHS)).frames.values, updated, atol=1e-5, rtol=1e-5)
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "lora" in name]


def test_the_stock_class_reads_a_plain_whisper_and_agrees_at_thirty_seconds(tmp_path):
    encoder = single("whisper", tmp_path)
    write_hf(encoder, tmp_path / "out", {})
    stock, loading = WhisperEncoder.from_pretrained(
        tmp_path / "out", subfolder="whisper_encoder", output_loading_info=True
    )
    assert not loading["missing_keys"]
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path / "out" / "whisper_encoder")
    audio = make_noise((480_000,))
    mel = extractor(audio.values.numpy() / 32768.0, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        wanted = stock.eval()(mel).last_hidden_state[0]
        torch.testing.assert_close(encoder(audio).frames.values, wanted, atol=2e-5, rtol=1e-4)
    write_hf(fused(FUSIONS["concat"], tmp_path), tmp_path / "fused", {})
    assert not (tmp_path / "fused" / "whisper_encoder").exists()


def test_the_code_is_short_and_names_nothing_it_does_not_need(tmp_path):
    write_hf(single("whisper", tmp_path), tmp_path / "out", {})
    files = {file.name: file.read_text() for file in (tmp_path / "out").glob("*.py")}
    imported = {
        match.split(".")[0]
        for text in files.values()
        for match in re.findall(r"^\s*(?:from|import) ([a-z_]\w*)", text, re.MULTILINE)
    }
    assert imported <= {
        *("__future__", "collections", "contextlib", "contextvars", "dataclasses", "importlib", "inspect"),
        *("itertools", "math", "numbers", "re", "typing", "numpy", "torch", "transformers"),
    }
    text = "\n".join(files.values())
    assert not [
        word for word in ("load_whisper", "snapshot_download", "MoweEncoder", "Float[") if word in text
    ]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert str(tmp_path) not in json.dumps(config)  # no path of this machine


@pytest.mark.parametrize(
    ("mask", "message"),
    [([[0, 1, 1, 1]], "after the clip"), ([[0, 0, 0, 0]], "1 to 4 samples")],
)
def test_masks_that_mean_something_else_are_refused(tmp_path, mask, message):
    write_hf(single("whisper", tmp_path), tmp_path / "out", {})
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 4), attention_mask=torch.tensor(mask))


def test_the_exported_model_trains(tmp_path):
    write_hf(single("whisper", tmp_path), tmp_path / "out", {})
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).train()
    output = model(torch.randn(2, 9_000), output_hidden_states=True)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert len(output.hidden_states) == 3  # before each of two layers, and the frames
    output.last_hidden_state.square().sum().backward()
    assert all(
        p.grad is not None for n, p in model.named_parameters() if "k_proj.bias" not in n and p.requires_grad
    )


def test_a_changed_weight_does_not_pass_the_check(tmp_path):
    encoder = single("whisper", tmp_path)
    write_hf(encoder, tmp_path / "out", {})
    verify_hf(encoder, tmp_path / "out")
    with torch.no_grad():
        encoder.whisper.layers[0].fc1.bias[0] += 1e-3
    with pytest.raises(RuntimeError, match="differ"):
        verify_hf(encoder, tmp_path / "out")


class SomebodysEncoder(AudioEncoder):
    """Not code of this package."""


def test_code_of_others_is_refused(tmp_path):
    with pytest.raises(UserError, match="SomebodysEncoder"):
        write_hf(SomebodysEncoder(), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


@pytest.mark.realdata
def test_real_weights_on_a_real_recording(realdata, tmp_path):
    encoder = load(realdata / "weights" / "whisper_tiny_en_encoder_hf")
    write_hf(encoder, tmp_path / "out", {})
    verify_hf(encoder, tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    file = sorted((realdata / "ljspeech_mini").rglob("*.flac"))[0]
    samples = torch.from_numpy(decode(file, 600.0, str(file)))
    with torch.no_grad():
        frames = model(samples[None]).last_hidden_state[0]
        assert torch.equal(frames, encoder(Ragged.from_rows([samples])).frames.values)
    assert len(frames) == -(-len(samples) // 320)
