"""Cards read data sets in the layouts in which they are published: every file here has a published name and columns."""

from dataclasses import replace

import datasets
import pyarrow
import pyarrow.parquet as pq
import pytest
from helpers.files import clip_bytes

from uniaudio.data.card import load_card
from uniaudio.data.labels import close_answers, name_answers
from uniaudio.data.sources.parquet import ParquetSource
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.template import load_template

FSC = ",path,speakerId,transcription,action,object,location\n0,wavs/speakers/a/1.wav,a,Turn it up,increase,{},{}\n"
SPOKEN = {"train_data.csv": ("volume", "none"), "test_data.csv": ("heat", "kitchen")}

# Card: its folder, template, files of the published layout (text, or None for a clip), and answers by split.
FOLDERS = {
    "aishell1": (
        "aishell1",
        "asr_chinese",
        {
            "aishell1/data/train/wav.scp": "A ../../../wav/A.wav\n",
            "aishell1/data/train/text": "A 今天 天气\n",
            "aishell1/data/test/wav.scp": "B ../../../wav/B.wav\n",
            "aishell1/data/test/text": "B 很 好\n",
            "wav/A.wav": None,
            "wav/B.wav": None,
        },
        {"train": ["今天天气"], "test": ["很好"]},
    ),
    "clotho_aqa": (
        "clotho_aqa",
        "audio_qa",
        {
            "clotho_aqa/clotho_aqa_train.csv": "file_name,QuestionText,answer,confidence\na.wav,Rain?,yes,yes\n",
            "clotho_aqa/clotho_aqa_val.csv": "file_name,QuestionText,answer,confidence\na.wav,Wind?,no,yes\n",
            "clotho_aqa/clotho_aqa_test.csv": "file_name,QuestionText,answer,confidence\nb c.wav,Dogs?,two,no\n",
            "clotho_aqa/audio_files/a.wav": None,
            "clotho_aqa/audio_files/b c.wav": None,
        },
        {"train": ["yes"], "validation": ["no"], "test": ["two"]},
    ),
    "crema_d": (
        "CREMA-D",
        "emotion",
        {
            f"CREMA-D/AudioWAV/{name}.wav": None
            for name in ("1001_DFA_ANG_XX", "1073_IEO_SAD_LO", "1074_TAI_NEU_XX")
        },
        {"train": ["anger", "sad"], "test": ["neutral"]},
    ),
    "fluent_speech_commands": (
        "fluent_speech_commands_dataset",
        "intent",
        {
            "fluent_speech_commands_dataset/wavs/speakers/a/1.wav": None,
            **{
                f"fluent_speech_commands_dataset/data/{name}": FSC.format(*parts)
                for name, parts in SPOKEN.items()
            },
        },
        {"train": ["increase volume"], "test": ["increase heat kitchen"]},
    ),
    "fsdkaggle2018": (
        "FSDKaggle2018",
        "environmental_sound",
        {
            "FSDKaggle2018/FSDKaggle2018.meta/train_post_competition.csv": (
                "fname,label,manually_verified,freesound_id,license\n00044347.wav,Hi-hat,0,28739,CC0\n"
            ),
            "FSDKaggle2018/FSDKaggle2018.meta/test_post_competition_scoring_clips.csv": (
                "fname,label,usage,freesound_id,license\n00326aa9.wav,Violin_or_fiddle,Private,355125,CC0\n"
            ),
            "FSDKaggle2018/audio/00044347.wav": None,
            "FSDKaggle2018/audio/00326aa9.wav": None,
        },
        {"train": ["Hi-hat"], "test": ["Violin or fiddle"]},
    ),
    "libricount": (
        "LibriCount10-0dB",
        "speaker_count",
        {f"LibriCount10-0dB/test/{name}": None for name in ("0_5.wav", "10_24.wav")}
        | {"LibriCount10-0dB/test/0_5.json": "[]"},
        {"train": ["10"], "test": ["0"]},
    ),
    "nsynth": (
        "nsynth",
        "instrument",
        {
            "nsynth/nsynth-train/audio/synth_lead_synthetic_001-061-050.wav": None,
            "nsynth/nsynth-train/examples.json": "{}",
            "nsynth/nsynth-valid/audio/bass_electronic_018-022-100.wav": None,
            "nsynth/nsynth-test/audio/vocal_acoustic_000-060-127.wav": None,
        },
        {"train": ["synth lead"], "validation": ["bass"], "test": ["vocal"]},
    ),
    "vocalsound": (
        "vocalsound",
        "vocal_sound",
        {f"vocalsound/audio_16k/{name}.wav": None for name in ("f0003_0_throatclearing", "m1510_0_sniff")},
        {"train": ["throat clearing"], "test": ["sniff"]},
    ),
    "voxceleb1": (
        "voxceleb1",
        "speaker_id",
        {f"voxceleb1/wav/{name}/00001.wav": None for name in ("id10001/1zcIwhmdeo4", "id10002/aXXX-_03")},
        {"train": ["id10001"], "test": ["id10002"]},
    ),
    "voxlingua107": (
        "voxlingua107",
        "language_id",
        {
            "voxlingua107/train/et/a__U__S1---0001.wav": None,
            "voxlingua107/train/iw/b.wav": None,
            "voxlingua107/dev/zh/c.wav": None,
        },
        {"train": ["Estonian", "Hebrew"], "test": ["Chinese"]},
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_data_set_is_read_as_it_is_unpacked(tmp_path, monkeypatch, name):
    _, task, files, answers = FOLDERS[name]
    monkeypatch.setenv("UNIAUDIO_DATA", str(tmp_path))
    for place, content in files.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(clip_bytes(1) if content is None else content.encode())
    card = load_card(name)
    (template,) = close_answers([load_template(task)], card, None, {}, "labels", tmp_path)
    assert template.labels or name not in LABELLED
    for split, expected in answers.items():
        rows = list(open_source(card, split).rows())
        assert [template.render(card.fields(row.columns), None).answer for row in rows] == expected
        assert all(row.audio[0].read_seconds() == 0.1 for row in rows)


LABELLED = set(FOLDERS) - {"aishell1", "clotho_aqa", "voxceleb1"}  # sets with a closed set of their own


def test_notes_have_their_pitch(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_DATA", str(tmp_path))
    (tmp_path / "nsynth").mkdir()
    fields = load_card("nsynth").fields({"file_name": "audio/guitar_acoustic_001-069-050.wav"})
    assert load_template("pitch").render(fields, None).answer == "A4"


VALUE = datasets.Value
COMMANDS = ["yes", "no", "up", "_silence_"]
GENRES = ["blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock"]
INTENTS = datasets.ClassLabel(names=["app_error", "pay_bill"])
FEELINGS = ["neutral", "joy", "sadness", "anger", "fear", "disgust", "surprise"]

# Card of the Hub: template, features and rows as its repository has them, and the answers of those that are kept.
HUB = {
    "esc50": (
        "environmental_sound",
        {
            "filename": VALUE("string"),
            "fold": VALUE("int64"),
            "category": VALUE("string"),
            "esc10": VALUE("bool"),
        },
        [("1-100032-A-0.wav", 1, "door_wood_knock", True), ("5-1.wav", 5, "dog", True)],
        ["door wood knock"],
    ),
    "urbansound8k": (
        "urban_sound",
        {"fold": VALUE("int64"), "classID": VALUE("int64"), "class": VALUE("string")},
        [(1, 3, "dog_bark"), (10, 9, "street_music")],
        ["dog bark"],
    ),
    "gtzan": (
        "music_genre",
        {"file": VALUE("string"), "genre": datasets.ClassLabel(names=GENRES)},
        [("genres/jazz/jazz.00012.wav", 5), ("genres/pop/pop.00010.wav", 7)],
        ["jazz"],
    ),
    "speech_commands": (
        "keyword_spotting",
        {
            "file": VALUE("string"),
            "label": datasets.ClassLabel(names=COMMANDS),
            "is_unknown": VALUE("bool"),
            "speaker_id": VALUE("string"),
            "utterance_id": VALUE("int8"),
        },
        [
            ("up/0_nohash_0.wav", 2, False, "0", 0),
            ("_unknown_/no_1_nohash_0.wav", 1, True, "1", 0),
            ("_background_noise_/tap.wav", 3, False, None, 0),
        ],
        ["up", "no"],
    ),
    "meld": (
        "emotion",
        {"text": VALUE("string"), "emotion": datasets.ClassLabel(names=FEELINGS)},
        [("Oh!", 6), ("Fine.", 0)],
        ["surprise", "neutral"],
    ),
    "minds14_en": (
        "intent",
        {"path": VALUE("string"), "english_transcription": VALUE("string"), "intent_class": INTENTS},
        [
            ("en-US~APP_ERROR/602b9a5fbb1e6d0fbce91f56.wav", "It fails.", 0),
            ("en-US~PAY_BILL/601.wav", "Pay.", 1),
        ],
        ["app error"],
    ),
    "fsd50k": (
        "tagging",
        {"labels": datasets.Sequence(VALUE("string"))},
        [(["Bark", "Dog", "Domestic_animals_and_pets"],), (["Hi-hat"],)],
        ["Bark; Dog; Domestic animals and pets", "Hi-hat"],
    ),
    "audioset": (
        "tagging",
        {"video_id": VALUE("string"), "human_labels": datasets.Sequence(VALUE("string"))},
        [("a", ["Speech", "Child speech, kid speaking"])],
        ["Child speech, kid speaking; Speech"],
    ),
    "clotho": (
        "captioning",
        {"index": VALUE("int64"), "text": VALUE("string")},
        [(0, "A dog's bark. Rain falls.")],
        ["A dog's bark"],
    ),
    "gigaspeech": (
        "asr",
        {"text": VALUE("string"), "begin_time": VALUE("float32"), "end_time": VALUE("float32")},
        [("WELL <COMMA> YES <PERIOD>", 159.0, 162.2), ("<MUSIC>", 0.0, 1.0)],
        ["well, yes."],
    ),
    "song_describer": (
        "music_caption",
        {"caption": VALUE("string"), "is_valid_subset": VALUE("bool"), "duration": VALUE("float64")},
        [("Slow guitar.", True, 120.0), ("Loud.", False, 120.0)],
        ["Slow guitar."],
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub_are_rendered(tmp_path, name):
    """The table is a local file with the features of the repository: what a stream of the Hub has, too."""
    task, features, rows, answers = HUB[name]
    card = load_card(name)
    audio = {"bytes": VALUE("binary"), "path": VALUE("string")}
    stored = datasets.Features({**features, card.audio[0]: audio})
    clips = [{"bytes": clip_bytes(1), "path": f"{i}.wav"} for i, _ in enumerate(rows)]
    columns = {column: [row[i] for row in rows] for i, column in enumerate(features)}
    table = pyarrow.table({**columns, card.audio[0]: clips}, schema=stored.arrow_schema)
    pq.write_table(table, tmp_path / "a.parquet")
    split = "train" if "train" in card.splits else "test"
    local = card.load.model_copy(update={"hub": None, "parquet": str(tmp_path / "a.parquet")})
    source = ParquetSource(replace(card, load=local), split)
    closed = close_answers([load_template(task)], card, None, {}, "labels", tmp_path)
    (template,) = name_answers(closed, card, {}, source.classes)
    kept = list(source.rows())
    assert [template.render(card.fields(row.columns), None).answer for row in kept] == answers
    origin = "card" if card.labels else "classes" if name == "minds14_en" else "none"
    assert template.label_origin == origin
