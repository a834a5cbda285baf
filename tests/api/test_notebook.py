"""The notebook of examples/ runs from its first cell to its last."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "train_and_listen.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_cell_by_cell_and_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names = {"__name__": "__main__"}
    shown = []
    for cell in cells:
        assert not cell.get("outputs")
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names))
    losses = [loss for _, loss in names["history"].losses]
    assert losses[-1] < losses[0] / 2
    assert names["run"].is_finished
    assert names["scores"]["tones:tone"]["examples"] == 16
    assert shown[-1].name == "report.html"
