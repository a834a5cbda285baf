"""When the logits of a written model are those of the run."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from uniaudio.export.logit_comparison import compare_logits


class Processor:
    """In place of the one in a folder."""

    def __call__(self, **inputs):
        return {}

    def apply_chat_template(self, turns, add_generation_prompt):
        return "What is this?"


def test_other_logits_of_one_clip_are_a_fault(monkeypatch):
    stock = SimpleNamespace(from_pretrained=lambda *_, **__: Processor())
    monkeypatch.setattr("uniaudio.export.logit_comparison.AutoProcessor", stock)
    ours, clips = [torch.ones(3, 5)] * 2, [np.zeros(9, np.int16)] * 2

    def compare(*values, exact=True):
        answers = iter(values)

        def model():
            return SimpleNamespace(logits=torch.full((1, 3, 5), next(answers)))

        return compare_logits(ours, clips, Path("folder"), model, exact, slice(None))

    assert compare(1.0, 1.0001).difference == pytest.approx(1e-4, rel=1e-2)
    assert compare(1.0, 2.0, exact=False).difference == 1
    for last, exact in ((2.0, True), (torch.nan, True), (torch.nan, False)):
        with pytest.raises(
            RuntimeError, match="the logits of the exported model differ from those of the run"
        ):
            compare(1.0, last, exact=exact)
