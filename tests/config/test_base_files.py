"""Files over their bases: mappings are merged, lists replaced, circles refused."""

import pytest

from uniaudio.config.base_files import read_layers
from uniaudio.errors import UserError


def test_bases_of_bases_merge_mappings_and_replace_lists(tmp_path):
    (tmp_path / "a.yaml").write_text("x: {p: 1, q: {r: 2}}\nlist: [1, 2]\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nx: {q: {s: 3}}\n")
    (tmp_path / "c.yaml").write_text("base: b\nlist: [3]\n")
    assert read_layers(tmp_path / "c.yaml", "config") == {"x": {"p": 1, "q": {"r": 2, "s": 3}}, "list": [3]}
    (tmp_path / "a.yaml").write_text("base: c.yaml\n")
    with pytest.raises(UserError, match="inherit from each other in a cycle"):
        read_layers(tmp_path / "c.yaml", "config")
