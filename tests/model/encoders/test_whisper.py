"""The packed Whisper encoder against the stock one, and against itself alone."""

import json

import numpy as np
import pytest
import torch
from helpers.checkpoints import save_miniature
from helpers.noise import clip, pack
from safetensors.torch import save_file
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder, load_whisper
from uniaudio.ragged import Ragged

SECONDS = [0.1, 1, 9.99, 10, 30, 31, 95]


def stock_features(samples: int) -> torch.Tensor:
    wave = clip(samples).astype(np.float32) / 32768
    return WhisperFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt").input_features


@torch.no_grad()
def test_equals_the_stock_encoder_at_30_s(whisper):
    out = WhisperAudioEncoder(whisper).eval()(pack(16000, 480_000), layers=True)
    stock = whisper(stock_features(480_000), output_hidden_states=True)
    torch.testing.assert_close(out.frames.rows()[1], stock.last_hidden_state[0], atol=1e-6, rtol=0)
    assert len(out.layers) == len(stock.hidden_states)
    for ours, theirs in zip(out.layers, stock.hidden_states, strict=True):
        torch.testing.assert_close(ours.rows()[1], theirs[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_pad_to_30_gives_the_stock_behaviour(whisper):
    padded = WhisperAudioEncoder(whisper, pad_to=30).eval()
    frames = padded(pack(16_001)).frames.values
    stock = whisper(stock_features(16_001)).last_hidden_state[0]
    assert len(frames) == 51
    torch.testing.assert_close(frames, stock[:51], atol=1e-6, rtol=0)
    exact = WhisperAudioEncoder(whisper).eval()(pack(16_001)).frames.values
    assert (exact - stock[:51]).abs().max() > 1e-3  # another function, by design


@torch.no_grad()
def test_a_clip_alone_equals_the_clip_in_any_batch(whisper):
    encoder = WhisperAudioEncoder(whisper).eval()
    lengths = [16_000, 1, 48_123, 480_000, 500_000, 320]
    together = encoder(pack(*lengths)).frames.rows()
    for samples, frames in zip(lengths, together, strict=True):
        alone = encoder(pack(samples)).frames.values
        torch.testing.assert_close(frames, alone, atol=2e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"pad_to": 30}, {"tail_frames": 64}])
def test_num_frames_is_the_real_count(whisper, settings):
    encoder = WhisperAudioEncoder(whisper, **settings).eval()
    lengths = [round(s * 16000) for s in SECONDS]
    frames = encoder(pack(*lengths)).frames
    assert (
        frames.lengths.tolist()
        == [encoder.num_frames(n) for n in lengths]
        == [5, 50, 500, 500, 1500, 1550, 4750]
    )


@torch.no_grad()
def test_chunks_beyond_30_s_see_only_themselves(whisper):
    encoder = WhisperAudioEncoder(whisper).eval()
    samples = torch.from_numpy(clip(600_000))
    whole = encoder(Ragged.from_rows([samples])).frames.values
    first = encoder(Ragged.from_rows([samples[:480_000]])).frames.values
    rest = encoder(Ragged.from_rows([samples[480_000:]])).frames.values
    torch.testing.assert_close(whole, torch.cat([first, rest]), atol=2e-6, rtol=0)


def test_gradients_equal_the_stock_path_at_30_s(whisper):
    encoder = WhisperAudioEncoder(whisper)
    weight = torch.randn(1500, 64)
    (encoder(pack(480_000)).frames.values * weight).sum().backward()
    packed = {name: p.grad.clone() for name, p in whisper.named_parameters() if p.grad is not None}
    whisper.zero_grad()
    (whisper(stock_features(480_000)).last_hidden_state[0] * weight).sum().backward()
    for name, parameter in whisper.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(packed[name], parameter.grad, atol=2e-4, rtol=2e-4)


def test_full_and_encoder_only_checkpoints_load_the_same(tmp_path):
    config = WhisperConfig(
        d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2
    )
    full = WhisperForConditionalGeneration(config)
    full.save_pretrained(tmp_path / "full")
    full.model.encoder.save_pretrained(tmp_path / "encoder")
    one, other = (load_whisper(str(tmp_path / name)).whisper.state_dict() for name in ("full", "encoder"))
    assert all(torch.equal(one[key], other[key]) for key in full.model.encoder.state_dict())
    random = load_whisper(f"random:{tmp_path / 'full'}").whisper.state_dict()
    assert not torch.equal(random["conv1.weight"], one["conv1.weight"])
    again = load_whisper(f"random:{tmp_path / 'full'}").whisper.state_dict()
    assert torch.equal(random["conv1.weight"], again["conv1.weight"])


def test_wrong_folders_are_named(tmp_path, whisper, qwen):
    with pytest.raises(UserError, match="there is no folder"):
        load_whisper(str(tmp_path / "nothing"))
    qwen.save_pretrained(tmp_path / "qwen")
    with pytest.raises(UserError, match=r"the encoder's tensors do not fit: missing \['conv1\.bias'"):
        load_whisper(str(tmp_path / "qwen"))
    whisper.save_pretrained(tmp_path / "cut")
    tensors = {k: v for k, v in whisper.state_dict().items() if k != "layer_norm.weight"}
    save_file(tensors, tmp_path / "cut" / "model.safetensors")
    with pytest.raises(UserError, match=r"missing \['layer_norm.weight'\]"):
        load_whisper(str(tmp_path / "cut"))
    whisper.save_pretrained(tmp_path / "bins")
    config = tmp_path / "bins" / "config.json"
    config.write_text(config.read_text().replace('"num_mel_bins": 80', '"num_mel_bins": 128'))
    with pytest.raises(UserError, match=r"its weights take 80 mel bins, but its config\.json says 128"):
        load_whisper(str(tmp_path / "bins"))


def test_a_clip_beyond_the_positions_is_one_sentence():
    sizes = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    encoder = WhisperAudioEncoder(WhisperEncoder(WhisperConfig(**sizes, max_source_positions=100)))
    assert len(encoder(pack(32_000, 9_000)).frames.values) == 100 + 29
    with pytest.raises(UserError, match=r"are those of 2 s, but a clip is longer; set data\.max_seconds: 2$"):
        encoder(pack(32_001))


def test_no_layer_is_left_out_in_training(tmp_path):
    """Processes would leave out different ones, and wait for each other's gradients."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    WhisperEncoder(WhisperConfig(**sizes, encoder_layerdrop=0.9)).save_pretrained(tmp_path)
    encoder = load_whisper(str(tmp_path))
    frames = encoder.eval()(pack(9_000)).frames.values
    assert torch.equal(encoder.train()(pack(9_000)).frames.values, frames)


@pytest.mark.realdata
def test_real_weights_equal_the_stock_encoder(realdata):
    folder = realdata / "weights" / "whisper_tiny_en_encoder_hf"
    encoder = load_whisper(str(folder)).eval()
    stock = WhisperEncoder.from_pretrained(folder, attn_implementation="sdpa").eval()
    with torch.no_grad():
        ours = encoder(pack(480_000)).frames.values
        theirs = stock(stock_features(480_000)).last_hidden_state[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pad_to", [None, 3.0])
def test_a_kept_tail_is_what_the_encoder_makes_of_silence_behind_the_clip(whisper, pad_to):
    samples = {700: 3 + 4, 3 * 320: 3 + 4, 480_000 - 640: 1498 + 2, 480_000: 1500, 480_000 + 320: 1501 + 4}
    clips = [torch.randn(count) for count in samples]
    encoder = WhisperAudioEncoder(whisper, pad_to, tail_frames=4, keep_tail=True).eval()
    plain = WhisperAudioEncoder(whisper, pad_to).eval()
    assert [encoder.num_frames(count) for count in samples] == list(samples.values())
    with torch.no_grad():
        frames = encoder(Ragged.from_rows(clips)).frames
        silent = [torch.cat([clip, torch.zeros(-len(clip) % 320 + 4 * 320)]) for clip in clips[:2]]
        expected = plain(Ragged.from_rows(silent)).frames
    assert frames.lengths.tolist() == list(samples.values())
    for row in range(2):
        torch.testing.assert_close(frames.rows()[row], expected.rows()[row], atol=1e-5, rtol=0)


def test_a_tail_of_no_frames_cannot_be_kept(whisper):
    with pytest.raises(UserError, match="keep_tail: needs tail_frames"):
        WhisperAudioEncoder(whisper, keep_tail=True)


@pytest.mark.parametrize(
    "change",
    [{"d_model": "wide"}, {"encoder_attention_heads": 7}, {"num_mel_bins": -1}, {"encoder_layers": None}],
)
def test_a_config_that_is_no_whisper_is_one_sentence(tmp_path, change):
    save_miniature("whisper", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=r"^here: .*whisper encoder \(.*\); see its config.json$") as caught:
        load_audio_encoder(EncoderConfig(path=str(tmp_path)), "here")
    assert "\n" not in str(caught.value)
