"""Every fusion operator and every adapter is exported whole, or refused in one sentence that names it.

That the exported ones compute the same is tried in ``test_hf.py`` and ``test_hf_lm.py``, on the lists compared here.
"""

from types import SimpleNamespace

import pytest
from export.test_hf import FUSIONS, fused
from export.test_hf_lm import ADDITIONS, KINDS
from helpers.config_kinds import list_kinds
from pydantic import TypeAdapter

from uniaudio.commands.export import SUITES, WRITERS, check_onnx
from uniaudio.commands.export_model import HF_LM, MODEL_TARGETS, require_fitting_run
from uniaudio.config.adapters import AdapterConfig, AdapterSettings
from uniaudio.config.fusion import FusionConfig
from uniaudio.config.model_spec import parse_model_spec
from uniaudio.errors import UserError
from uniaudio.export.model_card import write_card
from uniaudio.export.stock_formats import STOCK_FORMATS

STOCK = sorted(STOCK_FORMATS)


def test_every_kind_is_tried():
    assert {settings["kind"] for settings in FUSIONS.values()} == {*list_kinds(FusionConfig)}


def test_everything_that_an_adapter_of_any_kind_can_be_given_is_tried():
    """A new option stands in ``ADDITIONS`` if it adds parts to an adapter, else here."""
    assert {*AdapterSettings.model_fields} == {"hidden", "lr", *ADDITIONS}


def test_every_target_is_tried():
    """``hf`` writes what the suites read; ``onnx`` and the stock formats refuse, see below."""
    assert set(WRITERS) == {"hf", *SUITES, "onnx"}
    assert set(MODEL_TARGETS) == {HF_LM, *STOCK}


def make_config(fusion: object = None, adapter: object = None) -> SimpleNamespace:
    """Return what the checks read of a run's config, up to the encoder."""
    decoder = SimpleNamespace(kind="text", dtype="float32")
    return SimpleNamespace(fusion=fusion, adapter=adapter, decoder=decoder)


@pytest.mark.parametrize("kind", sorted({settings["kind"] for settings in FUSIONS.values()}))
@pytest.mark.parametrize("to", ["onnx", *STOCK])
def test_an_operator_is_refused_where_a_format_has_no_place_for_it(to, kind):
    config = make_config(fusion=TypeAdapter(FusionConfig).validate_python({"kind": kind}))
    with pytest.raises(UserError, match="--to hf") as caught:
        check_onnx(parse_model_spec("run"), config) if to == "onnx" else require_fitting_run(
            config, to, STOCK_FORMATS[to]
        )
    assert "\n" not in str(caught.value)
    assert to == "onnx" or f"fusion.kind is {kind}" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", STOCK)
def test_an_adapter_is_refused_by_the_formats_of_others(to, kind, monkeypatch):
    monkeypatch.setattr("uniaudio.commands.export_model.sketch_encoder", lambda config: None)
    adapter = STOCK_FORMATS[to].adapter
    config = make_config(adapter=TypeAdapter(AdapterConfig).validate_python({"kind": kind}))
    if kind == adapter:
        require_fitting_run(config, to, STOCK_FORMATS[to])
        return
    with pytest.raises(UserError, match=f"adapter.kind {adapter}, but the run has {kind}; .* --to hf-lm$"):
        require_fitting_run(config, to, STOCK_FORMATS[to])


def test_the_card_of_an_encoder_says_what_is_not_in_the_folder(tmp_path):
    facts = {"name": "n", "domains": [], "bases": ["b"], "datasets": [], "audio_hours": None, "results": []}
    texts = []
    for name, steps in (("mowe, prompts", 7), ("mowe", 0)):
        write_card(
            tmp_path, fused(FUSIONS[name], tmp_path), {**facts, "steps": steps, "stages": ["one"]}, "place"
        )
        texts.append((tmp_path / "README.md").read_text())
    for sentence in (
        "adapter and the language model of the run are not part",
        "trained to read the question",
    ):
        assert sentence in texts[0]
        assert sentence not in texts[1]
