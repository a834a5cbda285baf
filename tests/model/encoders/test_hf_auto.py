"""Models whose code lives in their folder, like Dasheng: only when the user says so."""

import json
import re

import pytest
import torch
from helpers.checkpoints import save_miniature
from helpers.remote_model import save_remote_model
from safetensors.torch import load_file, save_file
from transformers import (
    DacConfig,
    DacFeatureExtractor,
    DacModel,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextModel,
    Wav2Vec2FeatureExtractor,
)

from uniaudio.checks.encoder_contract import check_contract
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.trust import Trust
from uniaudio.errors import UserError
from uniaudio.model.encoders.hf_auto import find_hidden_states, round_rate
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.encoders.weights import load_pretrained
from uniaudio.model.model_hash import hash_model, hash_source_code
from uniaudio.ragged import Ragged


@pytest.fixture
def folder(tmp_path, fresh_model_code):
    save_remote_model(tmp_path / "little")
    return tmp_path / "little"


def load(folder, **settings):
    allowed = Trust(remote_code=settings.get("trust_remote_code", False))
    return load_audio_encoder(EncoderConfig(path=str(folder), **settings), "encoders.a", trust=allowed)


def ran(folder):
    return list(folder.parent.rglob("was_run"))


def test_code_of_a_repository_is_not_run_unless_allowed(folder):
    with pytest.raises(
        UserError, match="comes with its own Python code; read it, and give --trust-remote-code"
    ):
        load(folder)
    assert not ran(folder)


def test_an_error_without_a_message_is_named_by_its_class(tmp_path):
    class Silent:
        @classmethod
        def from_pretrained(cls, folder, **settings):
            raise OSError

    with pytest.raises(UserError, match=r"cannot be loaded as Silent \(OSError\)"):
        load_pretrained(Silent, tmp_path, None, None)


def test_it_keeps_the_contract_once_allowed(folder):
    encoder = load(folder, trust_remote_code=True)
    assert ran(folder)
    assert (encoder.dim, encoder.frame_rate, encoder.layer_dims) == (12, 25.0, (12,))
    assert [(f.name, f.seen) for f in check_contract(encoder) if not f.holds] == []
    tensors = encoder.model.state_dict()
    wave = torch.rand(3_300)
    frames = encoder(Ragged.from_rows([wave])).frames.values
    assert len(frames) == 6  # five whole frames, and the last one again for the rest
    levels = torch.stack([wave[640:1280].abs().mean(), wave[640:1280].std(), wave[640:1280].amax()])
    torch.testing.assert_close(frames[1], tensors["line.weight"] @ levels + tensors["line.bias"])
    torch.testing.assert_close(frames[5], frames[4])


def test_the_code_of_a_folder_is_part_of_what_a_model_is_known_by(folder):
    """Frames and embeddings are stored under the first hash; checkpoints hold the second."""

    def take(place=folder):
        encoder = load(place, trust_remote_code=True)
        return hash_model(encoder), hash_source_code(encoder)

    code = folder / "modeling_little.py"
    code.write_text(
        f"from .little_scale import SCALE\n{code.read_text()}".replace("self.line(", "SCALE * self.line(")
    )
    scale = folder / "little_scale.py"
    scale.write_text("SCALE = 1.0\n")
    first = take()
    assert take() == first
    for file in (code, scale):
        before = file.read_text()
        file.write_text(before.replace("SCALE = 1.0", "SCALE = 2.0").replace("SCALE *", "SCALE +"))
        assert all(now != known for now, known in zip(take(), first, strict=True)), file
        file.write_text(before)
        assert take() == first
    (folder / "convert.py").write_text("print('runs once, when the weights are made')\n")
    assert take() == first
    assert take(folder.rename(folder.with_name("elsewhere"))) == first


def test_models_of_transformers_bring_no_code(tmp_path):
    save_miniature("wav2vec2", tmp_path)
    assert hash_source_code(load(tmp_path), object()) == ""


def test_a_rate_that_does_not_fit_is_reported(folder):
    with pytest.raises(UserError, match=r"gave 25 frames for 1\.00 s, but 50 are expected at 50 per second"):
        load(folder, trust_remote_code=True, frame_rate=50.0)(Ragged.from_rows([torch.rand(16_000)]))
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**config, "hop": 500}))
    with pytest.raises(UserError, match="set frame_rate"):
        load(folder, trust_remote_code=True)
    assert load(folder, trust_remote_code=True, frame_rate=32.0).frame_rate == 32


def test_settings_of_another_family_are_refused(folder):
    with pytest.raises(UserError, match=r"encoders\.a\.pad_to: a little encoder has no such setting"):
        load(folder, trust_remote_code=True, pad_to=10)


def test_whose_code_it_is_is_reported(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["auto_map"] = {name: f"someone/else--{place}" for name, place in config["auto_map"].items()}
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"comes with its own Python code \(that of someone/else\); read it"):
        load(folder)
    del config["auto_map"]
    file.write_text(json.dumps({**config, "model_type": "wav2vec2"}))
    with pytest.raises(UserError, match="comes with its own Python code; read it"):
        load(folder, kind="remote")  # the extractor's alone
    extractor = folder / "preprocessor_config.json"
    stored = {"feature_extractor": json.loads(extractor.read_text())}
    extractor.unlink()
    (folder / "processor_config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="comes with its own Python code; read it"):
        load(folder, kind="remote")
    assert not ran(folder)


def test_a_missing_tensor_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["line.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing: \['line\.bias'\]"):
        load(folder, trust_remote_code=True)


@pytest.mark.parametrize("mask", [False, True])
def test_a_model_with_hidden_states_gives_them(mask, tmp_path):
    """A model of transformers itself; its hidden states are those of the stock model on the clip alone."""
    stock = save_miniature("wav2vec2", tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=mask)
    extractor.save_pretrained(tmp_path)
    encoder = load(tmp_path, kind="remote").eval()
    assert (encoder.frame_rate, encoder.layer_dims) == (50, (32, 32, 32))
    samples = torch.randn(16_000)
    with torch.no_grad():
        wanted = stock(samples[None], output_hidden_states=True).hidden_states
        layers = encoder(Ragged.from_rows([torch.randn(4_000), samples]), layers=True).layers
    for ours, theirs in zip(layers, wanted, strict=True):
        assert theirs.shape[1] == 49  # one less than stated, so the last stands twice
        torch.testing.assert_close(ours.rows()[1], torch.cat([theirs[0], theirs[0, -1:]]), atol=2e-6, rtol=0)
    assert not encoder.model.config.apply_spec_augment  # whose masks are of numpy's generator
    torch.manual_seed(0)
    encoder.train()  # without skipped layers, whose hidden states would be missing
    for _ in range(20):
        assert len(encoder(Ragged.from_rows([samples]), layers=True).layers) == 3


def save_dac(folder):
    """A codec whose model does not take what its extractor makes."""
    torch.manual_seed(0)
    sizes = {"encoder_hidden_size": 8, "decoder_hidden_size": 16, "codebook_size": 16, "codebook_dim": 4}
    config = DacConfig(**sizes, downsampling_ratios=[8, 8], n_codebooks=2)
    DacModel(config).save_pretrained(folder)
    DacFeatureExtractor(sampling_rate=16_000, hop_length=64).save_pretrained(folder)


def save_speech_to_text(folder):
    """A model that wants the beginning of a text with every clip."""
    torch.manual_seed(0)
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    Speech2TextModel(Speech2TextConfig(**sizes, **heads, vocab_size=20)).save_pretrained(folder)
    Speech2TextFeatureExtractor().save_pretrained(folder)


@pytest.mark.parametrize(
    ("save", "sentence"),
    [
        (
            save_dac,
            r"encoders\.a: DacModel gives no frames of a clip alone \(.*padding_mask.*\); use another model: the only "
            r"supported codecs are encodec and mimi, or an encoder class of your own \(module:Class\)",
        ),
        (
            save_speech_to_text,
            r"encoders\.a: Speech2TextModel gives no frames of a clip alone \(.*decoder_input_ids.*\); use another "
            r"model: the nearest is whisper, or an encoder class of your own \(module:Class\)",
        ),
    ],
)
def test_a_model_without_frames_is_refused_with_what_to_use(save, sentence, tmp_path):
    save(tmp_path)
    with pytest.raises(UserError) as caught:
        load(tmp_path, kind="remote")
    assert re.fullmatch(sentence, str(caught.value)), str(caught.value)


def test_features_in_the_place_of_time_are_no_frames(folder):
    """There are 100 of them, as there are frames of 25 a second in 4 s."""
    code, config = folder / "modeling_little.py", json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "width": 100}))
    save_file(
        {"line.weight": torch.randn(100, 3), "line.bias": torch.randn(100)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    code.write_text(
        code.read_text().replace("self.line(input_values)", "self.line(input_values).transpose(1, 2)")
    )
    with pytest.raises(
        UserError,
        match=r"LittleModel gives no frames: its output has 100 rows of 100 values for 4 s of sound and 100 of 50 for "
        r"half of it; use another model",
    ):
        load(folder, trust_remote_code=True)


def test_frames_are_found_in_what_a_model_gives():
    frames, other, short = torch.randn(1, 7, 4), torch.randn(1, 7, 4), torch.randn(1, 3, 4)
    pooled, logits = torch.randn(1, 4), torch.randn(1, 7, 9)
    for output in (
        frames,
        (frames, pooled),
        [pooled, frames],
        {"logits": logits, "embeddings": frames},
        {"logits": logits, "hidden_states": frames},
        {"hidden_states": other, "last_hidden_state": frames},
    ):
        (result,) = find_hidden_states(output, "Model")
        assert torch.equal(result, frames[0])
    states = find_hidden_states({"hidden_states": (short, pooled, other, frames), "logits": logits}, "Model")
    assert [len(state) for state in states] == [3, 7, 7]
    assert torch.equal(states[-1], frames[0])
    with pytest.raises(UserError, match="Model gives no frames"):
        find_hidden_states({"logits": logits, "pooler_output": pooled, "hidden_states": ()}, "Model")


def test_rates_are_those_that_models_have():
    assert [round_rate(rate, "Model") for rate in (12.75, 25.0, 40.25, 49.75, 74.75, 100.25)] == [
        12.5,
        25,
        40,
        50,
        75,
        100,
    ]
    with pytest.raises(
        UserError, match=r"Model gives 33 frames per second; if that is right, set frame_rate"
    ):
        round_rate(33.0, "Model")
