"""Every YAML file in the repository is a test case."""

import os
import random
import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from uniaudio.config.path_variables import REAL_FOLDERS, get_miniature_root, leave_unset_variables
from uniaudio.config.run_files import load_run
from uniaudio.data.card import load_card
from uniaudio.data.field_values import ClassIndex
from uniaudio.data.recipe import load_recipe
from uniaudio.data.sources.base import is_row_in_split
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.template import load_template

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def some_folders(monkeypatch, tmp_path):
    """Cards of local recordings name their folder by a variable; loading them needs it set, not full."""
    for variable, _ in REAL_FOLDERS.values():
        if variable not in os.environ:
            monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("UNIAUDIO_DATA", str(tmp_path))
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path))
    get_miniature_root().mkdir(parents=True)


def names(pattern):
    return [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(pattern))]


# What a row may hold for inputs that are not plain text.
SAMPLES = {
    "captions": ["a dog barks", "barking"],
    "tags": ["Dog", "Bark"],
    "choices": ["a dog", "a cat"],
    "midi": 69,
    "bpm": 119.6,
}

# What a row of a data set holds, as its card says; audio columns are left out.
SCHEMAS = {
    "mini_notes": {"midi": 60, "split": "train"},
    "mini_noises": {"label": "hiss", "split": "train"},
    "aecc_aishell1": {"text": "今天 天气"},
    "aecc_asvspoof2015": {"binary_spoof": "spoof"},
    "aecc_clotho": {"captions": ["a dog barks", "barking"]},
    "aecc_cremad": {"label": "anger"},
    "aecc_esc50": {"label": "crying_baby"},
    "aecc_fluentspeechcommands": {"label": "increase heat kitchen"},
    "aecc_freemusicarchive": {"genre": "Folk"},
    "aecc_fsd50k": {"labels": "Dog;Bark"},
    "aecc_fsdkaggle2018": {"label": "Acoustic_guitar"},
    "aecc_gtzan": {"genre": "jazz"},
    "aecc_libricount": {"num_speakers": 3},
    "aecc_librispeech": {"trans": "HE WENT HOME"},
    "aecc_mecat": {"long": "A man speaks over music."},
    "aecc_nsynth": {"instrument_family_str": "guitar"},
    "aecc_songdescriber": {"caption": "slow guitar"},
    "aecc_speechcommandsv1": {"label": "yes"},
    "aecc_urbansound8k": {"soundevent": "dog_bark"},
    "aecc_vocalsound": {"label": "Throatclearing"},
    "aecc_voxceleb1": {"label": "Same"},
    "aecc_voxlingua33": {"label": "Estonian"},
    "aishell1": {"text": "今天 天气", "speaker": "S1"},
    "audiocaps": {"audiocap_id": 1, "youtube_id": "a", "start_time": 0, "caption": "a dog barks"},
    "audioset_balanced": {"video_id": "a", "labels": ["/m/0bt9lr"], "human_labels": ["Dog", "Bark"]},
    "clotho": {"index": 0, "text": "A dog barks. Two dogs bark."},
    "clotho_aqa": {
        "file_name": "a.wav",
        "QuestionText": "Is a dog barking?",
        "answer": "yes",
        "confidence": "yes",
    },
    **{f"common_voice_{lang}": {"sentence": "He went home."} for lang in ("de", "en", "es", "fr")},
    "covost2_de_en": {"sentence": "Er ging.", "translation": "He went."},
    "crema_d": {"file_name": "1001_DFA_ANG_XX.wav"},
    "drums": {"split": "train", "label": "kick", "group": "kit"},
    "esc10": {"split": "train", "label": "dog"},
    "esc50": {"category": "crying_baby", "fold": 1},
    "fillets_cs": {"split": "train", "text": "Co to je?", "translation": "What is it?", "speaker": "both"},
    "fillets_nl": {"split": "train", "text": "Wat is dat?", "translation": "What is it?", "speaker": "both"},
    "fillets_nl_roles": {"split": "train", "speaker": "big fish"},
    "fluent_speech_commands": {
        "path": "a.wav",
        "transcription": "Heat",
        "action": "increase",
        "object": "heat",
        "location": "none",
    },
    "fma_small": {"split": "train", "label": "Folk"},
    "fsd50k": {"labels": ["Bark", "Dog", "Car_passing_by"]},
    "fsdd_connected": {"split": "train", "text": "one two", "speaker": "theo"},
    "fsdd_digits": {"split": "train", "label": "one", "speaker": "theo"},
    "fsdd_speaker": {"audio": "audio/1_theo_0.flac", "speaker": "theo"},
    "gtzan": {"file": "genres/jazz/jazz.00012.wav", "genre": ClassIndex(5, "jazz")},
    "iemocap": {"split": "train", "label": "anger"},
    "instruments": {"split": "train", "label": "flute", "pitch": "C#", "midi": 61},
    "langid": {"split": "train", "label": "lt", "language": "lt"},
    "libricount": {"file_name": "3_24.wav", "label": ""},
    "librispeech": {"text": "HE WENT HOME", "speaker_id": 19},
    "ljspeech_mini": {"split": "train", "text": "He went home."},
    "minds14_en": {
        "intent_class": ClassIndex(13, "pay_bill"),
        "path": "en-US~PAY_BILL/1.wav",
        "english_transcription": "pay",
        "lang_id": ClassIndex(4, "en-US"),
    },
    "musiccaps": {"split": "train", "captions": ["slow guitar"]},
    "nsynth": {"file_name": "audio/synth_lead_synthetic_001-061-050.wav", "label": "audio"},
    "song_describer": {"caption_id": 1, "track_id": 2, "caption": "slow guitar", "is_valid_subset": True},
    "speech_commands": {"file": "yes/0a.wav", "label": ClassIndex(0, "yes"), "is_unknown": False},
    "spoken_squad": {"split": "train", "question": "who went home?", "answer": "he"},
    "tuxpaint_words": {"split": "train", "text": "гусь", "translation": "goose", "language": "be"},
    "urbansound8k": {"class": "dog_bark", "fold": 1},
    "vggsound": {"split": "train", "label": "dog barking"},
    "vocalsound": {"file_name": "f0003_0_throatclearing.wav"},
    "voxceleb1": {"file_name": "id10001/1zcIwhmdeo4/00001.wav", "label": "1zcIwhmdeo4"},
    "voxceleb1_pairs": {"split": "train", "label": "yes"},
    "voxlingua107": {"file_name": "et/a.wav", "label": "et"},
    "wavcaps": {"split": "train", "captions": ["a dog barks"]},
    "xares_asvspoof2015": {"binary_spoof": "spoof"},
    "xares_cremad": {"label": "H"},
    "xares_esc50": {"label": 7},
    "xares_fluentspeechcommands": {"transcription": "Resume"},
    "xares_freemusicarchive": {"genre": "Folk"},
    "xares_fsd50k": {"soundevent": "Dog;Bark"},
    "xares_fsdkaggle2018": {"sound": "Bark"},
    "xares_gtzan": {"genre": "jazz"},
    "xares_libricount": {"num_speakers": 3},
    "xares_librispeech_gender": {"gender": "F"},
    "xares_nsynth": {"instrument_family_str": "guitar"},
    "xares_ravdess": {"emotion": "calm"},
    "xares_speechcommandsv1": {"labels": "yes"},
    "xares_urbansound8k": {"soundevent": "dog_bark"},
    "xares_vocalimitations": {"imitation": "004Dog_Bark"},
    "xares_vocalsound": {"label": "cough"},
    "xares_voxceleb1": {"speakerid": "id10001"},
    "xares_voxlingua33": {"labels": "en"},
    "xares_clotho": {"split": "train", "captions": ["a dog barks", "barking"]},
    "xares_desed": {"split": "train", "events": [{"onset": 0.5, "offset": 2.0, "label": "Dog"}]},
    "xares_maestro": {"split": "train", "events": [{"start": 0.5, "end": 2.0, "note": 60}]},
    "audioset": {"video_id": "a", "labels": ["/m/0bt9lr"], "human_labels": ["Dog", "Bark"]},
    "fsdkaggle2018": {"fname": "a.wav", "label": "Acoustic_guitar", "manually_verified": "1"},
    "gigaspeech": {
        "segment_id": "S",
        "text": "HE WENT <COMMA> HOME <PERIOD>",
        "source": ClassIndex(1, "podcast"),
    },
    "meld": {"text": "hi", "emotion": ClassIndex(1, "joy"), "sentiment": ClassIndex(1, "positive")},
    "mtg_jamendo": {"split": "train", "tags": ["genre---rock", "mood/theme---happy"]},
}

# Table 2 of the report on explicit and implicit injection: percent of all draws.
TABLE_2 = {
    "esc50": 0.453,
    "speechcommandsv1": 6.154,
    "fluentspeechcommands": 2.717,
    "fsdkaggle2018": 2.378,
    "voxceleb1": 4.529,
    "nsynth": 3.692,
    "aishell1": 6.154,
    "cremad": 0.679,
    "songdescriber": 0.226,
    "asvspoof2015": 2.038,
    "freemusicarchive": 7.246,
    "fsd50k": 1.019,
    "urbansound8k": 1.019,
    "gtzan": 1.019,
    "vocalsound": 2.378,
    "clotho": 2.462,
    "librispeech": 6.154,
    "libricount": 0.453,
    "voxlingua33": 24.615,
    "mecat": 24.615,
}


@pytest.mark.parametrize("name", names("templates/*.yaml"))
def test_template(name):
    template = load_template(str(ROOT / name))
    fields = {
        key: SAMPLES.get(key, template.labels[0] if template.labels else "some text")
        for key in template.inputs
    }
    seen = {template.render(fields, random.Random(seed)) for seed in range(60)}
    assert len({rendered.prompt for rendered in seen}) == len(template.prompts)
    assert all(len(rendered.prompt) == template.num_clips + 1 for rendered in seen)
    assert all("{{" not in "".join(rendered.prompt) and rendered.answer for rendered in seen)
    assert len({prompt.source for prompt in template.prompts}) >= 5


def test_templates_cover_speech_sound_and_music():
    templates = [load_template(str(ROOT / name)) for name in names("templates/*.yaml")]
    assert len(templates) >= 20
    assert {template.domain for template in templates} == {"speech", "sound", "music"}
    assert load_template("speaker_verification").num_clips == 2
    assert load_template("pitch").render({"midi": 69}, None).answer == "A4"
    assert load_template("tagging").render({"tags": ["Dog", "Bark"]}, None).answer == "Bark; Dog"


@pytest.mark.parametrize("name", names("data_recipes/datasets/*.yaml"))
def test_card(name):
    card = load_card(str(ROOT / name))
    assert card.license
    assert card.hours or "the hours are not known" in (ROOT / name).read_text()
    assert card.name in SCHEMAS
    here = ("${realdata}", "${realaudio}", "${miniature}")  # sets whose rows were looked at
    text = (ROOT / name).read_text()
    assert ("# unverified:" in text) != any(folder in text for folder in here)


@pytest.mark.parametrize("name", names("data_recipes/datasets/*.yaml"))
def test_a_card_of_the_hub_names_a_commit_or_says_why_not(name):
    load = load_card(str(ROOT / name)).load
    text = (ROOT / name).read_text()
    if load.kind != "hub" or re.fullmatch(r"[0-9a-f]{40}", load.revision or ""):
        assert "commit is not known" not in text
    elif load.revision is None:
        assert "the commit is not known, so the newest is read" in text
    else:
        assert load.revision == "refs/convert/parquet"
        assert "the branch has no known commit" in text


@pytest.mark.parametrize("name", names("data_recipes/*.yaml"))
def test_recipe(name):
    """Every pairing is rendered on a row as the data set has it, and the splits' conditions are asked."""
    recipe = load_recipe(str(ROOT / name))
    assert sum(recipe.compute_train_shares()) == pytest.approx(1)
    pairs = [(e.dataset, e.split, t, e.constants) for e in recipe.train for t in e.templates]
    pairs += [(e.dataset, e.split, e.template, e.constants) for e in recipe.evaluate]
    for card, split, template, constants in pairs:
        row = SCHEMAS[card.name]
        assert is_row_in_split(card, row, split, "row") in (True, False)
        for seed in range(5):
            assert template.render({**card.fields(row), **constants}, random.Random(seed)).answer


def test_the_recipe_of_the_challenge_has_the_published_ratios():
    recipe = load_recipe("aecc_all")
    shares = {entry.dataset.name.removeprefix("aecc_"): entry.share for entry in recipe.train}
    assert shares == pytest.approx({name: ratio / sum(TABLE_2.values()) for name, ratio in TABLE_2.items()})
    tracks = [{entry.dataset.name for entry in load_recipe(f"aecc_task{i}").train} for i in (1, 2)]
    assert [len(track) for track in tracks] == [15, 5]
    assert tracks[0] | tracks[1] == {entry.dataset.name for entry in recipe.train}


def test_the_catalogue_names_everything():
    text = (ROOT / "docs" / "catalogue.md").read_text()
    for pattern in ("templates/*.yaml", "data_recipes/datasets/*.yaml", "data_recipes/*.yaml"):
        missing = [name for name in names(pattern) if f"`{Path(name).stem}`" not in text]
        assert not missing


def test_the_catalogue_counts_the_labels_of_closed_sets():
    page = (ROOT / "docs" / "catalogue.md").read_text().split("## Closed sets")[1].split("## Hours")[0]
    rows = re.findall(r"(?m)^\| `(\w+)` \| `(\w+)` \| (\d+) \|$", page)
    assert {card for card, _, _ in rows} >= {
        "esc50",
        "fsd50k",
        "fsdkaggle2018",
        "crema_d",
        "nsynth",
        "voxlingua107",
    }
    for card, column, count in rows:
        assert len(load_card(card).labels[column]) == int(count)


def test_the_catalogue_adds_up_the_hours_of_the_mixture(monkeypatch):
    """Without any data here; the table of the page is what the cards state."""
    monkeypatch.delenv("UNIAUDIO_DATA")
    page = (ROOT / "docs" / "catalogue.md").read_text().split("## Hours of the mixture")[1]
    rows = re.findall(r"(?m)^\| `(\w+)` \| (\w+) \| ([\d,.]+) \|$", page)
    with leave_unset_variables():
        train = load_recipe("uniwhisper").train
    stated = {(entry.dataset.name, entry.split): entry.dataset.split(entry.split).hours for entry in train}
    assert {(card, split): hours for card, split, hours in rows} == {
        place: f"{hours:,.1f}" for place, hours in stated.items()
    }
    total = sum(stated.values())
    assert re.findall(r"(?m)^\| total \| \| ([\d,]+) \|$", page) == [f"{total:,.0f}"]
    assert 37_000 < total < 38_000


@pytest.mark.parametrize("name", names("configs/*.yaml"))
def test_run_config(name):
    config = load_run(ROOT / name)
    for stage in config.stages:
        assert load_recipe(stage.recipe, near=config.folder).train


@pytest.mark.parametrize("name", names("configs/papers/*.yaml"))
def test_config_of_a_paper(name):
    """It has its miniature twin, and both name the same encoders and the same kind of fusion, adapter and decoder."""
    config, mini = load_run(ROOT / name), load_run(ROOT / name, ["+mini"])
    assert Path(config.output_dir).name == Path(mini.output_dir).name == Path(name).stem
    assert config.output_dir != mini.output_dir
    assert list(config.encoders) == list(mini.encoders)
    for single, small in zip(config.encoders.values(), mini.encoders.values(), strict=True):
        assert single.train == small.train
    for part in ("fusion", "adapter", "decoder"):
        single, small = getattr(config, part), getattr(mini, part)
        assert getattr(single, "kind", None) == getattr(small, "kind", None)
    assert config.decoder.train == mini.decoder.train
    assert mini.total_steps <= 40
    for stage in config.stages:
        load_recipe(stage.recipe)


def test_the_papers_settings():
    """Figures that the papers state."""
    gate = load_run(ROOT / "configs/papers/dual_gate_stft.yaml")
    stage = gate.stages[0]
    assert (stage.steps, stage.warmup, gate.fusion.lr, gate.train.clip) == (100_000, 10_000, 5e-5, 1.0)
    assert (gate.fusion.rate, gate.fusion.dim, gate.train.weight_decay) == (25, 512, 0.01)
    assert (gate.fusion.stft.n_fft, gate.fusion.stft.mels, gate.fusion.stft.gamma) == (1024, 128, 1e-2)
    moe = load_run(ROOT / "configs/papers/dual_moe_proj.yaml").fusion
    assert (moe.experts, moe.top_k, moe.balance_weight) == (8, 2, 1e-2)
    adapt = load_run(ROOT / "configs/papers/dual_implicit_stage1.yaml")
    lora = adapt.encoders["dasheng"].lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (16, 32, 0.05, "qkv")
    assert (adapt.stages[0].steps, adapt.stages[0].warmup, adapt.encoders["dasheng"].lr) == (
        10_000,
        200,
        1e-4,
    )
    mowe = load_run(ROOT / "configs/papers/mowe.yaml")
    assert (mowe.fusion.entropy_weight, mowe.fusion.diversity_weight, mowe.fusion.smooth_keep) == (
        0.1,
        0.1,
        0.9,
    )
    assert (mowe.adapter.tokens, mowe.fusion.routers) == (100, "both")


@pytest.mark.parametrize("name", names("configs/accelerate/*.yaml"))
def test_accelerate_file(name):
    """Read by accelerate itself, which refuses keys it does not know; what the run config owns is left open."""
    config = load_config_from_file(str(ROOT / name))
    assert config.compute_environment == "LOCAL_MACHINE"
    assert config.mixed_precision is None
    deepspeed = config.deepspeed_config
    assert (config.distributed_type == DistributedType.DEEPSPEED) == bool(deepspeed)
    if deepspeed:
        assert deepspeed["gradient_accumulation_steps"] == 1
        assert "gradient_clipping" not in deepspeed
        assert Path(name).stem.startswith(f"zero{deepspeed['zero_stage']}")


def test_every_topology_has_a_file():
    stems = {Path(name).stem for name in names("configs/accelerate/*.yaml")}
    one_machine = {"single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"}
    assert stems == one_machine | {"ddp_2x8", "zero1_2x8"}


@pytest.mark.realaudio
@pytest.mark.realdata
def test_a_question_can_be_rendered_for_every_row_of_labelled_audio(realaudio, realdata):
    recipe = load_recipe("real")
    pairs = [(e.dataset, e.split, t, e.constants) for e in recipe.train for t in e.templates]
    pairs += [(e.dataset, e.split, e.template, e.constants) for e in recipe.evaluate]
    for card, split, template, constants in pairs:
        for row in open_source(card, split).rows():
            assert template.render({**card.fields(row.columns), **constants}, None).answer


@pytest.mark.realdata
def test_cards_of_real_recordings_find_their_rows(realdata, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_REALDATA", str(realdata))
    recipe = load_recipe("realdata")
    sizes = {entry.dataset.name: open_source(entry.dataset, entry.split).size for entry in recipe.train}
    assert sizes == {"esc10": 320, "fsdd_digits": 320, "fsdd_connected": 100, "ljspeech_mini": 75}
    for entry in recipe.train:
        row = open_source(entry.dataset, entry.split).row(0)
        assert entry.templates[0].render(entry.dataset.fields(row.columns), None).answer
