"""The estimate for many GPUs: docs/scaling.md shows what the script prints."""

from pathlib import Path

import scaling_estimate

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_page_shows_what_the_script_prints(capsys):
    scaling_estimate.main()
    shown = PAGE.read_text().partition("python benchmarks/scaling_estimate.py\n```\n")[2].split("```\n")[1]
    assert shown == capsys.readouterr().out
