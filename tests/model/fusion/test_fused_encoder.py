"""A fused encoder is an encoder; so is a routed one."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_whisper
from torch import nn

from uniaudio.build.fusion import OPERATORS, fuse
from uniaudio.config.fusion import FusionConfig, MoweConfig
from uniaudio.config.records import Strict, build
from uniaudio.errors import UserError
from uniaudio.model.attenuated_whitening import attenuate_components
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.fusion.base import entropy
from uniaudio.model.fusion.encoder import scale_streams
from uniaudio.model.fusion.mowe import smooth_weights
from uniaudio.model.fusion_start import start_fusion
from uniaudio.ragged import Ragged
from uniaudio.train.auxiliary_losses import AuxiliaryLosses
from uniaudio.types import Encoded


class Slow(AudioEncoder):
    """A small encoder of another rate and width: the mean of every 80 ms, through a line."""

    frame_rate, reach = 12.5, None

    def __init__(self, dim: int = 24, frozen: bool = False):
        super().__init__()
        self.dim, self.layer_dims = dim, (dim,) * 4
        self.layers = nn.ModuleList(nn.Linear(3 if i == 0 else dim, dim) for i in range(4))
        self.seen: list[int] = []
        self.requires_grad_(not frozen)

    def num_frames(self, samples):
        return max(1, samples // 1280)

    def forward(self, audio, layers=False, masks=None):
        self.seen.append(len(audio))
        counts = torch.tensor([self.num_frames(n) for n in audio.lengths.tolist()])
        rows = []
        for wave, count in zip(audio.rows(), counts.tolist(), strict=True):
            wave = torch.nn.functional.pad(wave.float() / 32768, (0, 1280))[: count * 1280].view(count, 1280)
            rows.append(torch.stack([wave.mean(1), wave.abs().mean(1) * 10, wave.std(1) * 10], 1))
        states = [torch.cat(rows)]
        for layer in self.layers:
            states.append(layer(states[-1]).tanh())
        result = tuple(Ragged(state, counts) for state in states[1:])
        return Encoded(result[-1], result if layers else None)


class Holder(Strict):
    fusion: FusionConfig


def config(**settings):
    return build(Holder, {"fusion": settings}, "test").fusion


def audio(*samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Ragged.from_rows([(torch.randn(n, generator=generator) * 3000).to(torch.int16) for n in samples])


def pair(frozen=False):
    whisper = WhisperAudioEncoder(tiny_whisper())
    whisper.requires_grad_(not frozen)
    torch.manual_seed(1)
    return {"whisper": whisper, "slow": Slow(frozen=frozen)}


KINDS = [{"kind": kind} for kind in OPERATORS] + [
    {"kind": "gate", "stft": {"mels": 16}},
    {"kind": "gate", "align": "linear", "rate": 12.5, "dim": 40},
    {"kind": "wq", "output": "both"},
    {"kind": "mowe"},
    {"kind": "mowe", "per_frame": True, "routers": "dependent"},
    {"kind": "mowe", "routers": "independent", "weak_dim": 8},
]


def ids(settings):
    return "-".join(str(v) for v in settings.values())


@torch.no_grad()
@pytest.mark.parametrize("settings", KINDS, ids=ids)
def test_it_keeps_the_contract(settings):
    torch.manual_seed(0)
    encoder = fuse(config(**settings), pair()).eval()
    samples = [16_000, 1, 7_777, 40_000, 1_281]
    together = encoder(audio(*samples), layers=True)
    assert together.frames.lengths.tolist() == [encoder.num_frames(n) for n in samples]
    assert together.frames.values.shape[1] == encoder.dim
    assert [state.values.shape[1] for state in together.layers] == list(encoder.layer_dims)
    assert together.layers[-1] is together.frames
    assert encoder.follows_time == (settings.get("output") != "both")
    assert all(len(values) == len(samples) for values in together.stats.values())
    clips = audio(*samples).rows()
    for clip, frames in zip(clips, together.frames.rows(), strict=True):
        alone = encoder(Ragged.from_rows([clip])).frames.values
        torch.testing.assert_close(alone, frames, atol=5e-6, rtol=0)
    seconds = 30
    frames = encoder.num_frames(seconds * 16_000)
    assert frames == pytest.approx(seconds * encoder.frame_rate, abs=1)


@pytest.mark.parametrize("settings", KINDS, ids=ids)
def test_gradients_reach_every_trained_part(settings):
    torch.manual_seed(0)
    encoder = fuse(config(**settings), pair()).train()
    encoded = encoder(audio(16_000, 9_000))
    collected = AuxiliaryLosses()
    collected.add(encoded.losses)
    extra, _ = collected.compute_objective()
    direction = torch.randn_like(encoded.frames.values)
    ((encoded.frames.values * direction).sum() + (0 if extra is None else extra)).backward()
    without = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


@pytest.mark.parametrize("settings", KINDS, ids=ids)
def test_frozen_encoders_have_no_graph_and_stay_in_eval_mode(settings):
    encoder = fuse(config(**settings), pair(frozen=True)).train()
    assert not any(part.training for part in encoder.encoders.values())
    encoded = encoder(audio(16_000))
    encoded.frames.values.sum().backward()
    assert all(p.grad is None for p in encoder.encoders.parameters())


def test_one_encoder_is_enough_where_layers_are_fused():
    encoders = {"whisper": pair()["whisper"]}
    for kind in ("layers", "hconv", "chconv"):
        encoder = fuse(config(kind=kind), encoders)
        assert encoder(audio(16_000)).frames.values.shape == (25, 64)


def test_what_cannot_be_fused_is_reported_in_one_sentence():
    with pytest.raises(UserError, match=r"no encoder gives 100 frames per second \(whisper 50, slow 12.5\)"):
        fuse(config(kind="sum", rate=100), pair())
    with pytest.raises(UserError, match="not a whole number of samples"):
        fuse(config(kind="sum", rate=30, stft={}), pair())
    with pytest.raises(UserError, match=r"set fusion\.output to sum"):
        fuse(config(kind="wq", output="both", stft={}), pair())
    with pytest.raises(UserError, match=r"fusion\.head_dim: 5 is odd"):
        fuse(config(kind="wq", head_dim=5), pair())
    uneven = pair()
    uneven["slow"].layer_dims = (12, 24, 24, 24)
    with pytest.raises(UserError, match="the hidden states of slow are 12, 24 wide"):
        fuse(config(kind="hconv"), uneven)


def pool(count=3, **settings):
    torch.manual_seed(0)
    encoders = {"base": WhisperAudioEncoder(tiny_whisper())}
    encoders |= {f"weak{i}": Slow() for i in range(count)}
    return fuse(config(kind="mowe", **settings), encoders)


def send(encoder, choices, samples):
    """Make the data-dependent router send clip ``i`` to ``choices[i]``, by its length."""
    table = dict(zip(samples, choices, strict=True))

    def forward(read, owner=None, prompts=None):
        weights = torch.full((len(read), len(encoder.pool)), 0.1)
        for i, n in enumerate(samples):
            weights[i, table[n]] = 0.8
        return weights

    encoder.dependent.forward = forward


def test_weak_encoders_hear_only_the_clips_routed_to_them():
    encoder = pool(routers="dependent").eval()
    samples = [16_000, 8_000, 24_000, 4_000]
    send(encoder, [2, 0, 2, 2], samples)
    with torch.no_grad():
        encoded = encoder(audio(*samples))
    seen = {name: encoder.encoders[name].seen for name in encoder.pool}
    assert seen == {"weak0": [1], "weak1": [], "weak2": [3]}
    assert encoded.stats["weak/weak0"].tolist() == [0, 1, 0, 0]
    assert encoded.stats["weak/weak2"].tolist() == [1, 0, 1, 1]


@torch.no_grad()
def test_the_result_is_base_and_weighted_weak_frames_side_by_side():
    encoder = pool().eval()
    encoder.independent.theta.copy_(torch.tensor([0.0, 1.0, 0.5]))
    encoder.dependent.weigh.weight.normal_()
    clips = audio(16_000, 9_000, 20_000)
    got = encoder(clips).frames
    for clip, frames in zip(clips.rows(), got.rows(), strict=True):
        alone = Ragged.from_rows([clip])
        base = encoder.align_states(
            "base", [encoder.encoders["base"](alone).frames], encoder.count_meeting_frames(alone)
        )[0]
        r_ind = encoder.independent.theta.softmax(0)
        weigh = encoder.dependent.weigh
        r_dep = (weigh.weight @ base.values.mean(0) + weigh.bias).softmax(0)
        parts = [base.values]
        for weights in (r_ind, 0.9 * r_dep + 0.1 * (0.1 / 3)):
            best = int(weights.argmax())
            weak = encoder.encoders[f"weak{best}"](alone).frames
            weak = encoder.align_states(f"weak{best}", [weak], encoder.count_meeting_frames(alone))[0]
            parts.append(weights[best] * weak.values)
        torch.testing.assert_close(frames, torch.cat(parts, 1), atol=2e-6, rtol=0)


def test_smoothing_is_as_printed():
    weights = torch.tensor([0.7, 0.2, 0.1])
    torch.testing.assert_close(smooth_weights(weights, 0.9, 0.1 / 3), 0.9 * weights + 0.1 * 0.1 / 3)


def test_routing_losses_equal_their_equation_for_any_cut():
    encoder = pool().train()
    with torch.no_grad():
        encoder.independent.theta.copy_(torch.tensor([0.0, 1.0, 0.5]))
    clips = audio(16_000, 9_000, 20_000, 4_000)
    base = encoder.run("base", clips, False, None)
    pooled = (
        encoder.align_states("base", [base.frames], encoder.count_meeting_frames(clips))[0].mean().detach()
    )
    rows = [(encoder.dependent.weigh.weight @ p + encoder.dependent.weigh.bias).softmax(0) for p in pooled]
    h_ind = entropy(encoder.independent.theta.softmax(0))
    h_dep = sum(-(r * r.log()).sum() for r in rows) / 4
    mean = sum(rows) / 4
    wanted = 0.1 * (h_ind + h_dep - -(mean * mean.log()).sum())
    router = [*encoder.independent.parameters(), *encoder.dependent.parameters()]
    gradients = torch.autograd.grad(wanted, router)
    for cut in ([[0, 1, 2, 3]], [[0], [1], [2], [3]], [[3, 1], [0, 2]]):
        collected = AuxiliaryLosses()
        for part in cut:
            collected.add(encoder(clips.select(part)).losses)
        objective, values = collected.compute_objective()
        assert set(values) == {"entropy_independent", "entropy_dependent", "diversity"}
        torch.testing.assert_close(objective, wanted, atol=1e-6, rtol=1e-5)
        for one, other in zip(torch.autograd.grad(objective, router), gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_encoder_without_clips_gets_a_gradient_of_zero(frozen):
    encoder = pool(routers="dependent").train()
    for name in encoder.pool:
        encoder.encoders[name].requires_grad_(not frozen)
    samples = [16_000, 8_000]
    send(encoder, [1, 1], samples)
    encoder(audio(*samples)).frames.values.sum().backward()
    idle = encoder.encoders["weak0"]
    assert idle.seen == ([] if frozen else [1])  # one moment of silence, so that every rank runs every module
    if not frozen:
        assert all(p.grad is not None and p.grad.abs().max() == 0 for p in idle.parameters())
        assert any(p.grad.abs().max() > 0 for p in encoder.encoders["weak1"].parameters())


def test_a_router_that_reads_the_question_routes_by_it():
    encoders = {"base": WhisperAudioEncoder(tiny_whisper()), "a": Slow(), "b": Slow()}
    torch.manual_seed(0)
    encoder = fuse(config(kind="mowe", routers="dependent", reads_prompt=True), encoders, prompt_dim=4).eval()
    assert encoder.takes_prompts
    clip = audio(16_000, 16_000)
    with torch.no_grad():
        prompts = torch.eye(4)[:2] * 100
        one, other = encoder.dependent(torch.zeros(2, 64), None, prompts)
        assert (one - other).abs().max() > 1e-3
        assert encoder(clip).frames.values.shape == encoder(clip, prompts=prompts).frames.values.shape
        read_nothing = encoder.dependent(torch.zeros(2, 64))
        torch.testing.assert_close(read_nothing[0], encoder.dependent.weigh.bias.softmax(0))


def train_router(diversity, steps=150):
    """Two kinds of clips that the base can tell apart; a task that is a little easier with the first weak encoder."""
    torch.manual_seed(0)
    settings = MoweConfig(kind="mowe", routers="dependent", diversity_weight=diversity, entropy_weight=0.1)
    base, *weak = (Slow(8) for _ in range(4))
    encoder = fuse(settings, {"base": base, **{f"weak{i}": w for i, w in enumerate(weak)}}).train()
    encoder.encoders.requires_grad_(False)
    rows = [torch.randn(4_000) * (300 if i % 2 else 9_000) for i in range(16)]
    clips = Ragged.from_rows([row.to(torch.int16) for row in rows])
    adam = torch.optim.Adam(encoder.dependent.parameters(), lr=0.02)
    for _ in range(steps):
        encoded = encoder(clips)
        collected = AuxiliaryLosses()
        collected.add(encoded.losses)
        extra, _ = collected.compute_objective()
        read = encoder.dependent.read(
            encoder.align_states(
                "base", [encoder.run("base", clips, False, None).frames], encoder.count_meeting_frames(clips)
            )[0]
        )
        task = -0.05 * encoder.dependent(read)[:, 0].mean()  # the pull towards one encoder
        adam.zero_grad()
        (task + extra).backward()
        adam.step()
    with torch.no_grad():
        stats = encoder.eval()(clips).stats
    return torch.stack([stats[f"weak/weak{i}"] for i in range(3)]).sum(1)


def test_diversity_keeps_the_router_from_collapsing():
    with_diversity, without = train_router(0.3), train_router(0.0)
    assert (without > 0).sum() == 1  # all clips at one encoder
    assert (with_diversity > 0).sum() >= 2


class Holding(nn.Module):
    """A model that has nothing but an encoder."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder


def make_fitted(kind, start):
    """A fusion with a closed-form start, and clips to fit it to, also as rows."""
    torch.manual_seed(0)
    parts = {"w": WhisperAudioEncoder(tiny_whisper()), "slow": Slow()}
    read = [audio(9000 + 1500 * i, seed=i) for i in range(6)]
    rows = iter(
        SimpleNamespace(to=lambda device, clips=clips: SimpleNamespace(audio=clips)) for clips in read
    )
    return Holding(fuse(config(kind=kind, rate=12.5, start=start), parts)), read, rows


@pytest.mark.parametrize("kind", ["concat", "layers", "wq", "mowe"])
def test_a_start_scales_what_is_fused_and_reads_so_many_rows(kind):
    model, read, rows = make_fitted(kind, "pca")
    assert model.encoder.scales is not None
    start_fusion(model, rows, 5)
    assert len(list(rows)) == 1
    assert model.training
    streams = scale_streams(
        model.encoder.scales, model.encoder.encode_streams(Ragged.from_rows([r.values for r in read[:5]]))
    )
    for states in streams:
        assert len(states) > 1 if kind == "layers" else len(states) == 1
        frames = states[-1].values
        shares = torch.repeat_interleave(1 / states[-1].lengths / 5, states[-1].lengths)
        torch.testing.assert_close(shares @ frames, torch.zeros(frames.shape[1]), atol=1e-3, rtol=0)
        assert 0.7 < (shares @ frames.square()).median() < 1.01


@torch.no_grad()
def test_a_whitened_fusion_keeps_the_distances_of_whitened_clips():
    model, read, rows = make_fitted("concat", "whitening")
    start_fusion(model, rows, 5, "whitening")
    clips = Ragged.from_rows([row.values for row in read[:5]])
    streams = scale_streams(model.encoder.scales, model.encoder.encode_streams(clips))
    white = [means @ attenuate_components(means) for means in (states[-1].mean() for states in streams)]
    for means, stream in zip(white, streams, strict=True):  # no stream is larger than its width says
        assert means.square().mean() == pytest.approx(1, abs=1e-3), len(stream)
    wanted = torch.pdist(torch.cat(white, 1))
    # five clips have four components, fewer than the fused frames are wide
    fused = torch.pdist(model.encoder.eval()(clips).frames.mean())
    torch.testing.assert_close(fused / fused.norm(), wanted / wanted.norm(), atol=1e-4, rtol=0)
