"""Encoders of runs: which weights they are, and what is read to build them."""

import pytest
import torch
from helpers.runs import write_run, write_weights

from uniaudio.build.encoders import identify_encoder, pin_models, read_prompt_width
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.train.checkpoint.reading import Checkpoint


def test_averages_that_a_run_does_not_have_are_reported(tmp_path):
    """They may have been there when another run began with them."""
    run = write_run(tmp_path / "run", ["task"])
    write_weights(run, b"weights")
    with pytest.raises(UserError, match=r"step-000400 has no moving averages; leave :ema out$"):
        identify_encoder(EncoderConfig(path=f"{run}:ema"))
    (checkpoint,) = (run / "checkpoints").iterdir()
    (checkpoint / "ema.safetensors").write_bytes(b"averages")
    write_weights(run, b"weights")
    plain, averaged = (identify_encoder(EncoderConfig(path=path)) for path in (str(run), f"{run}:ema"))
    assert plain["sha256"] != averaged["sha256"]


def routed(tmp_path, **fusion):
    """A config of a routed encoder whose decoder cannot be read, and a checkpoint."""
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "config.json").write_text("{}")
    values = {
        "output_dir": "out",
        "encoders": {"a": {"path": "a"}, "b": {"path": "b"}},
        "fusion": {"kind": "mowe", **fusion},
        "decoder": {"path": str(tmp_path / "decoder")},
        "stages": [{"name": "one", "recipe": "none", "steps": 1, "budget": {"audio_seconds": 6}}],
    }
    tensors = {"encoder.dependent.read_prompt.weight": torch.zeros(2, 5)}
    return RunConfig.model_validate(values), Checkpoint(
        tmp_path / "checkpoints" / "step-000001", tensors, {}, {}
    )


def test_the_decoder_is_not_read_for_a_router_that_hears_clips_alone(tmp_path):
    config, checkpoint = routed(tmp_path)
    checkpoint.model.clear()
    assert read_prompt_width(config, checkpoint) is None


def test_a_router_that_reads_questions_is_as_wide_as_its_weights_or_else_the_decoder(tmp_path):
    config, checkpoint = routed(tmp_path, reads_prompt=True)
    assert read_prompt_width(config, checkpoint) == 5
    checkpoint.model.clear()
    with pytest.raises(UserError, match=r"^decoder\.path: the config\.json of .*decoder cannot be read \("):
        read_prompt_width(config, checkpoint)


def test_models_of_the_hub_are_those_of_the_commits_in_the_checkpoint():
    values = {
        "output_dir": "out",
        "encoders": {"a": {"path": "me/a"}, "b": {"path": "me/b", "revision": "v1"}, "c": {"path": "folder"}},
        "fusion": {"kind": "sum"},
        "decoder": {"path": "me/other"},
        "stages": [{"name": "one", "recipe": "none", "steps": 1, "budget": {"audio_seconds": 6}}],
    }
    config = RunConfig.model_validate(values)
    bases = {
        "encoder a": {"path": "me/a", "revision": "a" * 40},
        "encoder b": {"path": "me/b", "revision": "b" * 40},
        "encoder c": {"path": "folder", "sha256": "c" * 64},
        "decoder": {"path": "me/decoder", "revision": "d" * 40},  # the config names another one
    }
    for keep_stated, of_b in ((False, "b" * 40), (True, "v1")):
        pinned = pin_models(config, bases, keep_stated)
        assert [each.revision for each in pinned.encoders.values()] == ["a" * 40, of_b, None]
        assert pinned.decoder.revision is None
    assert pin_models(config, {}) == config
