"""Averages over classes, in which a rare class counts as much as a frequent one: UAR and macro-F1.

With ``n_c`` clips of class ``c``, ``h_c`` of them named rightly and ``g_c`` clips named ``c``, over the C classes that
clips are of (``n_c > 0``):

    UAR = 1/C sum_c h_c / n_c          macro-F1 = 1/C sum_c 2 h_c / (n_c + g_c)

UAR (unweighted average recall) is the balanced accuracy of scikit-learn, and macro-F1 its ``f1_score`` with
``average="macro"`` and the classes of the truth as ``labels``: a class without clips has no recall, and is left out of
both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from uniaudio.evaluate.metrics.intervals import Array, Summed, average_present, divide_sums

CLASS_METRICS = ("uar", "macro_f1")
NO_CLASS = -1  # of a guess that is none of the classes


def count_classes(truth: NDArray[np.int64], guess: NDArray[np.int64], classes: int) -> csr_array:
    """Return ``[N, 3 C]`` of 0 and 1: of every clip its class where it was guessed, its class, and its guess.

    At most three entries of a row are not 0, so the rows are sparse: answers of an open set may be thousands.

    Args:
        truth: ``[N]``, below C. guess: ``[N]``, below C or ``NO_CLASS``.
    """
    clips = np.arange(len(truth))
    right, named = clips[truth == guess], clips[guess != NO_CLASS]
    rows = np.concatenate([right, clips, named])
    columns = np.concatenate([truth[right], truth + classes, guess[named] + 2 * classes])
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(truth), 3 * classes))


def measure_class_averages(
    truth: NDArray[np.int64], guess: NDArray[np.int64], classes: int
) -> dict[str, Summed]:
    """Return accuracy, UAR and macro-F1 of guesses as functions of sums over clips, see ``count_classes``."""
    rows = count_classes(truth, guess, classes)

    def average_over_classes(compute: Callable[[Array, Array, Array], Array]) -> Summed:
        def value(sums: Array) -> Array:
            with np.errstate(invalid="ignore", divide="ignore"):
                each = compute(*(sums[:, part * classes : (part + 1) * classes] for part in range(3)))
            return average_present(each)

        return Summed(rows, value)

    right = (truth == guess).astype(np.float64)
    return {
        "accuracy": Summed(np.stack([right, np.ones_like(right)], 1), divide_sums),
        "uar": average_over_classes(lambda hits, there, named: hits / there),
        "macro_f1": average_over_classes(
            lambda hits, there, named: np.where(there > 0, 2 * hits / (there + named), np.nan)
        ),
    }


def number_answers(
    answers: Sequence[str], right: Sequence[bool], references: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the classes of clips, what was answered as their numbers, and how many classes there are.

    Args:
        answers, references: normalised texts; the class of a clip is its first right answer. right: whether the answer
            is any of the right ones of its clip, and so counts as its class.
    """
    index = {name: number for number, name in enumerate(dict.fromkeys(references))}
    truth = np.array([index[name] for name in references], np.int64)
    given = np.array([index.get(text, NO_CLASS) for text in answers], np.int64)
    # another right answer of the clip counts as its class; its own class is never a wrong answer
    return truth, np.where(np.asarray(right, bool), truth, given), len(index)
