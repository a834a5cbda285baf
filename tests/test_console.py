"""What commands show while they work, on a terminal and in files."""

import io
import logging
import warnings

import datasets
import pytest
from datasets.utils import tqdm as datasets_tqdm
from huggingface_hub.utils import tqdm as hub_tqdm
from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from uniaudio import console as shown
from uniaudio.console import (
    WorkProgress,
    announce,
    format_difference,
    format_duration,
    format_number,
    hide_library_bars,
    make_console,
    silence_known_warnings,
)


def test_tables_and_sentences_are_not_wrapped_in_files(capsys):
    table = Table("name", "text")
    table.add_row("row", "word " * 60)
    console = make_console()
    console.print(table)
    console.print("word " * 60)
    lines = capsys.readouterr().out.splitlines()
    assert sum("word word" in line for line in lines) == 2


@pytest.mark.parametrize("name", ["esc50:bird:validation", "/data/[noise]/x", "[/b] [a]"])
def test_names_that_look_like_markup_are_printed_as_they_are(capsys, name):
    console = make_console()
    console.print(f"{name}: skipped", style="yellow")
    table = Table(name, title=name)
    table.add_row(name)
    console.print(table)
    assert capsys.readouterr().out.count(name) == 4


def test_a_bar_shows_a_name_that_looks_like_markup():
    stream = io.StringIO()
    with WorkProgress(Console(file=stream, force_terminal=True, width=80), "clips") as progress:
        progress.count(progress.begin("esc50:bird:validation [noise]", 2), 2, rate="[music] :cat:")
    assert "esc50:bird:validation [noise]" in stream.getvalue()
    assert "[music] :cat:" in stream.getvalue()


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "0.0"), (9.94, "9.9"), (9.96, "10"), (12.4, "12"), (25419.0, "25,419")]
)
def test_numbers_below_ten_have_a_decimal(value, text):
    assert format_number(value) == text


def test_a_difference_that_is_rounded_to_zero_has_no_minus():
    assert [format_difference(value, 3) for value in (-1e-9, 1e-9, -0.0006, 0.25)] == [
        "+0.000",
        "+0.000",
        "-0.001",
        "+0.250",
    ]


def test_durations():
    assert [format_duration(seconds) for seconds in (None, 59.6, 3725)] == ["?", "0:01:00", "1:02:05"]


def test_a_file_gets_a_plain_line_per_interval(monkeypatch):
    clock = iter(range(0, 10_000, 7))  # seconds
    monkeypatch.setattr(shown.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with WorkProgress(Console(file=stream, width=1000), "clips") as progress:
        task = progress.begin("embedding", 40)
        for _ in range(40):
            progress.count(task)
    lines = stream.getvalue().splitlines()
    assert 3 < len(lines) < 40
    assert all(line.startswith("embedding: ") and " of 40 clips" in line for line in lines)
    assert all(len(line) <= 100 for line in lines)
    assert "clips/s  eta 0:0" in lines[-1]


def test_a_kind_of_work_may_have_another_unit(monkeypatch):
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(shown.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with WorkProgress(Console(file=stream, width=1000), "clips") as progress:
        progress.count(progress.begin("probing", 3, unit="models"))
    assert stream.getvalue().startswith("probing: 1 of 3 models")


def test_a_terminal_gets_a_bar_and_no_lines():
    stream = io.StringIO()
    with WorkProgress(Console(file=stream, force_terminal=True, width=80), "clips") as progress:
        progress.count(progress.begin("embedding", 2), 2, rate="3.0 audio-s/s")
    assert "2/2" in stream.getvalue()
    assert " of 2 clips" not in stream.getvalue()


def test_figures_of_a_step_are_whole_on_80_columns():
    stream, figures = io.StringIO(), "loss 5.4609  51 audio-s/s  data wait 34%"
    columns = (TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(file=stream, force_terminal=True, width=80)
    with WorkProgress(console, "steps", columns=columns) as progress:
        progress.add_task("joint", total=2000, completed=1000, figures=figures, rate="")
    assert figures in stream.getvalue()
    assert "1000/2000" in stream.getvalue()


def test_only_known_warnings_are_silenced(monkeypatch):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        silence_known_warnings()
        warnings.warn(
            "`torch.distributed.all_gather_into_tensor` is deprecated. Use ...", FutureWarning, stacklevel=1
        )
        warnings.warn("`torch.distributed.all_gather_into_tensor` is deprecated", UserWarning, stacklevel=1)
        warnings.warn("something else", FutureWarning, stacklevel=1)
    assert [warning.category for warning in seen] == [UserWarning, FutureWarning]


def test_only_known_log_lines_of_deepspeed_are_dropped(caplog):
    silence_known_warnings()
    silence_known_warnings()
    logger = logging.getLogger("DeepSpeed")
    assert sum(isinstance(each, shown.KnownLogFilter) for each in logger.filters) == 1
    logger.warning("Setting accelerator to CPU. If you have GPU ...")
    logger.warning("the optimizer is unknown")
    assert caplog.messages == ["the optimizer is unknown"]


def test_tries_to_reach_the_hub_are_no_lines(caplog):
    silence_known_warnings()
    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.warning(
        "'[Errno -2] Name or service not known' thrown while requesting HEAD https://hub/config.json"
    )
    logger.warning("Retrying in 1s [Retry 1/5].")
    logger.warning("something else")
    assert "something else" in caplog.text or not logger.propagate
    assert "Retry" not in caplog.text


def test_bars_of_libraries_are_hidden_and_others_are_not(tmp_path, capsys):
    announce("begins")
    hide_library_bars()  # a second time, it changes nothing
    config = Qwen3Config(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=8,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    rows = datasets.Dataset.from_dict({"x": [1, 2]}).cast_column("x", datasets.Value("int8"))
    rows.save_to_disk(tmp_path / "rows")
    assert capsys.readouterr().err == "begins\n"
    for bar in (transformers_logging.tqdm, hub_tqdm, datasets_tqdm):
        assert list(bar(range(3), desc="Downloading")) == [0, 1, 2]
        assert "Downloading" in capsys.readouterr().err
    assert list(hub_tqdm(range(3), "Casting")) == [0, 1, 2]  # a text by its place
    assert capsys.readouterr().err == ""


def test_one_process_of_a_launch_says_what_is_loaded(monkeypatch, capsys):
    announce("loading")
    monkeypatch.setenv("RANK", "1")
    announce("loading")
    assert capsys.readouterr().err == "loading\n"
