"""Files as editors on any system write them."""

import codecs
import unicodedata

import pytest

from uniaudio.config.strict_yaml import load_yaml
from uniaudio.config.text_files import read_text_file
from uniaudio.data.template import load_template
from uniaudio.errors import RowError, UserError

TEMPLATE = """\
task: weather
domain: speech
inputs: [label]
labels_from: labels.txt
prompts: ["<audio>Wie ist das Wetter?"]
target: "{{ label }}"
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_mark_and_any_line_end(tmp_path, encoding, end):
    for name, text in (("weather.yaml", TEMPLATE), ("labels.txt", "schön\n regnerisch \n\nkühl\u2028er\n")):
        (tmp_path / name).write_bytes(text.replace("\n", end).encode(encoding))
    assert load_template(str(tmp_path / "weather.yaml")).labels == ("schön", "regnerisch", "kühl\u2028er")
    assert load_template("weather", near=tmp_path).task == "weather"  # by its name too


def test_big_endian_marks_too(tmp_path):
    for mark, encoding in ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")):
        (tmp_path / "a.yaml").write_bytes(mark + "a: ü".encode(encoding))
        assert load_yaml(tmp_path / "a.yaml") == {"a": "ü"}


def test_accents_of_labels_and_rows_may_be_written_in_two_ways(tmp_path):
    (tmp_path / "weather.yaml").write_text(TEMPLATE)
    (tmp_path / "labels.txt").write_text(unicodedata.normalize("NFD", "schön\nkühl\n"))
    template = load_template(str(tmp_path / "weather.yaml"))
    assert template.labels == ("schön", "kühl")
    assert template.render({"label": unicodedata.normalize("NFD", "kühl")}, None).answer == "kühl"
    with pytest.raises(RowError, match="unknown label"):
        template.render({"label": "kuhl"}, None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: x\nb: schön\n".encode("cp1252"), r"line 2: byte 11 is not UTF-8 text; save the file as UTF-8"),
        ("a: x\n".encode("utf-16-le"), r"line 1: holds a NUL character; save the file as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\x00:", r"is not UTF-16-LE text; save the file as UTF-8"),
        ("a: \u0007".encode(), r"unacceptable character"),
    ],
)
def test_another_encoding_is_a_sentence(tmp_path, content, sentence):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        load_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot be read"):
        read_text_file(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_text_file(tmp_path)
