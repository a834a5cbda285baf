"""Conditions of evaluation: each changes every clip, always in the same way."""

import random

import numpy as np
import pytest
from data.test_augment import voice

from uniaudio.data.augment import Augmenter
from uniaudio.data.eval_conditions import CONDITIONS


@pytest.mark.parametrize("name", sorted(CONDITIONS))
def test_conditions_change_clips_and_fixed(name):
    clip = voice()
    first, second = (Augmenter(CONDITIONS[name], name).augment(clip, random.Random(s)) for s in (1, 1))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, clip)
