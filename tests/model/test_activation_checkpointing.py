"""Layers that recompute: the same numbers, and less that is kept."""

import copy
import gc
import weakref

import pytest
import torch
from conftest import tiny_qwen
from helpers.checkpoints import save_miniature

from uniaudio.build.encoders import load_part
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.trust import NO_TRUST
from uniaudio.errors import UserError
from uniaudio.model.activation_checkpointing import find_recomputable_layers
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.fusion.encoder import FusedEncoder
from uniaudio.model.fusion.gate import GateFusion
from uniaudio.ragged import Ragged

PACKED = ("whisper", "qwen2_audio", "qwen3_omni", "wav2vec2", "hubert", "wavlm", "glmasr")
KINDS = (*PACKED, "ast", "w2v_bert", "parakeet", "moonshine")
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout")


def loaded(kind, folder):
    save_miniature(kind, folder)
    return load_audio_encoder(EncoderConfig(path=str(folder)), "encoder")


def with_dropout(encoder):
    """Let every layer drop a tenth of its activations, in training."""
    for part in encoder.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.1
        for name in DROPOUTS:
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.1)
    return encoder.double().train()


def clips():
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0)).double() / 10
    return Ragged(noise, torch.tensor([7000, 9000]))


def gradients(encoder, kept=None):
    """Return the gradients of every parameter; ``kept`` collects the bytes that the graph holds."""

    def pack(tensor):
        if kept is not None:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    encoder.zero_grad()
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoded = encoder(clips(), layers=True)
        total = sum(state.values.square().sum() for state in encoded.layers)
    total.backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def assert_the_same(encoder):
    before, after = {}, {}
    expected = gradients(encoder, before)
    assert encoder.can_recompute()
    encoder.recompute()
    result = gradients(encoder, after)
    assert result.keys() == expected.keys()
    assert len(result) > 10
    for name, gradient in expected.items():
        assert gradient.dtype == torch.float64
        torch.testing.assert_close(result[name], gradient, rtol=1e-12, atol=1e-12)
    assert sum(after.values()) < sum(before.values())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_change(kind, tmp_path):
    """With dropout on, so that the second forward has to drop the same."""
    assert_the_same(with_dropout(loaded(kind, tmp_path)))


def test_gradients_of_a_fused_encoder_do_not_change(tmp_path):
    encoders = {kind: loaded(kind, tmp_path / kind) for kind in ("whisper", "wav2vec2")}
    dims = [encoder.dim for encoder in encoders.values()]
    operator = GateFusion(list(encoders), dims, 24)
    assert_the_same(with_dropout(FusedEncoder(encoders, operator, 25.0)))


def test_nothing_is_run_twice_without_a_graph(tmp_path):
    encoder = loaded("whisper", tmp_path).eval()
    seen = []
    encoder.whisper.layers[0].fc1.register_forward_hook(lambda *message: seen.append(message))
    encoder.recompute()
    with torch.no_grad():
        encoder(clips().with_values(clips().values.float()))
    assert len(seen) == 1


def test_bfloat16_recomputes_under_its_autocast(tmp_path):
    encoder = loaded("whisper", tmp_path).train()
    audio = clips().with_values(clips().values.float())

    def gradient():
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            total = encoder(audio).frames.values.square().sum()
        total.backward()
        return encoder.whisper.layers[0].fc1.weight.grad.clone()

    expected = gradient()
    encoder.recompute()
    assert torch.equal(gradient(), expected)


def test_an_encoder_that_cannot_is_refused(tmp_path):
    save_miniature("encodec", tmp_path)
    settings = EncoderConfig(path=str(tmp_path), recompute=True)
    with pytest.raises(UserError, match=r"encoders\.codec\.recompute: CodecAudioEncoder has no layers"):
        load_part(settings, "encoders.codec", 0, NO_TRUST)


def test_a_decoder_whose_layers_recompute_is_freed_without_the_garbage_collector():
    decoder = TextDecoder(tiny_qwen())
    kinds = [type(layer) for layer in find_recomputable_layers(decoder.lm)]
    decoder.recompute()
    decoder.recompute()  # a second time changes nothing
    layers = find_recomputable_layers(copy.deepcopy(decoder).lm)
    assert [type(layer).__name__ for layer in layers] == [kind.__name__ for kind in kinds]
    assert all(isinstance(layer, kind) for layer, kind in zip(layers, kinds, strict=True))
    parts = [weakref.ref(part) for part in decoder.modules()]
    gc.disable()
    try:
        del decoder
        assert len(parts) > 10
        assert [part() for part in parts if part() is not None] == []
    finally:
        gc.enable()
