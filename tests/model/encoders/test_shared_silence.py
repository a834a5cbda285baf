"""Silence that all clips of a batch share, against one written clip by clip and against the padded encoder."""

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F

from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.encoders.shared_silence import SILENCE, SilenceGrid
from uniaudio.model.encoders.whisper import WhisperAudioEncoder, load_whisper
from uniaudio.ragged import Ragged


def make_clip(samples: int) -> torch.Tensor:
    noise = np.random.default_rng(samples).standard_normal(samples) * 3000
    return torch.from_numpy(noise.astype(np.int16))


def pack(*lengths: int) -> Ragged:
    return Ragged.from_rows([make_clip(n) for n in lengths])


def attend(layer, hidden, seen, counts):
    """Apply one stock layer to frames that attend to ``seen``, each of which counts ``counts`` times."""
    attention = layer.self_attn
    query = attention.q_proj(layer.self_attn_layer_norm(hidden))
    seen = layer.self_attn_layer_norm(seen)
    key, value = attention.k_proj(seen), attention.v_proj(seen)
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
        weights = (query[:, part] @ key[:, part].T * attention.head_dim**-0.5).exp() * counts
        heads.append(weights / weights.sum(1, keepdim=True) @ value[:, part])
    hidden = hidden + attention.out_proj(torch.cat(heads, 1))
    return hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))


def encode_by_loops(encoder, samples, stride, reach):
    """Encode one clip, whose mel frames are the encoder's own, with the silence behind it."""
    whisper = encoder.whisper
    mel = encoder.mel(encoder.fill_up(pack(samples))).values
    count = len(mel) // 2
    positions = whisper.embed_positions.weight

    def convolve(frames):
        return F.gelu(whisper.conv2(F.gelu(whisper.conv1(frames.T[None]))))[0].T

    hidden = convolve(mel) + positions[:count]
    cells = [(begin, min(begin + stride, reach)) for begin in range(0, reach, stride)]
    silent = convolve(torch.full((64, mel.shape[1]), SILENCE))[16]
    silence = torch.stack([silent + positions[(begin + end) // 2] for begin, end in cells])
    sizes = torch.tensor([float(end - begin) for begin, end in cells])
    behind = torch.tensor([float(max(0, end - max(begin, count))) for begin, end in cells])
    for layer in whisper.layers:
        seen = torch.cat([hidden, silence])
        hidden = attend(layer, hidden, seen, torch.cat([torch.ones(count), behind]))
        silence = attend(layer, silence, silence, sizes)
    return whisper.layer_norm(hidden)


@pytest.mark.parametrize(
    ("pad_to", "stride", "tail", "keep"),
    [(30, 16, 0, False), (30, 32, 10, False), (2, 7, 3, False), (1.3, 1, 0, False), (30, 16, 25, True)],
)
def test_equals_the_loops(whisper, pad_to, stride, tail, keep):
    encoder = WhisperAudioEncoder(whisper, pad_to, tail, pad_stride=stride, keep_tail=keep).eval()
    lengths = [16_000, 1, 21_000, 48_123]  # shorter and longer than the silence reaches
    with torch.no_grad():
        together = encoder(pack(*lengths), layers=True)
        for row, samples in enumerate(lengths):
            expected = encode_by_loops(encoder, samples, stride, round(pad_to * 50))
            expected = expected[: encoder.num_frames(samples)]
            torch.testing.assert_close(together.frames.rows()[row], expected, atol=2e-6, rtol=0)
    assert all(torch.equal(layer.lengths, together.frames.lengths) for layer in together.layers)


def test_a_silent_frame_replaces_each_position_once():
    grid = SilenceGrid(reach=50, stride=16)  # cells of 16, 16, 16 and 2
    segments = grid.add_to(torch.tensor([5, 20, 50, 60]), torch.device("cpu"))
    places, keys = segments.keys
    assert segments.lengths == (5, 20, 50, 60, 4)
    assert keys.lengths == (5 + 4, 20 + 3, 50, 60, 4)
    counts = [part.exp().round().int().tolist() for part in segments.log_counts.split(keys.lengths)]
    assert [row[n:] for row, n in zip(counts, [5, 20, 50, 60], strict=False)] == [
        [11, 16, 16, 2],
        [12, 16, 2],
        [],
        [],
    ]
    assert counts[-1] == [16, 16, 16, 2]
    assert all(set(row[:n]) == {1} for row, n in zip(counts, [5, 20, 50, 60], strict=False))
    assert places.split(keys.lengths)[1].tolist() == [*range(5, 25), 136, 137, 138]


def test_gradients_reach_the_weights_through_the_silence(whisper):
    whisper.embed_positions.requires_grad_(True)
    encoder = WhisperAudioEncoder(whisper, 30, 2, pad_stride=64)
    encoder(pack(8_000)).frames.values.square().sum().backward()
    reached = whisper.embed_positions.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert reached == [
        *range(27),
        *range(32, 1472, 64),
        1486,
    ]  # the clip with its tail, the middles of the cells


def test_a_clip_of_30_s_sees_no_silence(whisper):
    with torch.no_grad():
        shared = WhisperAudioEncoder(whisper, 30, pad_stride=16).eval()(pack(480_000)).frames.values
        plain = WhisperAudioEncoder(whisper).eval()(pack(480_000)).frames.values
    torch.testing.assert_close(shared, plain, atol=2e-6, rtol=0)


def test_the_setting_needs_pad_to(tmp_path, whisper):
    whisper.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="pad_stride: needs pad_to"):
        load_audio_encoder(EncoderConfig(path=str(tmp_path), pad_stride=16), "encoders.whisper")
    loaded = load_audio_encoder(
        EncoderConfig(path=str(tmp_path), pad_to=30, pad_stride=16), "encoders.whisper"
    )
    assert loaded.pad_stride == 16


@pytest.mark.realmodels
@pytest.mark.realdata
@torch.no_grad()
def test_real_frames_come_close_to_the_padded_ones(realmodels, realdata):
    """Cosine of the frames of spoken digits with those of the same clips padded to 30 s, by Whisper base."""
    files = sorted((realdata / "fsdd_digits").rglob("*.flac"))[:120:12]
    clips = Ragged.from_rows([torch.from_numpy(soundfile.read(file, dtype="int16")[0]) for file in files])

    def encode(**settings):
        return load_whisper(str(realmodels / "whisper-base"), **settings).eval()(clips).frames.values

    padded = encode(pad_to=30)
    cosine = {
        name: F.cosine_similarity(encode(**settings), padded, dim=1).mean().item()
        for name, settings in {
            "none": {},
            "tail": {"tail_frames": 150},
            "shared": {"pad_to": 30, "pad_stride": 16, "tail_frames": 10},
        }.items()
    }
    assert cosine["none"] < 0.75
    assert cosine["tail"] < 0.92
    assert cosine["shared"] > 0.95
