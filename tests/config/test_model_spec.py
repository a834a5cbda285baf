"""Options behind a MODEL: what they mean, for which encoder, and what is refused."""

import pytest

from uniaudio.config.encoders import LISTENING, EncoderConfig
from uniaudio.config.model_spec import ModelSpec, parse_model_spec, split_options, write_model_spec
from uniaudio.errors import UserError
from uniaudio.model.encoders.registry import FAMILIES, HF_AUTO


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("openai/whisper-base", ModelSpec("openai/whisper-base")),
        ("openai/whisper-base?pad_to=30", ModelSpec("openai/whisper-base", {"pad_to": 30.0})),
        ("random:w?tail_frames=10&pad_to=2.5", ModelSpec("random:w", {"tail_frames": 10, "pad_to": 2.5})),
        ("runs/x:ema?pad_to=null", ModelSpec("runs/x:ema", {"pad_to": None})),
        ("me/w?revision=0123&kind=whisper", ModelSpec("me/w", {"revision": "0123", "kind": "whisper"})),
        (
            "runs/x?a.pad_to=3&b.tail_frames=1",
            ModelSpec("runs/x", {}, {"a": {"pad_to": 3.0}, "b": {"tail_frames": 1}}),
        ),
    ],
)
def test_a_model_is_taken_apart(text, spec):
    assert parse_model_spec(text) == spec


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "w?tail_frame=25",
            r"w\?tail_frame=25: a model has no option 'tail_frame' \(did you mean 'tail_frames'",
        ),
        (
            "w?lr=1e-3",
            "no option 'lr'; known: pad_to, pad_stride, tail_frames, keep_tail, pool, masked_padding, "
            "chunk_seconds, frame_rate, kind, revision$",
        ),
        ("w?pad_to=0", "pad_to: input should be greater than 0, got 0"),
        ("w?pad_to=long", "pad_to: input should be a valid number, got 'long'"),
        ("w?tail_frames=2.5", "tail_frames: input should be a valid integer, got 2.5"),
        ("w?tail_frames=-1", "tail_frames: input should be greater than or equal to 0"),
        ("w?pad_to", "write pad_to=VALUE"),
        ("w?pad_to=1&pad_to=2", "pad_to is given twice"),
        ("?pad_to=1", "a path or a name must come before the question mark"),
    ],
)
def test_what_cannot_be_an_option_is_named(text, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_model_spec(text)


@pytest.mark.parametrize("rate", [50.0, 100 / 3, 1e-7, 16000 / 441])
def test_a_written_option_is_the_same_number_again(rate):
    settings = EncoderConfig(path="w", kind="remote", frame_rate=rate)
    assert parse_model_spec(write_model_spec("w", settings)).options["frame_rate"] == rate


def test_a_folder_with_a_question_mark_is_a_folder(tmp_path):
    folder = tmp_path / "what?pad_to=30"
    folder.mkdir()
    for text in (f"{folder}", f"random:{folder}", f"{folder}:ema"):
        assert split_options(text) == (text, "")
    assert parse_model_spec(f"{folder}?pad_to=2") == ModelSpec(str(folder), {"pad_to": 2.0})


def test_options_of_a_run_are_for_its_encoder_or_for_one_by_its_name():
    one = {"whisper": EncoderConfig(path="w", tail_frames=5, lr=1e-3)}
    changed = ModelSpec("runs/x", {"pad_to": 30.0, "tail_frames": 0}).configure_run(one)
    assert changed == {"whisper": EncoderConfig(path="w", pad_to=30.0, lr=1e-3)}
    two = one | {"wav": EncoderConfig(path="v")}
    changed = parse_model_spec("runs/x?wav.chunk_seconds=5").configure_run(two)
    assert (changed["whisper"], changed["wav"].chunk_seconds) == (two["whisper"], 5.0)
    with pytest.raises(
        UserError,
        match=r"has the encoders whisper, wav; write the option with a name, such as whisper\.pad_to",
    ):
        parse_model_spec("runs/x?pad_to=3").configure_run(two)
    with pytest.raises(UserError, match=r"no encoder 'wisper' .did you mean 'whisper'"):
        parse_model_spec("runs/x?wisper.pad_to=3").configure_run(two)
    with pytest.raises(UserError, match="is a run, whose config states revision; leave revision out"):
        parse_model_spec("runs/x?revision=main").configure_run(one)


def test_a_model_that_is_no_run_has_one_encoder_without_a_name():
    settings = parse_model_spec("me/w?pad_to=3&revision=v1").configure_model(trust_remote_code=True)
    assert settings == EncoderConfig(path="me/w", pad_to=3.0, revision="v1", trust_remote_code=True)
    with pytest.raises(UserError, match=r"write pad_to, not whisper\.pad_to"):
        parse_model_spec("me/w?whisper.pad_to=3").configure_model()


def test_settings_are_written_as_they_are_read():
    settings = EncoderConfig(path="w", pad_to=2.5, tail_frames=3, lr=1.0, revision="main")
    text = write_model_spec("w", settings)
    assert text == "w?pad_to=2.5&tail_frames=3&revision=main"
    assert parse_model_spec(text).configure_model() == settings.model_copy(
        update={"lr": EncoderConfig(path="w").lr}
    )
    assert write_model_spec("w", EncoderConfig(path="w")) == "w"
    assert (
        write_model_spec("w", EncoderConfig(path="w", tail_frames=3), pad_to=30.0)
        == "w?tail_frames=3&pad_to=30"
    )


def test_every_setting_of_a_family_is_an_option():
    families = [*FAMILIES.values(), HF_AUTO]
    taken = {name for family in families for name in (*family.settings, *family.pretrained_with)}
    assert taken - {"trust_remote_code"} == set(LISTENING)
