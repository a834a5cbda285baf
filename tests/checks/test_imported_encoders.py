"""Encoder classes of the user's own: the examples of the documentation, and the mistakes that people make in them."""

import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import save_miniature
from torch import nn

from uniaudio.build.embedder import Embedder
from uniaudio.build.encoders import add_hashes_of_built, build_encoder, identify_encoder_bases
from uniaudio.checks.encoder_contract import check_contract, make_noise_clips
from uniaudio.checks.imported_encoders import check_imported_encoders
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.run import RunConfig
from uniaudio.config.trust import Trust
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.task_embeddings import PieceBatch, encode_batches
from uniaudio.model.base_identity import CODE
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.model_hash import hash_model, hash_source_code
from uniaudio.ragged import Ragged
from uniaudio.train.checkpoint.reading import Checkpoint, check_bases
from uniaudio.types import Encoded

PAGE = (Path(__file__).parents[2] / "docs" / "fusion.md").read_text()
ENCODER, FUSION = (code for code in re.findall(r"(?s)```python\n(.*?)```", PAGE) if "class " in code)
CPU = torch.device("cpu")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with the modules of the documentation in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_encoder.py").write_text(ENCODER)
    (tmp_path / "my_fusion.py").write_text(FUSION)
    for name in ("my_encoder", "my_fusion", "my_layers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def run_config(kind, **settings):
    stage = {"name": "one", "recipe": "none", "steps": 1, "budget": {"audio_seconds": 6}}
    config = RunConfig.model_validate(
        {"output_dir": "out", "encoders": {"a": {"kind": kind, **settings}}, "stages": [stage]}
    )
    config._trust = Trust(code=True)
    return config


def load(kind, **settings):
    config = EncoderConfig(kind=kind, **settings)
    return load_audio_encoder(config, "encoders.a", trust=Trust(code=True))


def test_the_encoder_of_the_documentation_keeps_the_contract(here):
    encoder = load("my_encoder:MyEncoder", settings={"width": 8})
    assert [(f.name, f.seen) for f in check_contract(encoder) if not f.holds] == []
    torch.save(encoder.net.state_dict(), here / "weights.pt")
    config = run_config("my_encoder:MyEncoder", path="weights.pt", settings={"width": 8})
    assert check_imported_encoders(config, CPU) == []
    wave = torch.randint(-9000, 9000, (1040,), dtype=torch.int16)
    with torch.no_grad():
        expected = encoder.net((wave.float() / 32768)[None, None])[0].T
        frames = build_encoder(config)(Ragged.from_rows([wave])).frames
    assert frames.lengths.tolist() == [3]
    torch.testing.assert_close(frames.values, expected)


def test_a_class_is_made_where_its_path_is_that_of_a_run(here):
    """A class without a path has that of the working folder, which may be a run folder."""
    (here / "checkpoints").mkdir()
    encoder = build_encoder(run_config("my_encoder:MyEncoder", settings={"width": 8}))
    assert type(encoder).__name__ == "MyEncoder"


def test_the_fusion_of_the_documentation_keeps_the_contract(here):
    save_miniature("whisper", here / "first")
    save_miniature("ast", here / "second")
    encoder = load("my_fusion:ProductEncoder", path="first", settings={"second": "second"})
    first, second = encoder.encoders.values()
    assert (first.frame_rate, second.frame_rate, encoder.frame_rate) == (50, 10, 25)
    assert [(f.name, f.seen) for f in check_contract(encoder) if not f.holds] == []
    streams = encoder.encode_streams(make_noise_clips(16_000))
    (one,), (other,) = streams
    maps = encoder.operator.maps
    expected = maps[0](one.values) * torch.sigmoid(maps[1](other.values))
    assert expected.shape == (25, first.dim)
    torch.testing.assert_close(encoder(make_noise_clips(16_000)).frames.values, expected)


class Mean(AudioEncoder):
    """One frame for every 320 samples; mistakes are up to subclasses."""

    dim, frame_rate, reach, layer_dims = 4, 50.0, None, (4,)

    def __init__(self, path=""):
        super().__init__()
        self.line = nn.Linear(1, 4)

    def num_frames(self, samples):
        return -(-samples // 320)

    def encode(self, audio):
        rows = [nn.functional.pad(clip.float() / 3000, (0, -len(clip) % 320)) for clip in audio.rows()]
        return [self.line(row.view(-1, 320).mean(1, keepdim=True)) for row in rows]

    def forward(self, audio, layers=False, masks=None):
        frames = Ragged.from_rows(self.encode(audio))
        return Encoded(frames, (frames,) if layers else None)


class Energy(AudioEncoder):
    """The loudness of every 20 ms: nothing is learned."""

    dim, frame_rate, reach, layer_dims = 1, 50.0, None, (1,)

    def __init__(self, path=""):
        super().__init__()

    def num_frames(self, samples):
        return -(-samples // 320)

    def forward(self, audio, layers=False, masks=None):
        if not len(audio):
            return self.encode_no_clips(layers)
        rows = [nn.functional.pad(clip.float(), (0, -len(clip) % 320)) for clip in audio.rows()]
        frames = Ragged.from_rows([row.view(-1, 320).abs().mean(1, keepdim=True) for row in rows])
        return Encoded(frames, (frames,) if layers else None)


def test_an_encoder_without_parameters_is_one_like_any_other():
    clips = [clip.numpy() for clip in make_noise_clips(8_000, 16_000).rows()]
    expected = np.array([np.abs(clip.astype(float)).mean() for clip in clips])
    embedder = Embedder(Energy())
    np.testing.assert_allclose(embedder.embed(clips)[:, 0], expected / 32768, rtol=1e-4)
    waves = [torch.from_numpy(clip) for clip in clips]
    np.testing.assert_allclose(embedder(waves).pooler_output[:, 0], expected, rtol=1e-5)
    batch = PieceBatch([0, 1], clips, 2)
    (embedded,) = encode_batches(Energy(), iter([batch]), False, False, lambda clips, seconds: None)
    np.testing.assert_allclose(embedded.values[:, 0], expected, rtol=1e-5)
    none = Ragged(torch.zeros(0, dtype=torch.int16), torch.zeros(0, dtype=torch.int64))
    assert Energy()(none).frames.values.shape == (0, 1)
    config = run_config(f"{__name__}:Energy", train="frozen")
    assert check_imported_encoders(config, CPU) == []


class Plain(nn.Module):
    dim, frame_rate = 4, 50.0


class NoAttributes(AudioEncoder):
    def __init__(self, path=""):
        super().__init__()

    def forward(self, audio, layers=False, masks=None): ...


class TensorRate(Mean):
    frame_rate = torch.tensor(50.0)


class WrongDim(Mean):
    dim = 6


class WrongWidth(Mean):
    dim, layer_dims = 6, (6,)


class WrongRate(Mean):
    frame_rate = 25.0


class OneFrameLess(Mean):
    def encode(self, audio):
        return [row[: max(1, len(row) - 1)] for row in super().encode(audio)]


class HalfFrames(Mean):
    def num_frames(self, samples):
        return samples / 320


class NotFinite(Mean):
    def encode(self, audio):
        return [row.log() for row in super().encode(audio)]


class Decibels(Mean):
    def encode(self, audio):
        levels = [clip.float().square().mean().log10() for clip in audio.rows()]
        return [row + level for row, level in zip(super().encode(audio), levels, strict=True)]


class OneClipLess(Mean):
    def encode(self, audio):
        return super().encode(audio)[:-1]


class Padded(Mean):
    def forward(self, audio, layers=False, masks=None):
        return nn.utils.rnn.pad_sequence(self.encode(audio), batch_first=True)


class Int16(Mean):
    def encode(self, audio):
        return [self.line(clip[:, None]) for clip in audio.rows()]


class NoLayersArgument(Mean):
    def forward(self, audio):
        return super().forward(audio)


class NoWeights(Mean):
    def __init__(self, path=""):
        super().__init__()
        raise KeyError("weights")


class NoGradient(Mean):
    @torch.no_grad()
    def forward(self, audio, layers=False, masks=None):
        return super().forward(audio, layers)


class Moving(Mean):
    def __init__(self, path=""):
        super().__init__()
        self.register_buffer("level", torch.zeros(()))

    def encode(self, audio):
        if self.training:
            self.level += 1
        return super().encode(audio)


class Clock(Mean):
    def __init__(self, path=""):
        super().__init__()
        self.register_buffer("start", torch.tensor(time.perf_counter_ns()), persistent=False)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Plain,
            r"\.kind: .*:Plain is not a subclass of uniaudio's AudioEncoder; wrap it in one: docs/fusion.md",
        ),
        (NoAttributes, r"does not define dim, frame_rate, reach, layer_dims, num_frames; docs/fusion.md"),
        (TensorRate, r"states something wrong: frame_rate is tensor\(50.\), not a number above 0"),
        (WrongDim, r"states something wrong: layer_dims \(4,\) must end in dim, 6"),
        (WrongWidth, r"frames have the shape \(\d+, 4\), but dim says \[frames, 6\]"),
        (WrongRate, r"num_frames says 1500 for 30 s, frame_rate 25 says 750"),
        (OneFrameLess, r"a clip of 399 samples has 1 frames, but num_frames says 2"),
        (HalfFrames, r"a clip of 1 samples has 1 frames, but num_frames says 0.003125"),
        (NotFinite, r"the frames of noise are not finite"),
        (Decibels, r"the frames of silence are not finite \(NaN or infinite\); add a small number"),
        (OneClipLess, r"forward returns frames of 12 clips for 13 clips"),
        (Padded, r"forward returns Tensor, not Encoded; docs/fusion.md"),
        (
            Int16,
            r"fails on 13 clips of int16 samples \(RuntimeError: .*; test_imported_encoders.py, line \d+\)",
        ),
        (NoLayersArgument, r"TypeError: .*unexpected keyword argument 'layers'\); docs/fusion.md"),
        (
            NoWeights,
            r"NoWeights cannot be created \(KeyError: 'weights'; test_imported_encoders.py, line \d+\)",
        ),
        (
            NoGradient,
            r"no parameter gets a gradient; compute the frames without no_grad or detach, or set train",
        ),
        (Moving, r"changes the buffer level in training, but checkpoints store only parameters"),
        (Clock, r"has different values each time it is created \(such as start\)"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused(kind, message):
    name = f"{__name__}:{kind.__name__}"
    assert check_imported_encoders(run_config(f"{__name__}:Mean"), CPU) == []
    with pytest.raises(UserError, match=rf"^encoders\.a.*{message}"):
        check_imported_encoders(run_config(name), CPU)


def test_a_frozen_class_needs_no_gradients():
    assert check_imported_encoders(run_config(f"{__name__}:NoGradient", train="frozen"), CPU) == []
    assert check_imported_encoders(run_config(f"{__name__}:Moving", train="frozen"), CPU) == []


class SeesItsBatch(Mean):
    def encode(self, audio):
        rows = super().encode(audio)
        return [row - torch.cat(rows).mean(0) for row in rows]


class Dithered(Mean):
    def encode(self, audio):
        return [row + torch.rand(()) for row in super().encode(audio)]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (SeesItsBatch, "depend on the other clips of its batch"),
        (Dithered, "different frames for the same clips"),
    ],
)
def test_frames_that_depend_on_the_batch_or_on_chance_are_a_warning(kind, message):
    (warning,) = check_imported_encoders(run_config(f"{__name__}:{kind.__name__}"), CPU)
    assert warning.startswith(f"encoders.a: {__name__}:{kind.__name__}")
    assert message in warning


class Normed(Mean):
    def __init__(self, path=""):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def encode(self, audio):
        return [self.norm(row) for row in super().encode(audio)]


def test_batch_norms_keep_their_statistics_in_training():
    encoder = load(f"{__name__}:Normed").train()
    assert (encoder.training, encoder.line.training, encoder.norm.training) == (True, True, False)
    encoder(make_noise_clips(16_000, 8_000))
    assert encoder.norm.running_mean.tolist() == [0, 0, 0, 0]
    assert encoder.norm.num_batches_tracked == 0
    assert check_imported_encoders(run_config(f"{__name__}:Normed"), CPU) == []


def test_weights_that_a_class_draws_are_a_function_of_the_seed():
    def draw(seed):
        config = EncoderConfig(kind=f"{__name__}:Mean")
        return load_audio_encoder(config, "encoders.a", seed, Trust(code=True)).line.weight

    before = torch.random.get_rng_state()
    first = draw(0)
    torch.rand(3)
    assert torch.equal(draw(0), first)
    assert not torch.equal(draw(1), first)
    torch.random.set_rng_state(before)
    draw(0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_first_weight_is_another_encoder_for_a_checkpoint(here):
    config = run_config("my_encoder:MyEncoder", path="weights.pt", train="frozen")

    def identify(scale):
        net = load("my_encoder:MyEncoder").net
        torch.save({name: tensor * scale for name, tensor in net.state_dict().items()}, "weights.pt")
        return add_hashes_of_built(identify_encoder_bases(config), config, build_encoder(config))

    first = identify(1)
    assert first["encoder a"]["path"] == "my_encoder:MyEncoder weights.pt"
    assert identify(1) == first
    checkpoint = Checkpoint(here, {}, {}, first)
    check_bases(checkpoint, identify(1))
    with pytest.raises(UserError, match=r"was trained with the encoder a my_encoder:MyEncoder weights.pt \("):
        check_bases(checkpoint, identify(2))


def test_the_code_of_a_class_is_part_of_what_its_frames_are_stored_under(here, monkeypatch):
    def digest(encoder=ENCODER, layers="SCALE = 1.0\n", **settings):
        (here / "my_encoder.py").write_text(f"import my_layers\n{encoder}")
        (here / "my_layers.py").write_text(layers)
        for name in ("my_encoder", "my_layers"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files change within a second
        return hash_model(load("my_encoder:MyEncoder", settings=settings))

    first = digest()
    assert digest() == first
    assert digest(ENCODER.replace("nn.GELU()", "nn.GELU( )")) != first
    assert digest(layers="SCALE = 2.0\n") != first
    assert digest(width=64) != first  # a setting that is stated
    (here / "unrelated.py").write_text("SCALE = 3.0\n")
    assert digest() == first


def write_modules(monkeypatch, **modules):
    """Write modules of Python into the working folder, and forget those of these names that were imported."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files change within a second
    for name, code in modules.items():
        Path(f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_constants_that_come_from_other_files_are_part_of_the_code(here, monkeypatch):
    def digest(scale, others="import json\nLIMIT = 1\n"):
        write_modules(
            monkeypatch,
            my_encoder=f"from my_layers import SCALE\n{ENCODER}",
            my_layers="from my_scales import SCALE\n",
            my_scales=f"if True:\n    from my_bases import BASE as SCALE\n{others}",
            my_bases=f"BASE = {scale}\n",
        )
        encoder = load("my_encoder:MyEncoder")
        return hash_model(encoder), hash_source_code(encoder)

    first = digest(1.0)
    assert digest(1.0) == first
    assert all(now != before for now, before in zip(digest(2.0), first, strict=True))
    assert all(now != before for now, before in zip(digest(1.0, "LIMIT = 2\n"), first, strict=True))
    (here / "my_unused.py").write_text("BASE = 3.0\n")
    assert digest(1.0) == first


def test_other_code_of_a_class_is_reported_once_and_used(here, monkeypatch, capsys):
    config = run_config("my_encoder:MyEncoder", train="frozen")

    def identify(code):
        write_modules(monkeypatch, my_encoder=code)
        return add_hashes_of_built(identify_encoder_bases(config), config, build_encoder(config))

    first, other = identify(ENCODER), identify(ENCODER.replace("nn.GELU()", "nn.SiLU()"))
    assert other["encoder a"]["sha256"] == first["encoder a"]["sha256"]  # of the weights, which are the same
    checkpoint = Checkpoint(here / "step-000004", {}, {}, first)
    check_bases(checkpoint, first)
    older = {"encoder a": {key: text for key, text in first["encoder a"].items() if key != CODE}}
    check_bases(Checkpoint(here / "step-000004", {}, {}, older), other)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        check_bases(checkpoint, other)
    assert capsys.readouterr().err == (
        f"the code of the encoder a my_encoder:MyEncoder has changed since {here / 'step-000004'} was trained; the "
        "present code is used\n"
    )


def test_of_a_run_with_such_a_class_the_trained_weights_are_compared(here):
    encoder = load("my_encoder:MyEncoder")
    of_run = {"encoder a": {"path": "runs/first", "sha256": "1" * 64}}
    config = run_config("auto", path="runs/first")
    assert add_hashes_of_built(of_run, config, encoder)["encoder a"]["sha256"] == "1" * 64
    config = run_config("my_encoder:MyEncoder")
    assert add_hashes_of_built(of_run, config, encoder)["encoder a"]["sha256"] == encoder.initial_sha256


class Projected(Mean):
    def __init__(self, path="", seed=0):
        super().__init__()
        made = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("map", made, persistent=False)
        self.bias = made[0].clone()


def test_tensors_that_are_not_saved_are_part_of_it(monkeypatch):
    one, same, other = (Projected(seed=seed) for seed in (0, 0, 0))
    for encoder in (same, other):
        encoder.load_state_dict(one.state_dict())
    assert hash_model(one) == hash_model(same)
    other.map += 1
    assert hash_model(other) != hash_model(one)
    same.bias += 1
    assert hash_model(same) != hash_model(one)


@pytest.mark.parametrize("given", [{"pad_to": 30.0}, {"revision": "v1"}])
def test_settings_that_a_class_would_not_see_are_refused(given, here):
    (name,) = given
    expected = rf"^encoders\.a\.{name}: my_encoder:MyEncoder is your own class, which is created with path and settings"
    with pytest.raises(UserError, match=expected):
        load("my_encoder:MyEncoder", **given)
    with pytest.raises(UserError, match=expected):
        check_imported_encoders(run_config("my_encoder:MyEncoder", **given), CPU)


class NoParameters(Mean):
    """Levels, without anything to train."""

    def __init__(self, path=""):
        super().__init__()
        del self.line

    def encode(self, audio):
        return [
            nn.functional.pad(clip.float() / 3000, (0, -len(clip) % 320))
            .view(-1, 320)
            .mean(1, keepdim=True)
            .expand(-1, 4)
            for clip in audio.rows()
        ]

    def forward(self, audio, layers=False, masks=None):
        return super().forward(audio, layers) if len(audio) else self.encode_no_clips(layers)


def test_an_encoder_without_parameters_can_have_no_clips():
    findings = {finding.name: finding for finding in check_contract(NoParameters())}
    assert findings["silence and empty batches give valid frames"].seen == "finite, empty"
