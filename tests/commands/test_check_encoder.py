"""The contract, on every encoder, from a saved folder; and on encoders that break it."""

import io

import pytest
import torch
from export.test_hf import FUSIONS, fused
from helpers.checkpoints import MINIATURES, save_miniature
from rich.console import Console
from torch import nn

from uniaudio.checks.encoder_contract import check_contract, check_gradients, check_silence
from uniaudio.commands.check_encoder import list_families, list_support, show_findings
from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.registry import FAMILIES, LEFT_OUT, explain_left_out, load_audio_encoder
from uniaudio.ragged import Ragged
from uniaudio.types import Encoded


def convolves_in_bfloat16():
    """Some CPUs (seen with AMX, torch 2.13) give wrong strided convolutions of 16 channels in bfloat16."""
    convolution = nn.Conv1d(16, 32, 12, stride=6)
    wave = torch.randn(1, 16, 1200, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = convolution(wave)
        rough = convolution.bfloat16()(wave.bfloat16()).float()
    return (rough - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("kind", MINIATURES)
def test_every_encoder_keeps_the_contract(kind, tmp_path):
    save_miniature(kind, tmp_path / "model")
    encoder = load_audio_encoder(EncoderConfig(path=str(tmp_path / "model")), "encoders.a")
    assert dict(list_support(encoder))["export --to hf"] == "yes"
    findings = check_contract(encoder)
    assert len(findings) == 8
    # what the tool tells then is true of this machine, and not the encoder's fault
    if not convolves_in_bfloat16():
        findings = [f for f in findings if f.name != "runs in bfloat16"]
    assert [(f.name, f.seen) for f in findings if not f.holds] == []
    show_findings(findings, kind)


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_keeps_the_contract_without_clips(name, tmp_path):
    assert check_silence(fused(FUSIONS[name], tmp_path)) == "finite, empty"


def test_the_weights_of_a_router_that_reads_the_question_get_gradients(tmp_path):
    assert check_gradients(fused(FUSIONS["mowe, prompts"], tmp_path)).endswith("parameters get a gradient")


def test_what_an_encoder_supports_is_listed(tmp_path):
    save_miniature("gemma4", tmp_path)
    encoder = load_audio_encoder(EncoderConfig(path=str(tmp_path)), "encoders.a")
    support = dict(list_support(encoder))
    assert support["execution"] == "padded to the longest clip, with masks"
    assert support["hidden states"] == "3 of width 24, 32"
    assert support["LoRA, targets: qkv"] == "6 linear layers: k_proj, q_proj, v_proj"
    assert support["layer decay"] == "2 layers"
    assert support["activation checkpointing (recompute)"] == "no"
    assert support["export --to hf"] == "yes"
    assert support["export --to onnx"].startswith("no: --to onnx: encoders of the model type")


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"pool": 2}, "no: a copy built from its description has a different number of frames"),
        (
            {"mels": 48},
            "no: a copy built from its description differs in 1 tensors, such as whisper.conv1.weight",
        ),
    ],
)
def test_a_description_that_makes_another_encoder_is_found(change, answer, tmp_path):
    save_miniature("whisper", tmp_path)
    encoder = load_audio_encoder(EncoderConfig(path=str(tmp_path)), "encoders.a")
    encoder.made_with.update({name: value for name, value in change.items() if name == "pool"})
    if "mels" in change:
        encoder.made_with["whisper"].config.num_mel_bins = change["mels"]
    assert dict(list_support(encoder))["export --to hf"] == answer


def test_every_model_type_is_loaded_or_left_out_with_a_reason():
    assert not set(FAMILIES) & set(LEFT_OUT)
    console = Console(width=200, record=True, file=io.StringIO())
    list_families(console)
    shown = console.export_text()
    assert all(kind in shown for kind in (*FAMILIES, *LEFT_OUT))
    assert explain_left_out("csm") == ": its audio codec is a Mimi; load a Mimi, such as kyutai/mimi"
    assert "whisper" in explain_left_out("whisperx")


class Broken(AudioEncoder):
    """One frame per 320 samples; what it does wrong is up to its subclasses."""

    dim, frame_rate, reach, layer_dims = 4, 50.0, None, (4,)

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 4)

    def num_frames(self, samples):
        return max(1, samples // 320)

    def levels(self, audio):
        counts = [self.num_frames(n) for n in audio.lengths.tolist()]
        rows = [
            nn.functional.pad(w.float() / 3000, (0, 320))[: c * 320].view(c, 320).mean(1)
            for w, c in zip(audio.rows(), counts, strict=True)
        ]
        values = torch.cat(rows)[:, None] if rows else torch.zeros(0, 1)
        return Ragged(values.to(self.line.weight.dtype), torch.tensor(counts, dtype=torch.int64))

    def forward(self, audio, layers=False, masks=None):
        frames = self.levels(audio)
        frames = frames.with_values(self.line(frames.values))
        return Encoded(frames, (frames,) if layers else None)


class SeesItsBatch(Broken):
    def forward(self, audio, layers=False, masks=None):
        frames = super().forward(audio, layers).frames
        frames = frames.with_values(frames.values - frames.values.mean(0))
        return Encoded(frames, (frames,) if layers else None)


class MisCounts(Broken):
    def num_frames(self, samples):
        return max(1, samples // 320 + (samples == 7_777))

    def levels(self, audio):
        counts = torch.tensor([max(1, n // 320) for n in audio.lengths.tolist()], dtype=torch.int64)
        return Ragged(torch.ones(int(counts.sum()), 1), counts)


class Unused(Broken):
    def __init__(self):
        super().__init__()
        self.forgotten = nn.Linear(2, 2)


class WrongRate(Broken):
    frame_rate = 40.0


class Random(Broken):
    def forward(self, audio, layers=False, masks=None):
        frames = super().forward(audio, layers).frames
        frames = frames.with_values(frames.values + torch.rand(()))
        return Encoded(frames, (frames,) if layers else None)


class NoLayers(Broken):
    def forward(self, audio, layers=False, masks=None):
        return super().forward(audio)


class Float32Only(Broken):
    def levels(self, audio):
        frames = super().levels(audio)
        return frames.with_values(frames.values.float())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (SeesItsBatch, "the frames of a clip do not depend on its batch"),
        (MisCounts, "num_frames gives the actual number of frames"),
        (Unused, "gradients reach all trained parameters"),
        (WrongRate, "widths and frame rate are stated correctly"),
        (Random, "two passes give the same frames"),
        (NoLayers, "hidden states"),
        (Float32Only, "runs in bfloat16"),
    ],
)
def test_what_breaks_the_contract_is_found(kind, name):
    torch.manual_seed(0)
    assert all(finding.holds for finding in check_contract(Broken()))
    findings = check_contract(kind())
    assert name in [finding.name for finding in findings if not finding.holds]
    with pytest.raises(UserError, match="does not meet the encoder interface"):
        show_findings(findings, "broken")
