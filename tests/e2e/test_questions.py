"""A run whose recipe asks several questions about each clip, with and without shared beginnings."""

import json

import pytest
from helpers.files import several_questions

from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_losses_are_those_without_sharing(tone_run, monkeypatch, kind):
    several_questions(tone_run.parent)
    shared, tokens = [], []
    hidden = TextDecoder.hidden

    def watched(decoder, embeds, prefixes=None):
        shared.append(prefixes is not None)
        tokens.append(len(embeds.values))
        return hidden(decoder, embeds, prefixes)

    monkeypatch.setattr(TextDecoder, "hidden", watched)
    message, counts = {}, {}
    for how in ("on", "off"):
        if how == "off":
            monkeypatch.setattr(AudioLM, "shares_prefixes", False)
        out = tone_run.parent / how
        settings = ["stages.0.recipe=several", f"decoder.attention={kind}", f"output_dir={out}"]
        shared.clear(), tokens.clear()
        assert run_training(load_run(tone_run, [*settings, "train.max_steps=6"]), None) == 0
        assert any(shared) == (how == "on" and kind == "packed")
        message[how] = [row for row in rows_of(out) if "loss" in row]
        counts[how] = sum(tokens)
    assert len(message["on"]) == 6
    assert (counts["on"] < 0.9 * counts["off"]) == (kind == "packed")
    for one, other in zip(message["on"], message["off"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-4)
