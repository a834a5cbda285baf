"""The tables of encoders in the documentation against the encoders themselves."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import MINIATURES, save_miniature
from helpers.noise import pack, wave

from uniaudio.commands.check_encoder import describe_execution
from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.export.onnx_file import find_stock_module
from uniaudio.model.encoders.feature_extractor import ChunkedAudioEncoder
from uniaudio.model.encoders.registry import FAMILIES, LEFT_OUT, load_audio_encoder
from uniaudio.ragged import Ragged
from uniaudio.train.engines.conflicts import refuse_uneven_calls

DOCS = Path(__file__).parents[3] / "docs"
OF_PARTS = ("", "_encoder", "_thinker", "_audio", "_audio_encoder", "_audio_model")  # ends of their types
EXECUTION = {  # how the column begins, by what check-encoder says; of the others it says more than that
    "packed, no padding": "packed",
    "padded to the longest clip, with masks": "padded and masked",
    "one clip after the other": "one clip after the other",
}


def read_table(page: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of a table by the model types in their first cells, where remarks stand in brackets."""
    lines = iter((DOCS / page).read_text().splitlines())
    assert any(line.startswith(f"| {heading} |") for line in lines), heading
    next(lines)
    rows = {}
    while (line := next(lines)).startswith("|"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows |= dict.fromkeys(re.sub(r" \([^)]*\)", "", cells[0]).split(", "), cells)
    return rows


ROWS = read_table("fusion.md", "`model_type`")
ONNX_ROWS = read_table("export.md", "`model_type`")


def whole(kind: str) -> str:
    """Return the model type of the whole model, as the tables have it."""
    named = [kind.removesuffix(end) for end in OF_PARTS]
    return next(one for one in (*named, f"{named[1]}_ctc") if one in ROWS)


def test_every_model_type_has_a_row_and_no_other_has():
    assert {whole(kind) for kind in FAMILIES} == {kind for kind in ROWS if not kind.startswith("`kind:")}
    assert all(FAMILIES[kind] is FAMILIES[whole(kind)] for kind in FAMILIES)
    assert {*ONNX_ROWS} <= {*FAMILIES}


def test_the_left_out_are_those_of_the_list():
    rows = read_table("fusion.md", "in transformers 5.23, not loaded")
    of_several = {"granite_speech5": {"granite_speech5_ctc", "granite_speech5_encoder"}}
    assert set().union(*(of_several.get(kind, {kind}) for kind in rows)) == {*LEFT_OUT}


def test_every_family_has_a_miniature():
    """Folders of ``uniaudio export`` and Ultravox, which only that writes, have tests of their own."""
    types = {make().config.model_type for make in MINIATURES.values()}
    loaders = {FAMILIES[kind].loader for kind in (*types, "ultravox", "uniaudio")}
    assert loaders == {family.loader for family in FAMILIES.values()}


@pytest.mark.parametrize("name", MINIATURES)
def test_the_row_of_a_family_is_true(name, tmp_path):
    save_miniature(name, tmp_path)
    encoder = load_audio_encoder(EncoderConfig(path=str(tmp_path)), "encoders.a")
    kind = json.loads((tmp_path / "config.json").read_text())["model_type"]
    _, rate, reach, execution = ROWS[whole(kind)]
    assert float(rate) == pytest.approx(encoder.frame_rate, rel=1e-3)
    assert ("no hidden states" in execution) == (len(encoder.layer_dims) == 1)
    said = describe_execution(encoder)
    assert execution.split(";")[0] == EXECUTION[said] if said in EXECUTION else execution != "packed"
    takes_seconds = "chunk_seconds" in FAMILIES[kind].settings
    assert ("chunk_seconds" in reach) == takes_seconds
    if not kind.startswith(("qwen2_5", "qwen3")):  # whose windows are settings of a checkpoint
        assert f"{encoder.reach:g}" in reach
    try:
        is_exported = bool(find_stock_module(encoder))
    except UserError:
        is_exported = False
    assert is_exported == (whole(kind) in ONNX_ROWS)


def count_calls(encoder, *lengths: int) -> Counter:
    """Return how often an encoder calls those of its modules that have parameters, for clips of noise."""
    calls: Counter = Counter()
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
        for name, module in encoder.named_modules()
        if [*module.parameters(recurse=False)]
    ]
    with torch.no_grad():
        encoder(Ragged.from_rows([torch.randn(n) for n in lengths]))
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("name", MINIATURES)
def test_modules_are_called_equally_often_for_any_batch_or_zero3_is_refused(name, tmp_path):
    save_miniature(name, tmp_path)
    encoder = load_audio_encoder(EncoderConfig(path=str(tmp_path)), "encoders.a").eval()
    one, three = count_calls(encoder, 16_000), count_calls(encoder, 16_000, 9_000, 7_777)
    assert one
    assert encoder.calls_by_clip == (one != three)
    refuse_uneven_calls(encoder, "")
    if encoder.calls_by_clip:
        with pytest.raises(UserError, match=r"zero3 all processes .* fsdp2\.yaml$"):
            refuse_uneven_calls(encoder, "zero3")
    else:
        refuse_uneven_calls(encoder, "zero3")


@torch.no_grad()
@pytest.mark.parametrize("name", MINIATURES)
def test_hidden_states_are_kept_only_where_they_are_wanted(name, tmp_path):
    save_miniature(name, tmp_path)
    encoder = load_audio_encoder(EncoderConfig(path=str(tmp_path)), "encoders.a").eval()
    plain, deep = encoder(pack(16_000, 9_000)), encoder(pack(16_000, 9_000), layers=True)
    assert plain.layers is None
    assert len(deep.layers) == len(encoder.layer_dims)
    assert torch.equal(plain.frames.values, deep.frames.values)
    if isinstance(encoder, ChunkedAudioEncoder):
        assert [len(encoder.encode_chunks([wave(16_000)], layers)) for layers in (False, True)] == [
            1,
            len(encoder.layer_dims),
        ]
