"""Fingerprints of local data: other data have another one, and the same data elsewhere the same."""

import datasets
import pyarrow.parquet as pq
import pytest
from helpers.files import card, clip_bytes, write_parquet, write_tar

from uniaudio.data.sources.file_fingerprints import hash_ends
from uniaudio.data.sources.source_kinds import open_source


def write_hub_folder(folder):
    write_parquet(folder)
    (folder / "README.md").write_text(
        "---\nconfigs: [{config_name: default, data_files: train-*.parquet}]\n---\n"
    )


def write_saved(folder, first=0, count=1600):
    clips = [{"bytes": clip_bytes(i, count=count), "path": None} for i in range(4)]
    columns = {"audio": clips, "n": list(range(first, first + 4)), "more": clips}
    datasets.Dataset.from_dict(columns).save_to_disk(folder)


def write_saved_splits(folder):
    write_saved(folder / "train")
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')


def write_clips(folder):
    for n in range(3):
        (folder / "train").mkdir(parents=True, exist_ok=True)
        (folder / "train" / f"{n}.wav").write_bytes(clip_bytes(n))
    (folder / "train" / "metadata.csv").write_text("file_name,n\n0.wav,0\n1.wav,1\n2.wav,2\n")


def write_tars(folder):
    for part in range(2):
        write_tar(folder / f"set_{part}.tar", range(3 * part, 3 * part + 3))


KINDS = {
    "parquet": ("parquet", write_parquet),
    "tars": ("webdataset", write_tars),
    "hub": ("hub", write_hub_folder),
    "hub_clips": ("hub", write_clips),
    "saved": ("hub", write_saved),
    "saved_splits": ("hub", write_saved_splits),
}


@pytest.fixture(params=KINDS)
def data(request, tmp_path):
    """The folder of a data set of some kind, and a function that opens it where it lies and returns its fingerprint."""
    kind, write = KINDS[request.param]
    write(tmp_path / "data")

    def take(folder="data"):
        return open_source(card(tmp_path, {kind: str(tmp_path / folder)}), "train").fingerprint({"n"})

    return tmp_path / "data", take


def test_data_may_be_moved(data):
    folder, take = data
    before = take()
    assert take() == before
    folder.rename(folder.with_name("elsewhere"))
    assert take("elsewhere") == before


def test_a_file_of_another_size_is_noticed(data):
    folder, take = data
    before = take()
    file = max(path for path in folder.rglob("*") if path.suffix in (".parquet", ".tar", ".arrow", ".wav"))
    with file.open("ab") as stream:
        stream.write(b"\0" * 512)
    assert take() != before


def test_another_table_of_equal_size_in_a_hub_folder_is_noticed(tmp_path):
    folder = tmp_path / "data"
    write_hub_folder(folder)
    file = min(folder.glob("*.parquet"))
    table = pq.read_table(file)

    def take(numbers):
        changed = table.set_column(table.schema.get_field_index("n"), "n", [numbers])
        pq.write_table(changed, file, row_group_size=3, compression="none")
        source = open_source(card(tmp_path, {"hub": str(folder)}), "train")
        return source.fingerprint({"n"}), file.stat().st_size

    before, size = take([0, 1, 2, 3, 4])
    other, other_size = take([0, 1, 2, 4, 3])
    assert other_size == size
    assert other != before
    (folder / "README.md").write_text((folder / "README.md").read_text() + "More about the data.\n")
    assert take([0, 1, 2, 3, 4]) == (before, size)


def test_a_data_set_that_is_saved_again_with_other_values_of_equal_size_is_noticed(tmp_path):
    """The values lie between large columns, so both ends of the file stay as they were."""

    def take(first):
        write_saved(tmp_path / "data", first, count=60_000)
        (file,) = (tmp_path / "data").glob("*.arrow")
        source = open_source(card(tmp_path, {"hub": str(tmp_path / "data")}), "train")
        return source.fingerprint({"n"}), file.stat().st_size, hash_ends(str(file))

    before, size, ends = take(0)
    other, other_size, other_ends = take(1)
    assert (other_size, other_ends) == (size, ends)
    assert other != before
    assert take(0)[0] == before
