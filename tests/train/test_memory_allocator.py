"""The sentence about the memory allocator: only for long runs on a CPU whose memory comes from glibc."""

import os

import pytest

from uniaudio.train import memory_allocator
from uniaudio.train.memory_allocator import LONG_RUN, find_jemalloc, recommend_allocator

CPU = "cpu"
GLIBC = "7f01-7f02 r-xp 0 fe:00 3 /usr/lib/x86_64-linux-gnu/libc.so.6\n"
PRELOADED = "7f03-7f04 r-xp 0 fe:00 4 /usr/lib/x86_64-linux-gnu/{}\n"

pytestmark = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="only where the C library is glibc"
)


@pytest.fixture
def maps(tmp_path):
    file = tmp_path / "maps"
    file.write_text(GLIBC)
    return file


def test_a_long_run_on_a_cpu_gets_the_advice(maps):
    assert "glibc's memory allocator" in recommend_allocator(CPU, LONG_RUN, maps)
    assert "glibc's memory allocator" in recommend_allocator(CPU, None, maps)  # hours of audio end it


def test_a_short_run_and_a_gpu_get_none(maps):
    assert recommend_allocator(CPU, LONG_RUN - 1, maps) is None
    assert recommend_allocator("cuda", LONG_RUN, maps) is None


@pytest.mark.parametrize("library", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2.0"])
def test_another_allocator_is_enough(maps, library):
    maps.write_text(PRELOADED.format(library) + GLIBC)
    assert recommend_allocator(CPU, LONG_RUN, maps) is None


def test_a_system_that_lists_no_files_gets_none(tmp_path):
    assert recommend_allocator(CPU, LONG_RUN, tmp_path / "none") is None


def test_the_sentence_names_the_installed_library(maps, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_allocator, "find_jemalloc", lambda: None)
    assert "install jemalloc (Debian and Ubuntu: libjemalloc2)" in recommend_allocator(CPU, LONG_RUN, maps)
    monkeypatch.setattr(memory_allocator, "find_jemalloc", lambda: tmp_path / "libjemalloc.so.2")
    sentence = recommend_allocator(CPU, LONG_RUN, maps)
    assert f"LD_PRELOAD={tmp_path}/libjemalloc.so.2 uniaudio train" in sentence


def test_jemalloc_is_found_where_systems_put_it(tmp_path):
    folders = (tmp_path / "none", tmp_path / "lib")
    assert find_jemalloc(folders) is None
    library = tmp_path / "lib/aarch64-linux-gnu/libjemalloc.so.2"
    library.parent.mkdir(parents=True)
    library.touch()
    assert find_jemalloc(folders) == library
    direct = tmp_path / "lib/libjemalloc.so.2"
    direct.touch()
    assert find_jemalloc(folders) == direct
