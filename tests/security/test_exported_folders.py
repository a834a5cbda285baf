"""What the config.json of somebody's exported folder may name: listed classes and plain values, nothing else."""

import importlib
import json

import pytest

from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders import exported
from uniaudio.model.encoders.registry import FAMILIES, load_audio_encoder
from uniaudio.model.init_args import InitArgsModule

WHISPER = "transformers.models.whisper.modeling_whisper:WhisperEncoder"


def exported_folder(folder, description):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "uniaudio", "encoder": description}))
    return str(folder)


def load(path):
    return load_audio_encoder(EncoderConfig(path=path), path)


@pytest.mark.parametrize(
    "place",
    [
        "uniaudio.model.decoder:load_decoder",
        "uniaudio.model.encoders.hf_auto:load_remote",
        "uniaudio.model.model_files:find_model_folder",
        "uniaudio.model.encoders.registry:importlib.import_module",
        "uniaudio.model.encoders.whisper:WhisperEncoder",
        "os:system",
        "subprocess:run",
        "",
        7,
        ["uniaudio.model.fusion.encoder:FusedEncoder"],
    ],
)
def test_only_listed_parts_are_made(tmp_path, place):
    hostile = {"path": str(tmp_path), "trust_remote_code": True}
    path = exported_folder(tmp_path / "model", {"part": place, "given": hostile})
    with pytest.raises(UserError, match="is not a class that exported models consist of"):
        load(path)


@pytest.mark.parametrize(
    "place",
    ["transformers:pipeline", "transformers.dynamic_module_utils:get_class_from_dynamic_module", "os:system"],
)
@pytest.mark.parametrize("key", ["stock", "extractor"])
def test_only_listed_classes_of_transformers_are_made(tmp_path, place, key):
    description = {key: place, "config": place, "values": {"model": str(tmp_path)}, "attention": "sdpa"}
    with pytest.raises(UserError, match="not a class of transformers"):
        load(exported_folder(tmp_path / "model", description))


def test_attention_is_none_of_the_hub(tmp_path):
    description = {"stock": WHISPER, "values": {}, "attention": "somebody/kernel"}
    with pytest.raises(UserError, match="attention somebody/kernel is none of eager, sdpa"):
        load(exported_folder(tmp_path / "model", description))


@pytest.mark.parametrize(
    "description", [None, 7, "text", [], {"mapping": []}, {"mapping": 3}, {"part": None}]
)
def test_other_shapes_of_descriptions_are_refused(tmp_path, description):
    with pytest.raises(UserError, match=r"describes no known encoder|describes no encoder|is not a class"):
        load(exported_folder(tmp_path / "model", description))


def test_an_argument_that_a_part_does_not_have_is_refused(tmp_path):
    part = {
        "part": "uniaudio.model.encoders.whisper:WhisperAudioEncoder",
        "given": {"trust_remote_code": True},
    }
    with pytest.raises(UserError, match=r"describes no known encoder .*trust_remote_code"):
        load(exported_folder(tmp_path / "model", part))


def test_every_part_of_the_package_is_listed_or_abstract():
    """A new encoder, operator or adapter that is not listed could be exported and not be read back."""
    for family in FAMILIES.values():
        importlib.import_module(f"uniaudio.model.encoders.{family.module}")
    importlib.import_module("uniaudio.build.fusion")
    importlib.import_module("uniaudio.build.adapter")
    abstract = {
        "AudioEncoder",
        "ChunkedAudioEncoder",
        "TowerAudioEncoder",
        "FusionOperator",
        "CompositeEncoder",
        "Adapter",
        "GroupingAdapter",
        "FrameStacker",
        "LinearBridge",  # of Whisper's own decoder, whose runs are exported as encoders alone
    }
    listed = {exported.find_part_class(f"uniaudio.somewhere:{name}") for name in exported.PARTS}

    def made_of(kind):
        return {sub for direct in kind.__subclasses__() for sub in {direct, *made_of(direct)}}

    known = {kind for kind in made_of(InitArgsModule) if kind.__module__.startswith("uniaudio.")}
    assert {kind.__name__ for kind in known - listed} <= abstract


def test_nothing_is_imported_because_a_file_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "marker_module.py").write_text("open('ran', 'w')\nclass Encoder: ...\n")
    for key in ("part", "stock", "extractor"):
        description = {key: "marker_module:Encoder", "given": {}, "values": {}, "attention": None}
        with pytest.raises(UserError):
            load(exported_folder(tmp_path / "model", description))
    assert not (tmp_path / "ran").exists()
