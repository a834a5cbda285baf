"""Text cues: stretched, interrupted, and always readable."""

import random

from hypothesis import given
from hypothesis import strategies as st

from uniaudio.tiny.curriculum import LONGEST_CLIP, NOISE, draw_silent_tokens, stretch_tokens

BLANK = 0
answers = st.lists(st.integers(1, 9), min_size=1, max_size=40)


def read_off(clip):
    """Collapse repeats and drop fillers, as in CTC."""
    said, previous = [], None
    for token in clip:
        if token != previous and token not in (BLANK, NOISE):
            said.append(token)
        previous = token if token not in (BLANK, NOISE) else None
    return said


@given(answer=answers, seed=st.integers(0, 10_000))
def test_the_answer_can_always_be_read_off(answer, seed):
    assert read_off(stretch_tokens(answer, BLANK, random.Random(seed))) == answer


@given(answer=answers, seed=st.integers(0, 10_000))
def test_clips_stay_short(answer, seed):
    assert len(stretch_tokens(answer, BLANK, random.Random(seed))) <= 2 * LONGEST_CLIP + 3 * len(answer)


def test_clips_vary_and_are_stretched():
    rng = random.Random(0)
    lengths = [len(stretch_tokens([4, 5, 6], BLANK, rng)) for _ in range(200)]
    assert min(lengths) < 8
    assert max(lengths) > 40


def test_an_empty_clip_says_nothing():
    rng = random.Random(0)
    clips = [draw_silent_tokens(BLANK, rng) for _ in range(100)]
    assert {token for clip in clips for token in clip} == {BLANK, NOISE}
    assert all(1 <= len(clip) <= LONGEST_CLIP for clip in clips)
