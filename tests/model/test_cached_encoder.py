"""Encoders that recall frames, against the same encoder on every clip alone."""

import copy
from contextlib import nullcontext

import pytest
import torch
from conftest import tiny_whisper

from uniaudio.feature_cache import FeatureStore, clip_key, look_up_frames
from uniaudio.model.cached_encoder import attach_frame_cache, list_frame_stores
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.fusion.concat_sum_mix import ScalarMix
from uniaudio.model.fusion.encoder import FusedEncoder
from uniaudio.model.fusion.mowe import MoweEncoder
from uniaudio.ragged import Ragged

LENGTHS = (4000, 9000, 2500, 7000, 700)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path))


def whisper(seed=0):
    return WhisperAudioEncoder(tiny_whisper(seed)).eval().requires_grad_(False)


def audio(*lengths):
    rows = []
    for length in lengths or LENGTHS:
        torch.manual_seed(length)
        rows.append(torch.randint(-9000, 9000, (length,), dtype=torch.int16))
    return Ragged.from_rows(rows)


def one_by_one(encoder, clips):
    return [encoder(Ragged.from_rows([row])).frames.values for row in clips.rows()]


class SeenClips:
    """Counts what an encoder hears and keeps what it tells."""

    def __init__(self, encoder, store):
        self.lengths, self.store = [], store
        real = encoder.forward

        def forward(audio, layers=False, masks=None):
            self.lengths.append(audio.lengths.tolist())
            return real(audio, layers=layers, masks=masks)

        encoder.forward = forward
        attach_frame_cache(encoder, store, self.tell)

    def tell(self, store, keys, frames):
        for key, row in zip(keys, frames.rows(), strict=True):
            store.write(key, row)


@torch.no_grad()
def test_hits_and_misses_come_in_the_order_of_the_clips():
    encoder, store = whisper(), FeatureStore("e")
    wanted = one_by_one(encoder, audio())
    seen = SeenClips(encoder, store)
    some = audio(9000, 700)
    encoder(look_up_frames(some, (store,)))
    assert seen.lengths == [[9000, 700]]
    clips = look_up_frames(audio(), (store,))
    assert clips.looked_up == (2, 5)
    frames = encoder(clips).frames
    assert seen.lengths[1:] == [[4000, 2500, 7000]]  # the misses alone, packed
    for row, alone in zip(frames.rows(), wanted, strict=True):
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)
    again = encoder(look_up_frames(audio(), (store,))).frames
    assert len(seen.lengths) == 2  # nothing ran
    assert torch.equal(again.values, frames.values)  # what was computed is what was kept
    assert again.lengths.tolist() == [encoder.num_frames(n) for n in LENGTHS]


@torch.no_grad()
def test_rounded_frames_are_the_same_before_and_after_the_disk():
    encoder, store = whisper(), FeatureStore("e", torch.bfloat16)
    exact = encoder(audio()).frames.values
    SeenClips(encoder, store)
    first = encoder(look_up_frames(audio(), (store,))).frames.values
    second = encoder(look_up_frames(audio(), (store,))).frames.values
    assert torch.equal(first, second)
    assert torch.equal(first, exact.bfloat16().float())
    assert first.dtype == torch.float32
    mixed = encoder(look_up_frames(audio(4000, 3000), (store,))).frames.values
    assert torch.equal(mixed[:13], first[:13])


@torch.no_grad()
def test_layers_masks_and_plain_samples_go_to_the_encoder():
    encoder, store = whisper(), FeatureStore("e")
    seen = SeenClips(encoder, store)
    clips = look_up_frames(audio(), (store,))
    encoder(clips)
    known = look_up_frames(audio(), (store,))
    assert len(encoder(known, layers=True).layers) == 3
    masked = encoder(known, masks=torch.tensor([[0, 0, 2, 9]])).frames.values
    assert not torch.equal(masked, encoder(known).frames.values)
    assert torch.equal(encoder(audio()).frames.values, encoder(known).frames.values)
    assert len(seen.lengths) == 4
    encoder(look_up_frames(audio(), (FeatureStore("somebody else"),)))
    assert len(seen.lengths) == 5


@torch.no_grad()
def test_a_copy_reads_the_cache_with_its_weights():
    encoder = whisper()
    attach_frame_cache(encoder, FeatureStore("e"), print)
    other_run = copy.deepcopy(encoder)
    other_run.whisper.layer_norm.bias += 1
    moved = other_run(audio()).frames.values - encoder(audio()).frames.values
    torch.testing.assert_close(moved, torch.ones_like(moved), atol=1e-4, rtol=0)


def fused():
    torch.manual_seed(0)
    parts = {"base": whisper(), "other": whisper(1)}
    return FusedEncoder(parts, ScalarMix(("base", "other"), (64, 64), 64, "random"), 25).eval()


def mowe():
    torch.manual_seed(0)
    return MoweEncoder({"base": whisper(), "a": whisper(1), "b": whisper(2)}, 25).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "names"), [(fused, ["other"]), (fused, ["base", "other"]), (mowe, ["base", "a", "b"])]
)
def test_parts_of_a_fused_encoder_read_each_their_cache(make, names):
    encoder = make()
    wanted = encoder(audio()).frames.values
    stores = tuple(FeatureStore(name) for name in names)
    seen = [SeenClips(encoder.encoders[name], store) for name, store in zip(names, stores, strict=True)]
    assert list_frame_stores(encoder) == stores
    encoder(look_up_frames(audio(9000, 2500), stores))
    for _ in range(2):
        frames = encoder(look_up_frames(audio(), stores)).frames.values
        torch.testing.assert_close(frames, wanted, atol=1e-5, rtol=0)
    once = [sorted(length for lengths in part.lengths for length in lengths) for part in seen]
    for lengths in once:  # a weak encoder of a MoWE hears only the clips that are sent to it
        assert len(set(lengths)) == len(lengths)
    if make is fused:
        assert once == [sorted(LENGTHS)] * len(names)


@pytest.mark.parametrize("known", [(), (4000, 700), LENGTHS])
def test_whatever_is_known_no_value_of_the_device_is_read(known, monkeypatch):
    """On the meta device nothing has a value, see test_no_waiting.py."""
    encoder, store = whisper(), FeatureStore("e")
    with torch.no_grad():
        for row in audio(*known).rows() if known else ():
            store.write(clip_key(row), encoder(Ragged.from_rows([row])).frames.values)
    clips = look_up_frames(audio(), (store,))
    assert clips.looked_up == (len(known), 5)
    message = []
    attach_frame_cache(encoder, store, lambda store, keys, frames: message.append((keys, frames)))
    linear = torch.nn.Linear(64, 3)
    for module in (encoder, linear):
        module.to("meta")
    # which that device does not have
    monkeypatch.setattr(torch, "autocast", lambda kind, **given: nullcontext())
    with torch.no_grad():
        frames = encoder(clips.to("meta")).frames
    linear(frames.values).sum().backward()
    assert frames.lengths.tolist() == [encoder.num_frames(n) for n in LENGTHS]
    assert linear.weight.grad.is_meta
    assert sum(len(keys) for keys, _ in message) == 5 - len(known)
    assert all(computed.values.is_meta for _, computed in message)
