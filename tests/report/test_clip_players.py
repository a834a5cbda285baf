"""Clips: located by id, cut, small, and never more than a page may hold."""

import base64
import io
import json

import numpy as np
import pytest
import soundfile
from conftest import tone

from uniaudio.data.recipe import load_recipe
from uniaudio.report.clip_players import SoundBudget, find_examples, spread_examples


@pytest.fixture
def entry(tone_run):
    return load_recipe(str(tone_run.with_name("tone_recipe.yaml"))).evaluate[0]


def decoded(player):
    before, _, sound = player.uri.partition(",")
    assert before == "data:audio/mpeg;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(sound)))


def test_a_player_holds_the_first_seconds_of_the_same_sound():
    samples = tone(6.0, 440, 0)
    player = SoundBudget().add_player("clip", samples)
    samples_back, rate = decoded(player)
    assert (rate, player.seconds, player.whole) == (16000, 4.0, 6.0)
    assert 4.0 <= len(samples_back) / rate < 4.2  # the codec adds a little silence
    spectrum = np.abs(np.fft.rfft(samples_back[: 2 * rate]))
    assert spectrum.argmax() / 2 == pytest.approx(440, abs=1)
    assert len(player.uri) < 40_000


def test_a_used_up_budget_takes_no_more_and_counts():
    budget = SoundBudget(most_bytes=30_000)
    players = [budget.add_player(str(i), tone(4.0, 440, i)) for i in range(3)]
    assert [player is not None for player in players] == [True, False, False]
    assert budget.left_out == 2
    assert budget.used <= 30_000


def test_examples_are_located_by_their_ids_among_the_evaluation_rows(entry):
    ids = ["tones/test/33.wav", "tones/test/30.wav", "tones/train/1.wav", "tones/test/none.wav"]
    examples = find_examples(entry, ids)
    assert set(examples) == {"tones/test/33.wav", "tones/test/30.wav"}
    assert examples["tones/test/33.wav"].answer == "low"


def test_a_clip_that_is_gone_is_missing(entry, tone_run):
    (tone_run.parent / "tones" / "31.wav").unlink()
    assert set(find_examples(entry, ["tones/test/31.wav", "tones/test/32.wav"])) == {"tones/test/32.wav"}


def test_examples_come_from_all_over_a_sorted_split(entry, tone_run):
    manifest = tone_run.parent / "tones" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows.sort(key=lambda row: (row["label"], row["audio"]))
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = [answer for _, answer in spread_examples(entry, 4, 30.0)]
    assert examples == ["high", "high", "low", "low"]
    assert len(list(spread_examples(entry, 100, 30.0))) == 10
    assert len(list(spread_examples(entry, 100, 0.5))) < 10  # longer clips are skipped
