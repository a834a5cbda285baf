"""Suites from their file to their scores, on generated tones and a tiny encoder."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import tiny_whisper, tone
from transformers import ASTFeatureExtractor, BertConfig, BertModel, BertTokenizerFast

from uniaudio.build.encoders import load_encoder
from uniaudio.commands import probe as probing
from uniaudio.commands.probe import run_probe
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.audio import ADVICE, decode
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import decode_clips
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.embedding import embed_clips
from uniaudio.evaluate.probing import task_embeddings
from uniaudio.evaluate.probing.finite_embeddings import find_broken_clips
from uniaudio.evaluate.probing.held_probes import probe_held
from uniaudio.evaluate.probing.labelled_folder import hold_folders
from uniaudio.evaluate.probing.lost_classes import LostClass, UnmeasurableTaskError, describe_lost_classes
from uniaudio.evaluate.probing.suite import load_suite
from uniaudio.evaluate.probing.suite_table import build_suite_tables
from uniaudio.evaluate.probing.task_answers import list_labels
from uniaudio.evaluate.probing.task_embeddings import Embedded, crop_clip, embed_task
from uniaudio.evaluate.probing.task_rows import hash_contents, read_task
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.model_hash import hash_model
from uniaudio.ragged import Ragged
from uniaudio.tiny.checkpoints import MAKERS, save_model
from uniaudio.types import Encoded


@pytest.fixture
def tones(tone_run: Path, monkeypatch) -> Path:
    """The folder of ``tone_run`` with more columns in the manifest, a suite, and a cache and folder of its own."""
    root = tone_run.parent
    monkeypatch.setenv("UNIAUDIO_CACHE", str(root / "cache"))
    monkeypatch.chdir(root)
    manifest = root / "tones" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["fold"] = number % 3
        row["tags"] = [row["label"], "long" if number % 9 > 4 else "short"]
        row["events"] = [{"onset": 0.0, "offset": 0.2 + 0.02 * (number % 5), "label": row["label"]}]
        row["text"] = [f"a {row['label']} tone", f"it sounds {row['label']}"]
    write_manifest(root, rows)
    return root


def write_manifest(root: Path, rows: list[dict]) -> None:
    (root / "tones" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def manifest_rows(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "tones" / "manifest.jsonl").read_text().splitlines()]


def write_suite(root: Path, tasks: dict, **keys) -> str:
    tasks = {
        name: task if task is None else {"dataset": "tones", "domain": "sound", **task}
        for name, task in tasks.items()
    }
    (root / "own.yaml").write_text(dump_yaml({"suite": "own", **keys, "tasks": tasks}))
    return "own.yaml"


def tiny_bert(folder: Path) -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "low", "high", "tone", "it", "sounds"]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


def the_task(root: Path, **task):
    suite = load_suite(write_suite(root, {"tones": task}))
    return read_task("tones", *suite.tasks["tones"])


def encoder(seed: int = 0) -> WhisperAudioEncoder:
    return WhisperAudioEncoder(tiny_whisper(seed)).eval()


def test_a_sample_of_the_clips_is_probed(tones):
    whole, rows, again = the_task(tones), the_task(tones, max_clips=4), the_task(tones, max_clips=4)
    assert {part: len(members) for part, members in rows.parts.items()} == {"train": 4, "test": 4}
    assert rows.numbers.tolist() == again.numbers.tolist() != list(range(8))
    assert [whole.answers[whole.numbers.tolist().index(n)] for n in rows.numbers] == list(rows.answers)
    assert len(the_task(tones, max_clips=10_000).answers) == len(whole.answers)


def test_a_class_that_the_sample_leaves_out_of_training(tones):
    rows = manifest_rows(tones)
    for number, row in enumerate(rows):
        row["label"] = str(number % 30)  # of which the test split has ten
    write_manifest(tones, rows)
    message = r"no test label, such as '\d', occurs in its training rows; raise max_clips, or leave it out"
    with pytest.raises(UserError, match=message):
        the_task(tones, max_clips=1)


def test_folds_are_the_same_number_with_and_without_a_point(tones):
    """A gap in a table makes floats of its numbers."""
    rows = manifest_rows(tones)
    for row in rows[::2]:
        row["fold"] = float(row["fold"])
    write_manifest(tones, rows)
    assert {part: len(members) for part, members in the_task(tones, folds="fold").parts.items()} == {
        "0": 14,
        "1": 13,
        "2": 13,
    }


def test_every_kind_of_task_from_file_to_scores(tones):
    name = write_suite(
        tones,
        {
            "tone": {},
            "folds": {"folds": "fold", "weight": 5},
            "tags": {"kind": "multilabel", "column": "tags", "domain": "music"},
            "events": {"kind": "frame", "frame": {"resolution": 0.1}, "batch": 4, "epochs": 40},
            "onsets": {"kind": "frame", "frame": {"metric": "onset_f1"}, "batch": 4},
            "texts": {"kind": "retrieval", "domain": "speech", "batch": 32, "epochs": 3},
        },
        text_model=tiny_bert(tones / "bert"),
    )
    hearing = tiny_whisper()
    with torch.no_grad():  # at random start the positions drown the sound
        for convolution in (hearing.conv1, hearing.conv2):
            convolution.weight *= 10
    hearing.save_pretrained(tones / "hearing")
    both = [str(tones / "hearing"), f"random:{tones / 'whisper'}"]
    results = {
        protocol: run_probe(models, (), name, protocol, tones / f"{protocol}.json", 1)
        for protocol, models in (("masked", both), ("xares", both[:1]))
    }
    for protocol, result in results.items():
        models = result["models"]
        assert json.loads((tones / f"{protocol}.json").read_text()) == result
        assert (result["suite"], result["protocol"], result["seeds"]) == ("own", protocol, 1)
        assert models == both[: len(models)]
        facts = result["tasks"]
        assert {name: entry["metric"] for name, entry in facts.items()} == {
            "tone": "accuracy",
            "folds": "accuracy",
            "tags": "mAP",
            "events": "segment_f1",
            "onsets": "onset_f1",
            "texts": "recall@1",
        }
        assert (facts["tone"]["train"], facts["tone"]["test"], facts["tone"]["weight"]) == (30, 10, 10)
        assert (facts["folds"]["folds"], facts["folds"]["weight"]) == (3, 5)
        assert facts["tone"]["license"] == "CC0-1.0"
        assert len({entry["data_sha256"] for entry in facts.values()}) == 1
        for task, entry in result["scores"].items():
            probes = {"linear", "knn"} if protocol == "xares" else {"linear", "mlp", "knn"}
            assert set(entry[models[0]]) == (probes if task in ("tone", "folds") else {"linear"})
            assert all(0 <= s["mean"] <= 1 for scores in entry.values() for s in scores.values())
        linear = result["average"][models[0]]["linear"]
        weights = {name: entry["weight"] for name, entry in facts.items()}
        means = {name: entry[models[0]]["linear"]["mean"] for name, entry in result["scores"].items()}
        assert linear["all"] == pytest.approx(
            sum(weights[task] * means[task] for task in means) / sum(weights.values())
        )
        assert linear["music"] == pytest.approx(means["tags"])
    masked = results["masked"]["scores"]
    assert masked["tone"][both[0]]["linear"]["mean"] == 1.0  # low and high tones are easily told apart
    assert masked["folds"][both[0]]["knn"]["mean"] > 0.9
    assert masked["events"][both[0]]["linear"]["mean"] > 0.6


def test_layers_end_with_the_frames(tones):
    name = write_suite(tones, {"tone": {"probes": ["knn"]}})
    model = str(tones / "whisper")
    result = run_probe([model], suite=name, seeds=1, layers=True)
    states = result["layers"]["tone"][model]
    assert len(states) == len(encoder().layer_dims) > 1
    assert states[-1] == result["scores"]["tone"][model]
    alone = run_probe([model], suite=name, seeds=1)
    assert alone["scores"]["tone"][model] == states[-1]


def test_masked_embeddings_are_means_over_real_frames(tones, monkeypatch):
    """Clip by clip, with a limit that cuts the set in the middle."""
    monkeypatch.setattr(task_embeddings, "PENDING_SECONDS", 5.0)
    rows = the_task(tones)
    embedded = embed_task(encoder(), "m", rows, "d", "masked")[1][0]
    clips = [decode(row.audio[0].source, 60, "") for row in rows.rows()]
    assert len(clips) == 40
    for vector, clip in zip(embedded.values, clips, strict=True):
        np.testing.assert_allclose(vector.numpy(), embed_clips(encoder(), [clip])[0], atol=1e-4)


@pytest.mark.parametrize(("size", "dtype"), [(1.0, torch.float16), (1e5, torch.float32)])
def test_frames_of_any_size_are_finite(tones, size, dtype):
    """Those of a single clip may be large; float16 ends at 65,504."""
    model = encoder()
    compute = model.forward

    def forward(audio, layers=False, masks=None):
        frames = compute(audio, layers=layers, masks=masks).frames.rows()
        rows = [row * (size if n == 11200 else 1) for n, row in zip(audio.lengths, frames, strict=True)]
        return Encoded(Ragged.from_rows(rows))

    model.forward = forward
    rows = the_task(tones, kind="frame")
    digest = hash_contents(rows.rows())
    for _ in range(2):  # made, and from the cache
        usable, (embedded,) = embed_task(model, f"{size}", rows, digest, "masked")
        assert embedded.values.dtype == dtype
        assert find_broken_clips(usable, [embedded]) == {}
        clip = decode_clips(list(rows.rows())[LONGEST[0]], 60)[0]
        wanted = model(Ragged.from_rows([torch.from_numpy(clip)])).frames.values.detach()
        ours = embedded.values.split(embedded.lengths.tolist())[LONGEST[0]].float()
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3 * size)
        assert (ours.abs().max() > 65504) == (size > 1)


def test_xares_embeddings_pad_batches_of_their_part_in_order(tones):
    rows = the_task(tones, encode=4)
    embedded = embed_task(encoder(), "m", rows, "d", "xares")[1][0]
    clips = [decode(row.audio[0].source, 60, "") for row in rows.rows()]
    assert len(rows.parts["train"]) == 30  # the last batch of the part holds two clips, none of the test part
    for part in rows.parts.values():
        for start in range(0, len(part), 4):
            members = part[start : start + 4]
            longest = max(len(clips[i]) for i in members)
            for i in members:
                padded = np.pad(clips[i], (0, longest - len(clips[i])))
                frames = encoder()(Ragged.from_rows([torch.from_numpy(padded)])).frames
                torch.testing.assert_close(embedded.values[i], frames.values.mean(0), atol=1e-4, rtol=1e-4)


def test_crops_are_whole_and_short_clips_are_padded():
    clip = np.arange(1, 16001, dtype=np.int16)
    assert [len(piece) for piece in crop_clip(clip, 0.3)] == [4800] * 3
    assert (np.concatenate(crop_clip(clip, 0.3)) == clip[:14400]).all()
    (padded,) = crop_clip(clip, 1.5)
    assert (len(padded), padded[16000:].any()) == (24000, False)
    assert crop_clip(clip, None)[0] is clip


def test_pieces_of_crops_keep_the_label_of_their_clip(tones):
    rows = the_task(tones, crop=0.2, encode=8)
    embedded = embed_task(encoder(), "m", rows, "d", "xares")[1][0]
    counts = [len(decode(row.audio[0].source, 60, "")) // 3200 for row in rows.rows()]
    assert embedded.owner.tolist() == [row for row, count in enumerate(counts) for _ in range(count)]
    pieces = embedded.pieces_of(rows.parts["test"])
    assert set(embedded.owner[pieces].tolist()) == set(rows.parts["test"].tolist())


def test_events_are_not_looked_for_in_frames_without_the_order_of_time(tones):
    model, rows = encoder(), the_task(tones, kind="frame", column="events")
    assert embed_task(model, "m", rows, "d", "masked")[1][0].values.shape[1] == model.dim
    model.follows_time = False
    with pytest.raises(
        UserError, match=f"^{rows.name}: events have times, but .*; use one with `output: sum`$"
    ):
        embed_task(model, "m", rows, "d", "masked")


def test_embeddings_are_made_once_and_again_for_another_weight_or_clip(tones, monkeypatch):
    made = []
    real = task_embeddings.encode_batches
    monkeypatch.setattr(task_embeddings, "encode_batches", lambda *a: made.append(1) or real(*a))
    model = encoder()

    def embed(model, **task):
        rows = the_task(tones, **task)
        return embed_task(model, hash_model(model), rows, hash_contents(rows.rows()), "masked")[1][0]

    first = embed(model)
    again = embed(encoder())
    assert len(made) == 1
    assert (first.values == again.values).all()
    embed(model, column="fold")  # another question about the same clips
    assert len(made) == 1
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    embed(model)
    assert len(made) == 2
    soundfile.write(tones / "tones" / "3.wav", tone(0.4, 555, 3), 16000)
    changed = embed(encoder())
    assert len(made) == 3
    assert (changed.values != first.values).any(1).nonzero().flatten().tolist() == [3]


def test_a_damaged_cache_file_is_made_again(tones):
    rows = the_task(tones)
    first = embed_task(encoder(), "m", rows, "d", "masked")[1][0]
    (file,) = (tones / "cache" / "embeddings" / "m").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert (embed_task(encoder(), "m", rows, "d", "masked")[1][0].values == first.values).all()


def test_a_cache_that_cannot_be_written_costs_no_embeddings(tones, monkeypatch, capsys):
    rows = the_task(tones)
    first = embed_task(encoder(), "m", rows, "d", "masked")[1][0]
    (tones / "file").touch()
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tones / "file" / "cache"))
    assert torch.equal(embed_task(encoder(), "m", rows, "d", "masked")[1][0].values, first.values)
    assert f"embeddings of {rows.name} are not kept: " in capsys.readouterr().err


def test_the_digest_of_a_model_knows_weights_and_settings_and_no_path(tones):
    assert hash_model(encoder()) == hash_model(encoder())
    assert hash_model(encoder()) != hash_model(encoder(seed=1))
    other = encoder()
    other.pad_to = 123.0
    assert hash_model(other) != hash_model(encoder())
    shutil.copytree(tones / "whisper", tones / "copy")
    here, copy = (load_encoder(str(tones / name)) for name in ("whisper", "copy"))
    assert hash_model(here) == hash_model(copy)


def test_the_digest_of_a_model_knows_its_feature_extractor(tmp_path):
    save_model(MAKERS["ast"], tmp_path)
    plain = hash_model(load_encoder(str(tmp_path)))
    ASTFeatureExtractor().save_pretrained(tmp_path)  # the same, now in a file
    assert hash_model(load_encoder(str(tmp_path))) == plain
    ASTFeatureExtractor(mean=-5.0).save_pretrained(tmp_path)
    assert hash_model(load_encoder(str(tmp_path))) != plain


def break_longest_clips(model: WhisperAudioEncoder) -> WhisperAudioEncoder:
    """Let an encoder give NaN for clips of 0.7 s."""
    compute = model.forward

    def forward(audio, layers=False, masks=None):
        lengths = audio.lengths.tolist()
        frames = compute(audio, layers=layers, masks=masks).frames.rows()
        rows = [row * float("nan") if n == 11200 else row for n, row in zip(lengths, frames, strict=True)]
        return Encoded(Ragged.from_rows(rows))

    model.forward = forward
    return model


LONGEST = (8, 17, 26, 35)  # the clips of 0.7 s
NOT_FINITE = "non-finite embedding"


def give_models(monkeypatch, models: dict[str, WhisperAudioEncoder]) -> None:
    """Let the command load these models by their names."""
    monkeypatch.setattr(probing, "check_model", lambda spec, trust: None)
    monkeypatch.setattr(probing, "add_references", lambda specs, trust, wanted: (specs, {}))
    monkeypatch.setattr(probing, "load_encoder", lambda spec, trust, keep_frames: models[spec])
    monkeypatch.setattr(probing, "fingerprint_models", lambda encoders: {})


def break_all_clips(model: WhisperAudioEncoder) -> WhisperAudioEncoder:
    with torch.no_grad():
        model.whisper.layer_norm.weight.fill_(float("inf"))
    return model


def drop_longest(root: Path) -> None:
    write_manifest(root, [row for number, row in enumerate(manifest_rows(root)) if number not in LONGEST])


@pytest.mark.parametrize("kind", ["clip", "frame", "retrieval"])
@pytest.mark.parametrize("protocol", ["masked", "xares"])
def test_clips_whose_embeddings_are_not_finite_are_left_out(tones, monkeypatch, capsys, kind, protocol):
    """A probe would name one class for all clips, and a retrieval probe would find all pairs right."""
    task = {"kind": kind, "encode": 1, "epochs": 3}
    name = write_suite(tones, {"tone": task}, text_model=tiny_bert(tones / "bert"))
    give_models(monkeypatch, {"m": break_longest_clips(encoder())})
    result = run_probe(["m"], suite=name, protocol=protocol, seeds=1)
    facts = result["tasks"]["tone"]
    assert facts["skipped"] == [
        {"source": "tones", "row": f"{i}.wav", "reason": NOT_FINITE, "detail": "NaN or infinite values by m"}
        for i in LONGEST
    ]
    assert (facts["train"], facts["test"], "not_scored" in facts) == (27, 9, False)
    said = " ".join(capsys.readouterr().out.split())
    assert "tone: 4 rows skipped: 4 non-finite embedding; first skipped row: 8.wav: non-finite" in said
    assert run_probe(["m"], suite=name, protocol=protocol, seeds=1) == result  # from the cache
    drop_longest(tones)
    without = run_probe(["m"], suite=name, protocol=protocol, seeds=1)["scores"]["tone"]["m"]
    means = {probe: score["mean"] for probe, score in result["scores"]["tone"]["m"].items()}
    assert means == {probe: pytest.approx(score["mean"]) for probe, score in without.items()}


def test_all_models_are_scored_on_the_clips_that_are_finite_by_each_of_them(tones, monkeypatch, capsys):
    models = {"sound": encoder(), "broken": break_longest_clips(encoder(1)), "third": encoder(2)}
    give_models(monkeypatch, models)
    name = write_suite(tones, {"tone": {}})
    result = run_probe(list(models), suite=name, seeds=1)
    printed = capsys.readouterr().out
    assert [printed.count(f"probed {model} on tone") for model in models] == [1, 1, 1]
    assert [skip["row"] for skip in result["tasks"]["tone"]["skipped"]] == [f"{i}.wav" for i in LONGEST]
    assert {skip["detail"] for skip in result["tasks"]["tone"]["skipped"]} == {
        "NaN or infinite values by broken"
    }
    assert list(result["scores"]["tone"]) == list(models)
    drop_longest(tones)
    assert run_probe(list(models), suite=name, seeds=1)["scores"] == result["scores"]


@pytest.mark.parametrize(("broken", "clips"), [(1, 40), (4, 40), (1, 5)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_up_to_a_tenth_of_the_clips_may_be_left_out(tones, broken, clips, value):
    rows = the_task(tones)
    first = 28 if clips < 40 else 0  # of both splits
    gone = set(range(40)) - set(range(first, first + clips))
    rows = rows.drop({i: Skip("tones", rows.keys[i], "broken audio", "") for i in gone})

    def find(count):
        values = torch.zeros(clips, 3)
        values[:count, 1] = value
        return find_broken_clips(rows, [Embedded(values, torch.ones(clips).long(), torch.arange(clips))])

    wanted = [Skip("tones", f"{first + i}.wav", NOT_FINITE, "NaN or infinite values") for i in range(broken)]
    assert find(broken) == dict(enumerate(wanted))
    assert find(0) == {}
    message = (
        rf"^task tones: embeddings of {max(2, clips // 10 + 1)} of {clips} clips are not finite \(NaN or infinite\), "
        rf"such as those of {first}\.wav; check the weights of the model, and these clips$"
    )
    with pytest.raises(UnmeasurableTaskError, match=message):
        find(max(2, clips // 10 + 1))


def test_a_model_that_is_not_finite_costs_no_scores_of_the_others(tones, monkeypatch, capsys):
    models = {"broken": break_all_clips(encoder(1)), "sound": encoder()}
    give_models(monkeypatch, models)
    name, out = write_suite(tones, {"tone": {}, "place": {"column": "fold"}}), tones / "probes.json"
    reason = (
        "embeddings of 40 of 40 clips are not finite (NaN or infinite), such as those of 0.wav; check the weights of "
        "the model, and these clips"
    )
    with pytest.raises(UserError) as raised:
        run_probe(list(models), suite=name, out=out, seeds=1, layers=True)
    assert str(raised.value) == "; ".join(
        f"task {task}: broken is not scored: {reason}" for task in ("tone", "place")
    )
    result = json.loads(out.read_text())
    for task in ("tone", "place"):
        facts = result["tasks"][task]
        assert (facts["not_scored"], facts["skipped"], facts["test"]) == ({"broken": reason}, [], 10)
        assert "undefined" not in facts
        assert list(result["scores"][task]) == list(result["layers"][task]) == ["sound"]
    assert list(result["average"]) == ["sound"]
    scores, averages = build_suite_tables(result)[:2]
    rows = list(zip(*(column.cells for column in scores.columns), strict=True))
    assert rows[0] == ("tone", "sound", "accuracy", "broken", "–", "–", "–")
    assert rows[1][3] == "sound"
    assert all("±" in text and "(" not in text for text in rows[1][4:])  # it is compared with nothing
    assert f"tone: broken is not scored: {reason}" in scores.caption
    assert averages.caption == "no averages of broken, which has no scores of tone, place"
    assert f"task tone: broken is not scored: {reason}" in " ".join(capsys.readouterr().out.split())
    alone = run_probe(["sound"], suite=name, seeds=1, layers=True)
    assert (alone["scores"], alone["average"]) == (result["scores"], result["average"])


def test_a_task_without_finite_embeddings_costs_no_scores_of_the_others(tones, monkeypatch):
    rows = manifest_rows(tones)
    for number in (8, 17, 26, 1, 2):
        rows[number]["part"] = "a"
    for number in (35, 30, 31):
        rows[number]["part"] = "b"
    for row in rows:
        row.setdefault("part", "c")
    write_manifest(tones, rows)
    give_models(monkeypatch, {"m": break_longest_clips(encoder())})
    few = {"split_column": "part", "train": "a", "test": "b"}
    name, out = write_suite(tones, {"few": few, "tone": {}}), tones / "probes.json"
    reason = "embeddings of 4 of 8 clips are not finite"
    with pytest.raises(UserError, match=f"^task few: {reason}"):
        run_probe(["m"], suite=name, out=out, seeds=1)
    result = json.loads(out.read_text())
    assert result["tasks"]["few"]["undefined"]["accuracy"].startswith(reason)
    assert (list(result["scores"]), result["tasks"]["tone"]["test"]) == (["tone"], 9)
    means = {probe: score["mean"] for probe, score in result["scores"]["tone"]["m"].items()}
    assert {probe: parts["all"] for probe, parts in result["average"]["m"].items()} == means


def test_a_model_that_leaves_too_few_classes_takes_none_from_the_others(tones, monkeypatch):
    rows = manifest_rows(tones)
    for number, row in enumerate(rows):
        row["label"] = "rare" if number in (0, 35) else "usual"
    write_manifest(tones, rows)
    give_models(monkeypatch, {"broken": break_longest_clips(encoder(1)), "sound": encoder()})
    with pytest.raises(
        UserError, match=r"task tone: broken is not scored: too few classes are left: the only row"
    ):
        run_probe(
            ["broken", "sound"], suite=write_suite(tones, {"tone": {}}), out=tones / "probes.json", seeds=1
        )
    facts = json.loads((tones / "probes.json").read_text())["tasks"]["tone"]
    assert (facts["classes"], facts["test"], facts["skipped"], "lost_classes" in facts) == (2, 10, [], False)


def test_held_clips_with_embeddings_that_are_not_finite_are_left_out(tones):
    (rows,) = hold_folders({"tone": Path("tones")}, print)
    measured = probe_held(break_longest_clips(encoder()), [rows], 1)
    assert measured.notes == [
        "tone: 4 rows skipped: 4 non-finite embedding; first skipped row: 8.wav: non-finite embedding (NaN or "
        "infinite values)"
    ]
    assert measured.unscored == {}
    drop_longest(tones)
    (without,) = hold_folders({"tone": Path("tones")}, print)
    assert probe_held(encoder(), [without], 1).scores == measured.scores
    broken = probe_held(break_all_clips(encoder()), [rows], 1)
    assert (broken.scores, broken.notes, list(broken.unscored)) == ({}, [], ["tone"])
    assert broken.unscored["tone"].startswith("embeddings of 40 of 40 clips are not finite")


def test_a_suite_inherits_and_drops_tasks(tones):
    write_suite(tones, {"tone": {}, "tags": {"kind": "multilabel", "column": "tags"}})
    (tones / "heir.yaml").write_text(
        dump_yaml({"suite": "heir", "base": "own.yaml", "tasks": {"tags": None, "tone": {"weight": 7}}})
    )
    suite = load_suite("heir.yaml")
    assert list(suite.tasks) == ["tone"]
    assert suite.tasks["tone"][0].weight == 7


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "clips"}, "did you mean 'clip'"),
        ({"colum": "label"}, "did you mean 'column'"),
        ({"test": "tset"}, "no split 'tset'"),
        ({"dataset": "tonse"}, "did you mean 'tones'"),
        ({"kind": "multilabel", "probes": ["knn"]}, "knn does not work for kind multilabel"),
        ({"kind": "retrieval"}, "name a text_model"),
        ({"folds": ["train"]}, "at least two"),
        ({"folds": "fold", "split_column": "split"}, "folds replace splits"),
    ],
)
def test_mistakes_in_a_suite_are_refused(tones, task, message):
    with pytest.raises(UserError, match=message):
        load_suite(write_suite(tones, {"tone": task}))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"column": "lable"}, "no column 'lable'.*did you mean 'label'"),
        ({"folds": "flod"}, "no column 'flod'"),
        ({"folds": "split"}, None),
        ({"folds": "label"}, "^task tone: no test label, such as 'high', occurs in its training rows$"),
        ({"kind": "multilabel", "column": "fold"}, "must be text or a list"),
        ({"kind": "frame", "column": "tags"}, "events must be a list"),
    ],
)
def test_rows_are_checked_before_a_model_is_loaded(tones, monkeypatch, task, message):
    class Loaded(Exception):
        pass

    def load(spec, trust, keep_frames):
        raise Loaded

    monkeypatch.setattr(probing, "load_encoder", load)
    for clip in (tones / "tones").glob("*.wav"):
        clip.write_bytes(b"no audio")  # nothing is decoded either
    with pytest.raises(Loaded if message is None else UserError, match=message):
        run_probe(["whisper"], suite=write_suite(tones, {"tone": task}), seeds=1)


def test_rows_of_a_class_that_was_never_trained_are_left_out(tones, capsys):
    name_middle(tones, 35, 37)
    rows = the_task(tones)
    assert rows.lost == (LostClass("middle", "test", 2, trained=False),)
    assert rows.classes == ("high", "low")
    assert rows.numbers.tolist() == [i for i in range(40) if i not in (35, 37)]
    assert [row.key for row in rows.rows()] == list(rows.keys)
    assert len(rows.trials[0].test) == len(rows.parts["test"]) == 8
    name, model = write_suite(tones, {"tone": {}}), str(tones / "whisper")
    result = run_probe([model], suite=name, seeds=1)
    facts = result["tasks"]["tone"]
    assert facts["lost_classes"] == [{"label": "middle", "split": "test", "rows": 2, "trained": False}]
    assert (facts["classes"], facts["train"], facts["test"], facts["skipped"]) == (2, 30, 8, [])
    sentence = (
        "tone: none of the training rows has class 'middle', so its 2 rows in split 'test' are left out"
    )
    assert sentence in " ".join(capsys.readouterr().out.split())
    write_manifest(tones, [row for row in manifest_rows(tones) if row["label"] != "middle"])
    assert run_probe([model], suite=name, seeds=1)["scores"] == result["scores"]


def test_a_class_that_trains_and_is_not_tested_stays(tones):
    name_middle(tones, 4)
    rows = the_task(tones)
    assert (rows.lost, rows.classes, len(rows.answers)) == ((), ("high", "low", "middle"), 40)


def test_with_folds_the_rows_of_a_class_of_one_fold_are_left_out(tones):
    name_middle(tones, 1, 4)  # both of the fold 1
    rows = the_task(tones, folds="fold")
    assert rows.lost == (LostClass("middle", "1", 2, trained=False),)
    assert (rows.classes, len(rows.answers)) == (("high", "low"), 38)
    assert [len(trial.test) for trial in rows.trials] == [14, 11, 13]
    name_middle(tones, 0)
    assert (the_task(tones, folds="fold").lost, len(the_task(tones, folds="fold").answers)) == ((), 40)


def name_rare(root: Path, *numbers: int) -> None:
    """Give some clips one more label and one more event, "rare"."""
    rows = manifest_rows(root)
    for number in numbers:
        rows[number]["tags"].append("rare")
        rows[number]["events"] += [{"onset": 0.1, "offset": 0.2, "label": "rare"}] * 2
    write_manifest(root, rows)


SEVERAL = [{"kind": "multilabel", "column": "tags"}, {"kind": "frame", "epochs": 2}]


@pytest.mark.parametrize("task", SEVERAL, ids=lambda task: task["kind"])
def test_rows_of_several_classes_are_probed_without_those_that_were_never_trained(tones, capsys, task):
    name, model = write_suite(tones, {"tone": task}), str(tones / "whisper")
    plain = run_probe([model], suite=name, seeds=1)
    name_rare(tones, 33, 39)
    result = run_probe([model], suite=name, seeds=1)
    assert result["scores"] == plain["scores"]
    facts = result["tasks"]["tone"]
    assert facts["lost_classes"] == [{"label": "rare", "split": "test", "rows": 2, "trained": False}]
    assert (facts["test"], facts["classes"]) == (10, plain["tasks"]["tone"]["classes"])
    sentence = (
        "tone: none of the training rows has class 'rare' of split 'test', so the task is probed without this "
        "class"
    )
    assert sentence in " ".join(capsys.readouterr().out.split())
    name_rare(tones, 3)
    rows = the_task(tones, **task)
    assert (rows.lost, "rare" in rows.classes) == ((), True)


@pytest.mark.parametrize("task", SEVERAL, ids=lambda task: task["kind"])
def test_with_folds_labels_of_a_single_fold_are_left_out(tones, task):
    name_rare(tones, 1, 4)  # both of the fold 1
    rows = the_task(tones, folds="fold", **task)
    assert rows.lost == (LostClass("rare", "1", 2, trained=False),)
    assert (len(rows.answers), "rare" in rows.classes) == (40, False)
    assert not any("rare" in list_labels(rows.task, answer) for answer in rows.answers)
    name_rare(tones, 0)
    assert the_task(tones, folds="fold", **task).lost == ()


def test_labels_of_which_none_is_trained_are_refused(tones):
    rows = manifest_rows(tones)
    for row in rows[30:]:
        row["tags"] = [f"{tag}_test" for tag in row["tags"]]
    write_manifest(tones, rows)
    message = "^task tones: no test label, such as 'high_test', occurs in its training rows$"
    with pytest.raises(UserError, match=message):
        the_task(tones, kind="multilabel", column="tags")


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (
            lambda number, label: f"{label}_test" if number >= 30 else label,
            UserError,
            "no test label, such as 'high_test', occurs in its training rows",
        ),
        (
            lambda number, label: label if number >= 30 else "low",
            UnmeasurableTaskError,
            "too few classes are left: none of the training rows has class 'high'",
        ),
        (lambda number, label: "low", UnmeasurableTaskError, "'label' names 1 class, too few to probe"),
    ],
)
def test_rows_without_two_classes_to_train_and_test_are_refused(tones, labels, kind, message):
    rows = manifest_rows(tones)
    for number, row in enumerate(rows):
        row["label"] = labels(number, row["label"])
    write_manifest(tones, rows)
    with pytest.raises(UserError) as raised:
        the_task(tones)
    assert (type(raised.value), str(raised.value)) == (kind, f"task tones: {message}")


def test_many_classes_that_were_never_trained_are_said_in_one_sentence():
    lost = [LostClass(name, "test", 2, trained=False) for name in "abcdefg"]
    (sentence,) = describe_lost_classes("tone", lost, is_fold=False, kind="clip")
    assert sentence == (
        "tone: none of the training rows has classes 'a', 'b', 'c', 'd', 'e' and 2 more, so their 14 rows in split "
        "'test' are left out"
    )
    assert describe_lost_classes("tone", lost, is_fold=False, kind="frame") == [
        "tone: none of the training rows has classes 'a', 'b', 'c', 'd', 'e' and 2 more of split 'test', so the task "
        "is probed without these classes"
    ]
    one = LostClass("a", "3", 1, trained=False)
    assert describe_lost_classes("tone", [one], is_fold=True, kind="clip") == [
        "tone: none of the training rows has class 'a', so its only row in fold '3' is left out"
    ]


def spoil(root: Path) -> None:
    """Make the rows of the clips 3 to 8 unusable, each for another reason, and let clip 9 be clipped."""
    rows = manifest_rows(root)
    (root / "tones" / "3.wav").write_bytes(b"no audio")
    (root / "tones" / "4.wav").unlink()
    rows[5]["duration"] = 7.0
    rows[6]["label"] = ["low", "high"]
    del rows[7]["label"]
    rows[8]["label"] = None
    soundfile.write(root / "tones" / "9.wav", 2 * tone(0.4, 555, 3) / 16384, 16000, subtype="FLOAT")
    write_manifest(root, rows)


def test_unusable_rows_are_skipped_and_reported_by_reason(tones, capsys, monkeypatch):
    spoil(tones)
    name = write_suite(tones, {"tone": {"probes": ["knn"]}})
    model = str(tones / "whisper")
    result = run_probe([model], suite=name, seeds=1)
    facts = result["tasks"]["tone"]
    assert [(skip["row"], skip["reason"]) for skip in facts["skipped"]] == [
        ("6.wav", "broken metadata"),
        ("7.wav", "missing column"),
        ("8.wav", "missing column"),
        ("3.wav", "broken audio"),
        ("4.wav", "missing file"),
        ("5.wav", "stated duration is wrong"),
    ]
    assert facts["notices"] == {"clipped samples": 1}
    with monkeypatch.context() as later:  # a version that knows one kind of odd clips more, at another place
        for kind, advice in list(ADVICE.items()):
            later.delitem(ADVICE, kind)
            later.setitem(ADVICE, f"not {kind}", "")
            later.setitem(ADVICE, kind, advice)
        assert run_probe([model], suite=name, seeds=1)["tasks"]["tone"]["notices"] == {"clipped samples": 1}
    assert (facts["train"], facts["test"]) == (24, 10)
    said = " ".join(capsys.readouterr().out.split())
    assert "tone: 6 rows skipped: 2 missing column, 1 broken metadata, 1 broken audio, 1 missing file" in said
    assert "first skipped row: 6.wav: broken metadata ('label' must be one text" in said
    assert "tone: clipped samples in 1 clip: more than 1 % of the samples" in said
    again = run_probe([model], suite=name, seeds=1)  # from the cache
    assert again == result


def test_the_scores_are_those_of_the_rows_that_can_be_used(tones):
    spoil(tones)
    name = write_suite(tones, {"tone": {}})
    model = str(tones / "whisper")
    skipping = run_probe([model], suite=name, seeds=1)["scores"]
    write_manifest(tones, [row for i, row in enumerate(manifest_rows(tones)) if not 3 <= i <= 8])
    assert run_probe([model], suite=name, seeds=1)["scores"] == skipping


@pytest.mark.parametrize("protocol", ["masked", "xares"])
def test_a_clip_that_cannot_be_read_leaves_the_others_theirs(tones, protocol):
    rows = the_task(tones, folds="fold", **({"crop": 0.2} if protocol == "xares" else {}))
    _, (whole,) = embed_task(encoder(), "m", rows, "d", protocol)
    (tones / "tones" / "7.wav").write_bytes(b"no audio")
    left, (embedded,) = embed_task(encoder(), "m", rows, "other", protocol)
    assert [(skip.row, skip.reason) for skip in left.skipped] == [("7.wav", "broken audio")]
    assert left.answers == (*rows.answers[:7], *rows.answers[8:])
    assert [row.key for row in left.rows()] == [f"{i}.wav" for i in range(40) if i != 7]
    assert {part: left.numbers[members].tolist() for part, members in left.parts.items()} == {
        part: [i for i in members.tolist() if i != 7] for part, members in rows.parts.items()
    }
    assert left.numbers[embedded.owner].tolist() == [i for i in whole.owner.tolist() if i != 7]
    if protocol == "masked":
        torch.testing.assert_close(embedded.values, whole.values[whole.owner != 7], atol=1e-4, rtol=1e-4)


def test_a_clip_that_could_not_be_read_for_a_moment_is_embedded_later(tones, monkeypatch):
    real = task_embeddings.decode_clips

    def fail_once(row, *arguments):
        if row.key == "7.wav":
            raise RowError("broken audio", "the disk was away")
        return real(row, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(task_embeddings, "decode_clips", fail_once)
        rows, _ = embed_task(encoder(), "m", the_task(tones), "d", "masked")
        assert len(rows.answers) == 39
    rows, (embedded,) = embed_task(encoder(), "m", the_task(tones), "d", "masked")
    assert (len(rows.answers), len(embedded.values), rows.skipped) == (40, 40, ())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (range(40), r"task tones: no clip can be used; first skipped row: 0\.wav: broken audio \(.*0\.wav"),
        (range(30, 40), r"no row of 'test' can be used; first skipped row: 30\.wav: broken audio"),
        (
            range(0, 40, 2),
            r"task tones: too few classes are left: none of the 15 rows of class 'high' in split 'train' can be used; "
            r"first skipped row: 0\.wav: broken audio",
        ),
        (
            range(0, 30, 2),
            r"too few classes are left: none of the 15 rows of class 'high' in split 'train' can",
        ),
        (
            range(30, 40, 2),
            r"too few classes are left: none of the 5 rows of class 'high' in split 'test' can",
        ),
    ],
)
def test_too_many_unusable_clips_end_the_probe(tones, broken, message):
    for i in broken:
        (tones / "tones" / f"{i}.wav").write_bytes(b"no audio")
    with pytest.raises(UnmeasurableTaskError, match=message):
        embed_task(encoder(), "m", the_task(tones), "d", "masked")


def name_middle(root: Path, *numbers: int) -> None:
    """Give some clips a third class."""
    rows = manifest_rows(root)
    for number in numbers:
        rows[number]["label"] = "middle"
    write_manifest(root, rows)


def break_clips(root: Path, numbers) -> None:
    for number in numbers:
        (root / "tones" / f"{number}.wav").write_bytes(b"no audio")


@pytest.mark.parametrize("protocol", ["masked", "xares"])
@pytest.mark.parametrize("broken", [(4, 5), (33,)])
def test_what_is_left_of_a_task_that_lost_the_last_clip_of_a_class(tones, protocol, broken):
    name_middle(tones, 4, 5, 33)
    crop = {"crop": 0.2} if protocol == "xares" else {}
    rows = the_task(tones, **crop)
    _, (whole,) = embed_task(encoder(), "m", rows, "d", protocol)
    break_clips(tones, broken)
    for data in ("other", "other"):  # the second time they come from the cache
        left, (embedded,) = embed_task(encoder(), "m", rows, data, protocol)
        kept = [i for i in range(40) if i not in (4, 5, 33)]
        assert left.numbers.tolist() == kept
        assert left.classes == ("high", "low")
        assert left.answers == tuple(rows.answers[i] for i in kept)
        assert [row.key for row in left.rows()] == [f"{i}.wav" for i in kept]
        assert len(left.skipped) == len(broken)
        wanted = torch.tensor([i in kept for i in whole.owner.tolist()])
        assert left.numbers[embedded.owner].tolist() == whole.owner[wanted].tolist()
        assert len(embedded.values) == len(embedded.lengths) == len(embedded.owner)
        if protocol == "masked":
            torch.testing.assert_close(embedded.values, whole.values[wanted], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("broken", "lost", "sentence"),
    [
        ((4, 5), ("train", 2), "none of the 2 rows of class 'middle' in split 'train' can be used"),
        ((33,), ("test", 1), "the only row of class 'middle' in split 'test' cannot be used"),
    ],
)
def test_a_task_is_probed_without_a_class_that_lost_its_last_clip(tones, capsys, broken, lost, sentence):
    name_middle(tones, 4, 5, 33)
    break_clips(tones, broken)
    name = write_suite(tones, {"tone": {"probes": ["knn"]}, "place": {"column": "fold", "probes": ["knn"]}})
    model = str(tones / "whisper")
    result = run_probe([model], suite=name, seeds=1)
    facts = result["tasks"]
    lost_class = {"label": "middle", "split": lost[0], "rows": lost[1], "trained": True}
    assert facts["tone"]["lost_classes"] == [lost_class]
    assert "lost_classes" not in facts["place"]
    assert {task: entry["classes"] for task, entry in facts.items()} == {"tone": 2, "place": 3}
    assert (facts["tone"]["train"], facts["tone"]["test"], facts["tone"]["weight"]) == (28, 9, 9)
    assert set(result["scores"]) == {"tone", "place"}
    said = " ".join(capsys.readouterr().out.split())
    assert f"tone: {sentence}, so the task is probed without this class" in said
    assert said.count("is probed without this class") == 1


def test_a_task_that_cannot_be_probed_costs_no_scores_of_the_others(tones, capsys):
    break_clips(tones, range(0, 30, 2))
    tasks = {"tone": {"weight": 5}, "place": {"column": "fold"}}
    name, model, out = write_suite(tones, tasks), str(tones / "whisper"), tones / "probes.json"
    reason = (
        "too few classes are left: none of the 15 rows of class 'high' in split 'train' can be used; first "
    )
    with pytest.raises(UserError, match=f"^task tone: {reason}skipped row: 0.wav: broken audio"):
        run_probe([model], suite=name, out=out, seeds=1, layers=True)
    result = json.loads(out.read_text())
    facts = result["tasks"]["tone"]
    assert facts["undefined"]["accuracy"].startswith(reason)
    assert (facts["classes"], facts["train"], facts["test"]) == (None, None, None)
    assert [skip["row"] for skip in facts["skipped"]] == [f"{i}.wav" for i in range(0, 30, 2)]
    assert list(result["scores"]) == list(result["layers"]) == ["place"]
    assert "undefined" not in result["tasks"]["place"]
    means = {probe: score["mean"] for probe, score in result["scores"]["place"][model].items()}
    assert {probe: parts["all"] for probe, parts in result["average"][model].items()} == means
    scores, averages = build_suite_tables(result)[:2]
    assert [next(iter(column.cells)) for column in scores.columns] == [
        *("tone", "sound", "accuracy", ""),
        *("–", "–", "–"),
    ]
    assert f"tone: accuracy is undefined: {reason}" in scores.caption
    assert averages.caption == "not measured, and in no average: tone"
    said = " ".join(capsys.readouterr().out.split())
    assert "not measured, and in no average: tone" in said
    write_suite(tones, {"place": {"column": "fold"}})
    assert run_probe([model], suite=name, seeds=1)["scores"]["place"] == result["scores"]["place"]


def test_a_suite_without_a_task_that_can_be_probed_says_why_of_each(tones):
    break_clips(tones, range(40))
    name, out = write_suite(tones, {"tone": {}, "place": {"column": "fold"}}), tones / "probes.json"
    message = r"^task tone: no clip can be used; first .*; task place: no clip can be used; first skipped"
    with pytest.raises(UserError, match=message):
        run_probe([str(tones / "whisper")], suite=name, out=out, seeds=1)
    result = json.loads(out.read_text())
    assert (result["scores"], result["average"]) == ({}, {})


@pytest.mark.parametrize(
    ("task", "broken", "lost"),
    [
        ({"kind": "multilabel", "column": "tags"}, [3], [LostClass("rare", "train", 1)]),
        ({"kind": "multilabel", "column": "tags"}, [35], [LostClass("rare", "test", 1)]),
        ({"kind": "frame"}, [3], [LostClass("rare", "train", 1)]),
        ({"kind": "frame"}, [3, 35], [LostClass("rare", "train", 1), LostClass("rare", "test", 1)]),
        ({"kind": "retrieval"}, [3, 35], []),
        ({"kind": "frame"}, [4, 36], []),
    ],
)
def test_rows_of_several_classes_stay_without_the_lost_one(tones, task, broken, lost):
    rows = manifest_rows(tones)
    for number in (3, 35):
        rows[number]["tags"].append("rare")
        rows[number]["events"].append({"onset": 0.1, "offset": 0.2, "label": "rare"})
    write_manifest(tones, rows)
    whole = the_task(tones, **task) if task["kind"] != "retrieval" else retrieval_task(tones)
    left = whole.drop({i: Skip("tones", f"{i}.wav", "broken audio", "") for i in broken})
    assert list(left.lost) == lost
    assert left.numbers.tolist() == [i for i in range(40) if i not in broken]
    assert ("rare" in whole.classes) == (task["kind"] != "retrieval")
    assert set(whole.classes) - set(left.classes) == {one.label for one in lost}
    named = {label for answer in left.answers for label in list_labels(left.task, answer)}
    assert named == set(left.classes)


def retrieval_task(root: Path):
    name = write_suite(root, {"tones": {"kind": "retrieval"}}, text_model=tiny_bert(root / "bert"))
    return read_task("tones", *load_suite(name).tasks["tones"])


def test_with_folds_a_class_is_lost_when_fewer_than_two_folds_have_it(tones):
    name_middle(tones, 0, 1, 3)  # of the folds 0, 1 and 0
    rows = the_task(tones, folds="fold")

    def drop(*numbers):
        return rows.drop({i: Skip("tones", f"{i}.wav", "broken audio", "") for i in numbers})

    assert (drop(0).classes, drop(0).lost) == (("high", "low", "middle"), ())
    assert drop(1).lost == (LostClass("middle", "1", 1),)
    both = drop(0, 3)
    assert (both.classes, both.lost) == (("high", "low"), (LostClass("middle", "0", 2),))
    assert not {0, 1, 3} & set(both.numbers.tolist())
    assert describe_lost_classes("tone", both.lost, is_fold=True, kind="clip") == [
        "tone: none of the 2 rows of class 'middle' in fold '0' can be used, so the task is probed without this class"
    ]
    with pytest.raises(UnmeasurableTaskError, match=r"^task tones: no row of '0' can be used; first skipped"):
        drop(*range(0, 40, 3))


def test_a_held_folder_says_which_class_it_is_probed_without(tones):
    name_middle(tones, 4, 5, 33)
    break_clips(tones, (4, 5))
    sentences = []
    (rows,) = hold_folders({"tone": Path("tones")}, sentences.append)
    assert (
        "tone: none of the 2 rows of class 'middle' in split 'train' can be used, so the task is probed without this "
        "class" in sentences
    )
    assert (len(rows.clips), len(rows.answers), rows.classes) == (37, 37, ("high", "low"))
    (scores,) = probe_held(encoder(), [rows], 1, ("knn",)).scores.values()
    assert 0 <= scores["knn"]["mean"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], None, "masked"), "either --data"),
        ((["a=b"], "realdata", "masked"), "either --data"),
        (([], "realdata", "xarse"), "masked or xares"),
        ((["a=b", "a=c"], None, "masked"), "the name 'a' is given twice"),
        ((["ab"], None, "masked"), "--data ab: write NAME=FOLDER"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        run_probe(["model"], *arguments)


@pytest.mark.parametrize("protocol", ["masked", "xares"])
def test_a_labelled_folder_is_a_suite_of_one_task(tones, protocol):
    name = write_suite(tones, {"tone": {"weight": 1.0}})
    model = str(tones / "whisper")
    suite = run_probe([model], (), name, protocol, seeds=1)
    folder = run_probe([model], ["tone=tones"], None, protocol, tones / "folder.json", 1)
    assert json.loads((tones / "folder.json").read_text()) == folder
    assert folder["scores"] == suite["scores"]
    assert folder["fingerprints"] == suite["fingerprints"]
    differing = {
        key for key in folder["tasks"]["tone"] if folder["tasks"]["tone"][key] != suite["tasks"]["tone"][key]
    }
    assert differing == {"domain", "license"}
    assert folder["average"] == {
        model: {p: {"all": s["mean"]} for p, s in folder["scores"]["tone"][model].items()}
    }


def test_clips_held_in_memory_get_the_scores_of_the_command(tones):
    spoil(tones)
    sentences = []
    (rows,) = hold_folders({"tone": Path("tones")}, sentences.append)
    model = str(tones / "whisper")
    wanted = run_probe([model], ["tone=tones"], seeds=1)
    assert probe_held(load_encoder(model), [rows], 1).scores == {"tone": wanted["scores"]["tone"][model]}
    assert [asdict(skip) for skip in rows.skipped] == wanted["tasks"]["tone"]["skipped"]
    assert sentences[0].startswith("tone: 6 rows skipped: 2 missing column")
    assert sentences[1].startswith("tone: clipped samples in 1 clip: ")
    assert [len(clip) for clip in rows.clips] == [len(decode_clips(row, 60)[0]) for row in rows.rows()]


def test_a_copy_of_the_data_shares_the_cache(tones, monkeypatch):
    rows = the_task(tones)
    digest = hash_contents(rows.rows())
    shutil.copytree(tones / "tones", tones / "copy")
    shutil.rmtree(tones / "tones")
    (tones / "copy").rename(tones / "tones")
    assert hash_contents(the_task(tones).rows()) == digest


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_suites_fit_their_cards(path, monkeypatch, tmp_path):
    for variable in ("UNIAUDIO_DATA", "UNIAUDIO_REALDATA", "UNIAUDIO_REALAUDIO"):
        monkeypatch.setenv(variable, str(tmp_path))
    suite = load_suite(path.stem)
    assert {task.domain for task, _ in suite.tasks.values()} >= {"speech", "sound"}


def test_the_suite_of_xares_has_its_published_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("UNIAUDIO_DATA", str(tmp_path))
    weights = {name: task.weight for name, (task, _) in load_suite("xares").tasks.items()}
    assert len(weights) == 21
    assert sum(weights.values()) == 28752
    assert len(load_suite("uniwhisper").tasks) == 20


@pytest.mark.realdata
@pytest.mark.slow
def test_the_suite_of_real_recordings_finds_its_rows(realdata, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_REALDATA", str(realdata))
    sizes = {
        name: [len(trial.test) for trial in read_task(name, *pair).trials]
        for name, pair in load_suite("realdata").tasks.items()
    }
    assert sizes["esc10_folds"] == [80] * 5
    assert sizes["esc10"] == [80]
    assert sizes["fsdd_digits"] == [160]
    assert sizes["fsdd_speaker"] == [120]
