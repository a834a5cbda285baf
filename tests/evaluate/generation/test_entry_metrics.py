"""A whole evaluation: batches, orders and shares change nothing, and the figures are those of the answers."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from helpers.figures import assert_same_figures
from rich.console import Console
from transformers import Qwen3Config, Qwen3ForCausalLM

from uniaudio.commands.evaluate import get_row_limit, make_prediction_settings
from uniaudio.commands.forgetting import make_higher_better
from uniaudio.config.evaluation import EvaluateConfig
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.eval_examples import open_examples
from uniaudio.data.jinja import Text
from uniaudio.data.long_clips import LongClips
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import load_recipe
from uniaudio.data.template_file import Scoring
from uniaudio.errors import UserError
from uniaudio.evaluate.generation import predictions
from uniaudio.evaluate.generation.entry_metrics import build_answers_table, evaluate_entry
from uniaudio.evaluate.generation.predictions import (
    PredictionSettings,
    explain_no_row,
    measure_losses,
    tokenize_labels,
)
from uniaudio.evaluate.metrics.challenge import collect_challenge_scores
from uniaudio.evaluate.metrics.classification import (
    compute_label_metrics,
    compute_probabilities,
    compute_ranking,
)
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder


@pytest.fixture
def model_and_set(tone_run, whisper, chat_tokenizer):
    """A model that knows nothing, its chat and an evaluation set of ten tones, one of which is broken.

    With tied tables it would only repeat itself, and with small audio tokens it would not care for the clip.
    """
    (tone_run.parent / "tones" / "33.wav").write_bytes(b"no sound")
    torch.manual_seed(3)
    config = Qwen3Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=len(chat_tokenizer),
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = AudioLM(
        WhisperAudioEncoder(whisper), StackAdapter(64, 50.0, 64), TextDecoder(Qwen3ForCausalLM(config))
    ).eval()
    for parameter in model.adapter.parameters():
        parameter.data *= 20
    entry = load_recipe(str(tone_run.parent / "tone_recipe.yaml")).evaluate[0]
    return model, ChatFormat(chat_tokenizer), open_examples(entry, None)


def settings(**changes):
    return PredictionSettings(**{"max_new_tokens": 8, "batch_seconds": 60.0, **changes})


def test_batches_change_nothing(model_and_set):
    expected = evaluate_entry(*model_and_set, settings())
    assert [item["id"] for item in expected["answers"]] == [
        f"tones/test/{index}.wav" for index in range(30, 40) if index != 33
    ]
    assert expected["examples"] == 9
    assert [row["row"] for row in expected["skipped"]] == ["33.wav"]
    assert len({item["answer"] for item in expected["answers"]}) > 1
    for seconds in (1.0, 4.0):
        assert_same_figures(evaluate_entry(*model_and_set, settings(batch_seconds=seconds)), expected)


def test_shares_put_together_change_nothing(model_and_set, monkeypatch):
    expected = evaluate_entry(*model_and_set, settings())
    parts, counts = [], []
    monkeypatch.setattr(predictions, "world_size", lambda: 3)
    monkeypatch.setattr(predictions, "gather_objects", lambda loaded: parts.append(loaded) or list(parts))
    for index in range(3):
        monkeypatch.setattr(predictions, "rank", lambda index=index: index)
        result = evaluate_entry(*model_and_set, settings(shared=True), counts.append)
    assert [len(part.answered) for part in parts] == [3, 3, 3]
    assert sum(counts) == 10
    assert_same_figures(result, expected)
    parts.clear()
    loss, tokens = 0.0, 0
    for index in range(3):
        monkeypatch.setattr(predictions, "rank", lambda index=index: index)
        loss, tokens = measure_losses(*model_and_set, settings(shared=True)).sum_losses()
    assert loss / tokens == pytest.approx(expected["loss"], abs=1e-5)


def test_the_loss_of_a_closed_set_is_that_of_its_true_answers(model_and_set):
    loss, tokens = measure_losses(*model_and_set, settings()).sum_losses()
    expected = pytest.approx(loss / tokens, abs=1e-5)
    assert evaluate_entry(*model_and_set, settings())["loss"] == expected
    without = evaluate_entry(*model_and_set, settings(labels=False))
    assert without["loss"] == expected
    assert "labels" not in without
    assert without["answers"][0].keys() == {"id", "reference", "answer", "right"}


def test_lists_of_labels_are_scored_label_by_label(model_and_set):
    model, format, examples = model_and_set
    template = examples.entry.template
    both = replace(
        template,
        target=Text("{{ 'high; low' if label == 'high' else 'low' }}", "target"),
        multilabel=True,
        scoring=Scoring(metric="map"),
    )
    single = evaluate_entry(*model_and_set, settings())
    examples = replace(examples, entry=replace(examples.entry, templates=(both,)))
    result = evaluate_entry(model, format, examples, settings())
    loss, tokens = measure_losses(model, format, examples, settings()).sum_losses()
    assert result["loss"] == pytest.approx(loss / tokens, abs=1e-5)
    assert {item["reference"] for item in result["answers"]} == {"high; low", "low"}
    # the same likelihoods as alone: every clip has the low one, so only the high one ranks anything
    assert result["labels"]["names"] == ["low", "high"]
    assert np.sum(result["labels"]["confusion"]) == result["examples"]
    confidence = [item["confidence"] for item in result["answers"]]
    assert confidence == pytest.approx([item["confidence"] for item in single["answers"]], abs=1e-5)
    right = [item["label"] in item["reference"].split("; ") for item in result["answers"]]
    assert result["labels"]["accuracy"] == pytest.approx(np.mean(right))
    table = build_answers_table({"tones": result})
    assert f"{result['labels']['map']:.3f}" in str(list(table.columns[4].cells))


def test_figures_of_the_labels_are_those_of_the_answers(model_and_set):
    result = evaluate_entry(*model_and_set, settings())
    labels, answers = result["labels"], result["answers"]
    assert labels["names"] == ["low", "high"]
    right = [item["label"] == item["reference"] for item in answers]
    assert labels["accuracy"] == pytest.approx(np.mean(right))
    assert np.sum(labels["confusion"]) == len(answers)
    for i, row in enumerate(labels["confusion"]):
        for j, count in enumerate(row):
            pair = (labels["names"][i], labels["names"][j])
            assert count == sum((item["reference"], item["label"]) == pair for item in answers)
    assert all(0.5 <= item["confidence"] <= 1 for item in answers)
    assert labels["interval"][0] <= labels["accuracy"] <= labels["interval"][1]
    assert set(labels["intervals"]) == {"accuracy", "uar", "macro_f1", "map", "ece"}
    assert result["interval"] == result["intervals"]["accuracy"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_probabilities_of_labels():
    scores = np.log([[0.2, 0.2, 0.1], [0.01, 0.02, 0.3]])
    result = compute_probabilities(scores, [2, 4, 2], "sum")
    np.testing.assert_allclose(result, [[0.4, 0.4, 0.2], [1 / 33, 2 / 33, 30 / 33]])
    # divided by the tokens, the longer of two equal labels is likelier
    mean = compute_probabilities(scores, [2, 4, 2], "mean")
    np.testing.assert_allclose(
        mean[0], np.array([0.2**0.5, 0.2**0.25, 0.1**0.5]) / (0.2**0.5 + 0.2**0.25 + 0.1**0.5)
    )


def test_figures_by_hand_with_several_right_labels():
    chances = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.1, 0.4], [0.2, 0.3, 0.5]])
    truth = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], bool)
    figures = compute_label_metrics(["a", "b", "c"], chances, truth)
    assert figures["accuracy"] == 0.75
    assert figures["confusion"] == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    # a: first of the ranking; b: clip 1 first, clip 0 third, behind clip 3; c: the first two
    assert figures["map"] == pytest.approx((1 + (1 + 2 / 3) / 2 + 1) / 3)
    assert figures["ece"] == pytest.approx((0.3 + 0.4 + abs(1 - 2 * 0.5)) / 4)


def test_clips_that_differ_by_rounding_rank_as_equals():
    chances = np.array([[0.3, 0.7], [0.3 + 1e-7, 0.7 - 1e-7], [0.3 - 1e-7, 0.7 + 1e-7], [0.31, 0.69], [1, 0]])
    ranks = compute_ranking(chances)[:, 0]
    assert len(set(ranks[:3])) == 1
    assert ranks[2] < ranks[3] < ranks[4] < np.inf
    # what is sure keeps its order
    sure = compute_ranking(np.array([[1 - 1e-9], [1 - 2e-9], [1e-9], [2e-9]]))[:, 0]
    assert list(sure.argsort()) == [2, 3, 1, 0]


def test_a_set_without_usable_rows_has_no_score(model_and_set, tone_run):
    model, format, entry = model_and_set
    for index in range(30, 40):
        (tone_run.parent / "tones" / f"{index}.wav").write_bytes(b"no sound")
    result = evaluate_entry(model, format, entry, settings())
    reason = "no row of split 'test' can be used (broken audio)"
    assert result["undefined"] == {"accuracy": reason}
    assert (result["score"], result["right"], result["loss"], result["metrics"]) == (None, None, None, {})
    assert (result["examples"], result["rows"], len(result["skipped"]), result["answers"]) == (0, 10, 10, [])
    assert "labels" not in result
    console = Console(width=200)
    with console.capture() as capture:
        console.print(build_answers_table({"tones:tone": result}))
    text = " ".join(capture.get().split())
    assert f"tones:tone: accuracy is undefined: {reason}" in text
    assert "0 of 10 rows" in text
    challenge = collect_challenge_scores({"tones:tone": result})
    assert (challenge["overall"], challenge["scores"]) == (None, {})
    assert challenge["not_scored"] == {"tones:tone": "accuracy: no row can be used"}
    losses = measure_losses(model, format, entry, settings())
    assert (losses.questions, losses.sum_losses(), explain_no_row(entry, losses)) == ([], (0, 0), reason)


def test_a_label_that_is_markup_is_refused(chat_tokenizer):
    with pytest.raises(UserError, match=r"labels: special token in text .*write the label differently"):
        tokenize_labels(["low", "<|im_end|>"], ChatFormat(chat_tokenizer))


def test_everything_empty_after_normalising(model_and_set, tone_run):
    model, format, _ = model_and_set
    template = {
        "task": "marks",
        "domain": "sound",
        "inputs": ["label"],
        "prompts": ["<audio>Which?"],
        "target": "{{ '!' if label else '?' }}",
        "scoring": {"metric": "wer", "normalize": "words"},
    }
    (tone_run.parent / "marks.yaml").write_text(dump_yaml(template))
    line = {"dataset": "tones", "template": "marks"}
    recipe = {"recipe": "marked", "train": [line], "evaluate": [line]}
    (tone_run.parent / "marked.yaml").write_text(dump_yaml(recipe))
    entry = load_recipe(str(tone_run.parent / "marked.yaml")).evaluate[0]
    result = evaluate_entry(model, format, open_examples(entry, None), settings())
    reason = "all right answers are empty after normalizing (scoring.normalize: words)"
    assert result["undefined"] == {"wer": reason, "cer": reason}
    assert (result["score"], result["interval"], result["metrics"], result["intervals"]) == (
        None,
        None,
        {},
        {},
    )
    assert (result["examples"], len(result["answers"])) == (9, 9)
    assert make_higher_better(result) is None
    console = Console(width=200)
    with console.capture() as capture:
        console.print(build_answers_table({"tones:marks": result}))
    text = " ".join(capture.get().split())
    assert f"tones:marks: wer is undefined: {reason}" in text
    assert text.count("–") == 1


def test_captions_of_a_single_row_are_reported_without_cider(model_and_set):
    pytest.importorskip("aac_metrics", reason="the extra `captions` is not installed")
    model, format, examples = model_and_set
    captions = replace(examples.entry.template, labels=None, scoring=Scoring(metric="cider"))
    one = open_examples(replace(examples.entry, templates=(captions,)), 1)
    result = evaluate_entry(model, format, one, settings())
    assert (result["examples"], result["score"], list(result["undefined"])) == (1, None, ["cider"])
    assert list(result["metrics"]) == ["meteor", "bleu"]


def test_the_table_shows_intervals_rows_and_cut_answers():
    result = {"metric": "wer", "score": 0.5, "right": 0.25, "loss": 1.0, "examples": 4, "rows": 320}
    result |= {"skipped": [{}], "cut": 2, "max_new_tokens": 64}
    new = {**result, "interval": [0.25, 0.75], "labels": {"accuracy": 0.75, "interval": [0.5, 1.0]}}
    console = Console(width=80)
    with console.capture() as capture:
        console.print(build_answers_table({"old": result, "esc50:environmental_sound": new}))
    text = capture.get()
    assert "0.250–0.750" in text
    assert "0.500–1.000" in text
    assert text.count("–") == 2
    assert "4 of 320 rows" in text
    assert "1 skipped" in text
    assert "2 of 4 answers were cut off after 64 tokens; raise evaluate.max_new_tokens" in " ".join(
        text.split()
    )


@pytest.mark.parametrize("metric", ["accuracy", "uar"])
def test_a_closed_set_has_averages_over_classes_in_json_and_table(model_and_set, metric):
    model, format, examples = model_and_set
    template = examples.entry.template
    scored = replace(template, scoring=Scoring(metric=metric))
    examples = replace(examples, entry=replace(examples.entry, templates=(scored,)))
    result = evaluate_entry(model, format, examples, settings())
    answers = result["answers"]
    truth = [item["reference"] for item in answers]
    for figures, guess in (
        (result["metrics"], [item["answer"].strip().lower() for item in answers]),
        (result["labels"], [item["label"] for item in answers]),
    ):
        recall_by_class = [
            np.mean([one == name for true, one in zip(truth, guess, strict=True) if true == name])
            for name in ("low", "high")
        ]
        assert figures["uar"] == pytest.approx(np.mean(recall_by_class))
    assert result["score"] == result["metrics"][metric]
    assert set(result["intervals"]) == {"accuracy", "uar", "macro_f1"}
    table = build_answers_table({"tones": result})
    cells = [next(iter(column.cells)) for column in table.columns]
    other = "uar" if metric == "accuracy" else "accuracy"
    lines = dict(zip(cells[1].split("\n"), cells[2].split("\n"), strict=True))
    assert lines[metric] == f"{result['score']:.3f}"
    assert lines[other] == f"{result['metrics'][other]:.3f}"
    assert lines["macro_f1"] == f"{result['metrics']['macro_f1']:.3f}"
    assert cells[4].startswith(f"{result['labels'][metric]:.3f}")


def test_whose_number_of_rows_holds(model_and_set):
    entry = model_and_set[2].entry
    stated = replace(entry, max_examples=320)
    for config, override, line, limit in (
        (None, None, entry, None),
        (200, None, entry, 200),
        (200, None, stated, 320),
        (None, None, stated, 320),
        (200, 5, stated, 5),
    ):
        run = SimpleNamespace(evaluate=EvaluateConfig(max_examples=config))
        assert get_row_limit(run, line, override) == limit


def test_answers_that_are_cut_are_reported(model_and_set):
    cut = evaluate_entry(*model_and_set, settings(max_new_tokens=1))
    assert cut["cut"] == cut["examples"] == 9
    assert cut["rows"] == 10
    assert all(len(item["answer"].split()) <= 1 for item in cut["answers"])


def test_long_sets_are_read_in_parts(model_and_set, monkeypatch):
    expected = evaluate_entry(*model_and_set, settings())
    monkeypatch.setattr(predictions, "CHUNK_SECONDS", 1.0)
    counts = []
    assert_same_figures(evaluate_entry(*model_and_set, settings(), counts.append), expected)
    assert sum(counts) == 10
    assert measure_losses(*model_and_set, settings()).sum_losses() == pytest.approx(
        measure_losses(*model_and_set, settings(batch_seconds=1.0)).sum_losses()
    )


def test_scoring_keys_of_a_template_are_checked():
    assert Scoring(metric="bleu", normalize="whisper", likelihood="mean").separator == ";"
    with pytest.raises(ValueError, match="metric"):
        Scoring(metric="fense")


def cut_examples(examples, metric="accuracy", **changes):
    """The same set with clips cut into windows of 0.3 s, scored by another metric."""
    entry, template = examples.entry, examples.entry.template
    template = replace(template, scoring=template.scoring.model_copy(update={"metric": metric}), **changes)
    windows = LongClips("windows", 0.3)
    return replace(examples, entry=replace(entry, templates=(template,), long_clips=windows))


def test_a_long_clip_has_one_answer_and_says_those_of_its_windows(model_and_set, monkeypatch):
    model, format, examples = model_and_set
    advances = []
    whole = evaluate_entry(
        model, format, cut_examples(examples), settings(batch_seconds=0.5), advances.append
    )
    assert (whole["examples"], whole["rows"], len(whole["skipped"])) == (9, 10, 1)
    assert sum(advances) == 10  # rows, not windows
    long = [answer for answer in whole["answers"] if "windows" in answer]
    assert 0 < len(long) < 9
    for answer in long:
        starts = [window["start"] for window in answer["windows"]]
        assert starts == pytest.approx([0.3 * i for i in range(len(starts))])
        assert answer["windows"][-1]["end"] in np.round(0.3 + 0.05 * np.arange(9), 3)
        assert "#t=" not in answer["id"]
        assert answer["answer"] in [window["answer"] for window in answer["windows"]]
        assert answer["label"] in ("low", "high")
    assert_same_figures(
        evaluate_entry(model, format, cut_examples(examples), settings(batch_seconds=2.0)), whole
    )
    monkeypatch.setattr(predictions, "CHUNK_SECONDS", 0.5)  # windows of a clip come apart
    assert_same_figures(evaluate_entry(model, format, cut_examples(examples), settings()), whole)


def test_a_row_of_which_a_window_is_broken_counts_in_no_figure(model_and_set, tone_run):
    """Its first window can be answered: against the same set whose row cannot be read at all."""
    model, format, examples = model_and_set
    cut, clip = cut_examples(examples), tone_run.parent / "tones" / "35.wav"
    samples, rate = soundfile.read(clip, dtype="float32")
    samples[round(0.6 * rate)] = np.nan  # in the second window
    soundfile.write(clip, samples, rate, subtype="FLOAT")

    def measure():
        results = [evaluate_entry(model, format, cut, settings(labels=labels)) for labels in (True, False)]
        figures = [{k: v for k, v in result.items() if k != "skipped"} for result in results]
        skipped = [[row["row"] for row in result["skipped"]] for result in results]
        return figures, skipped, list(measure_losses(model, format, cut, settings()).sum_losses())

    torn, skipped, losses = measure()
    assert [["33.wav" in row or "35.wav" in row for row in rows] for rows in skipped] == [[True, True]] * 2
    clip.write_bytes(b"no sound")
    broken, _, expected_losses = measure()
    assert_same_figures(torn, broken)
    assert losses == pytest.approx(expected_losses)


def test_windows_whose_answers_are_joined_have_no_loss(model_and_set):
    model, format, examples = model_and_set
    short = evaluate_entry(model, format, cut_examples(examples, "wer", labels=None), settings())
    assert short["loss"] > 0  # of the clips that are no longer than a window
    entry = replace(cut_examples(examples, "wer", labels=None).entry, long_clips=LongClips("windows", 0.1))
    cut = evaluate_entry(model, format, replace(examples, entry=entry), settings())
    assert cut["loss"] is None
    assert cut["answers"][0]["answer"] == " ".join(
        window["answer"].strip() for window in cut["answers"][0]["windows"] if window["answer"].strip()
    )
    assert measure_losses(model, format, replace(examples, entry=entry), settings()).sum_losses() == (0.0, 0)
    build_answers_table({"set": cut})


def test_a_process_without_rows_refuses_nothing_that_others_can_use(model_and_set, monkeypatch):
    """Ten rows in windows whose answers are joined, so that there is no loss either, and eleven processes."""
    model, format, examples = model_and_set
    cut = cut_examples(examples, "wer", labels=None)
    cut = replace(cut, entry=replace(cut.entry, long_clips=LongClips("windows", 0.1)))
    parts = []
    monkeypatch.setattr(predictions, "world_size", lambda: 11)
    monkeypatch.setattr(predictions, "gather_objects", lambda loaded: parts.append(loaded) or list(parts))
    for index in (0, 10):
        monkeypatch.setattr(predictions, "rank", lambda index=index: index)
        assert measure_losses(model, format, cut, settings(shared=True)).sum_losses() == (0.0, 0)
    assert len(parts[0].questions) > 1
    assert parts[1].questions == []


@pytest.mark.parametrize(
    ("reach", "longest", "seconds"),
    [(30.0, None, 30.0), (2.0, None, 30.0), (10.0, 45.0, 45.0), (None, 20.0, 600.0)],
)
def test_windows_are_as_long_as_the_encoder_reaches(reach, longest, seconds):
    config = SimpleNamespace(evaluate=EvaluateConfig(), data=SimpleNamespace(max_seconds=longest))
    model = SimpleNamespace(encoder=SimpleNamespace(reach=reach))
    loaded = SimpleNamespace(config=config, model=model)
    assert make_prediction_settings(loaded).window_seconds == seconds
    assert make_prediction_settings(loaded, shared=True).shared
