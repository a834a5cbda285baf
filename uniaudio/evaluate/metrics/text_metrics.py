"""Scores of generated texts, as a template's ``scoring`` asks for: functions of sums over clips, cheap to resample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from uniaudio.data.template_file import Scoring
from uniaudio.evaluate.metrics.class_averages import CLASS_METRICS, measure_class_averages, number_answers
from uniaudio.evaluate.metrics.intervals import Array, Summed, average_present, divide_sums, make_mean
from uniaudio.evaluate.metrics.normalization import normalize_text
from uniaudio.evaluate.metrics.tokenization import (
    choose_bleu_tokenizer,
    drop_meaningless_blanks,
    separate_units,
)
from uniaudio.extras import require_package

References = Sequence[Sequence[str]]
LOWER_IS_BETTER = ("wer", "cer")
PACKAGES = {  # that metrics need, of optional extras
    "wer": "jiwer",
    "cer": "jiwer",
    "bleu": "sacrebleu",
    "meteor": "nltk",
    "cider": "aac_metrics",
}
# what is told beside the metric that was asked for
COMPANIONS = {
    "wer": ("wer", "cer"),
    "meteor": ("meteor", "bleu"),
    "cider": ("cider", "meteor", "bleu"),
    "map": ("map", "accuracy"),
    "uar": ("uar", "macro_f1", "accuracy"),
    "macro_f1": ("macro_f1", "uar", "accuracy"),
}
CLASS_COMPANIONS = ("accuracy", *CLASS_METRICS)  # of accuracy, where the answers are a closed set


class UndefinedScoreError(Exception):
    """A metric says nothing of these answers; the message says why. Other metrics of the same answers may."""


def error_rate(answers: Sequence[str], references: References, unit: str, tokenize: str = "words") -> Summed:
    """Return the word (``wer``) or character error rate (``cer``) against the first reference of each clip.

    ``(substitutions + deletions + insertions) / units of the references``, over all clips together.

    Args:
        tokenize: what counts as a word, see ``separate_units``.
    """
    import jiwer

    process = jiwer.process_words if unit == "wer" else jiwer.process_characters
    cut = separate_units if unit == "wer" else drop_meaningless_blanks
    rows = []
    for answer, (truth, *_) in zip(answers, references, strict=True):
        answer, truth = cut(answer, tokenize), cut(truth, tokenize)
        if not truth:  # nothing was said: every unit of the answer is an insertion
            rows.append((len(answer.split()) if unit == "wer" else len(answer), 0))
            continue
        alignment = process(truth, answer)
        errors = alignment.substitutions + alignment.deletions + alignment.insertions
        rows.append((errors, alignment.substitutions + alignment.deletions + alignment.hits))
    return Summed(np.array(rows, np.float64), divide_sums)


def bleu(answers: Sequence[str], references: References, tokenize: str = "auto") -> Summed:
    """Return corpus BLEU between 0 and 1 against all references (Papineni et al. 2002), by sacrebleu.

    Tokens are sacrebleu's ``13a`` (of a language named in ``tokenize``: its own), smoothing its ``exp``:
    ``BLEU = brevity * exp(mean_n log p_n)`` with n-gram precisions ``p_1 .. p_4`` over the whole set. With ``auto`` the
    characters of scripts without blanks are tokens of their own.

    Raises:
        UserError: when the tokenizer of the language is not installed.
    """
    from sacrebleu.metrics.bleu import BLEU  # a moment to import, and few sets want it

    tokenizer = choose_bleu_tokenizer(tokenize)
    if tokenizer == "13a":
        answers = [separate_units(answer, tokenize) for answer in answers]
        references = [[separate_units(truth, tokenize) for truth in truths] for truths in references]
    scorer = BLEU(effective_order=True, tokenize=tokenizer)  # of single sentences; the counts are the same
    rows = []
    for answer, truths in zip(answers, references, strict=True):
        score = scorer.sentence_score(answer, list(truths))
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])

    def value(sums: Array) -> Array:
        return np.array([of_counts([round(x) for x in row]) for row in sums])

    def of_counts(row: list[int]) -> float:
        counts, totals, (written, wanted) = row[:4], row[4:8], row[8:]
        score = BLEU.compute_bleu(counts, totals, written, wanted, smooth_method="exp").score
        return float(score) / 100

    return Summed(np.array(rows, np.float64), value)


def meteor(answers: Sequence[str], references: References, tokenize: str = "words") -> Summed:
    """Return the mean over clips of METEOR against the best reference (Banerjee and Lavie 2005), by nltk.

    Words match exactly or by their Porter stem; synonyms are left out, for they need WordNet's data. So it is
    ``METEOR (exact, stem)``, and a little lower than with synonyms. English only, so ``tokenize`` changes nothing.
    """
    from nltk.translate.meteor_score import meteor_score

    scores = [
        meteor_score([truth.split() for truth in truths], answer.split(), wordnet=NoSynonyms())
        for answer, truths in zip(answers, references, strict=True)
    ]
    return make_mean(np.array(scores, np.float64))


class NoSynonyms:
    """Stands in the place of WordNet and knows no synonyms."""

    def synsets(self, word: str) -> list[object]:
        """Return none."""
        return []


def cider(answers: Sequence[str], references: References, tokenize: str = "words") -> Summed:
    """Return the mean over clips of CIDEr-D (Vedantam et al. 2015), by aac-metrics.

    Rare n-grams count more: in how many clips of the set an n-gram occurs is taken from the references of all clips,
    and stays so in resamples. For captions in English, so ``tokenize`` changes nothing.

    Raises:
        UndefinedScoreError: when there is one clip only, in which nothing is rare, or no word in the references.
    """
    if len(answers) < 2:
        raise UndefinedScoreError("it weights n-grams by their rarity, which needs two clips or more")
    if not any(truth.split() for truths in references for truth in truths):
        raise UndefinedScoreError("all right answers are empty after normalizing")
    from aac_metrics.functional.cider_d import cider_d

    result = cider_d(list(answers), [list(truths) for truths in references])
    assert isinstance(result, tuple)  # with the scores of all clips
    return make_mean(result[1]["cider_d"].double().numpy())


def tag_precision(answers: Sequence[str], references: References, separator: str) -> Summed:
    """Return the mean average precision of answers that are lists of tags, over the tags of the references.

    A tag is in an answer or not, so its score is 0 or 1 and two operating points are left of the curve: what was named,
    and everything. With ``t`` clips named rightly, ``m`` named, ``p`` true and ``n`` in all,
    ``AP = t/p * t/m + (1 - t/p) * p/n``. This ranks nothing; for a ranking give the template ``labels``.
    """
    truths, named = (
        [{tag for tag in (part.strip() for part in text.split(separator)) if tag} for text in texts]
        for texts in ([group[0] for group in references], answers)
    )
    index = {tag: number for number, tag in enumerate(sorted(set().union(*truths)))}
    tags, clips = len(index), len(truths)
    # sparse, for there may be thousands of tags: of every clip those named rightly, those named, and those true
    ones = [
        (clip, part * tags + index[tag])
        for clip, (true, given) in enumerate(zip(truths, named, strict=True))
        for part, chosen in enumerate((true & given, given, true))
        for tag in chosen
        if tag in index
    ]
    ones += [(clip, 3 * tags) for clip in range(clips)]
    rows = csr_array((np.ones(len(ones)), tuple(zip(*ones, strict=True))), shape=(clips, 3 * tags + 1))

    def value(sums: Array) -> Array:
        both, answered, true = (sums[:, i * tags : (i + 1) * tags] for i in range(3))
        with np.errstate(invalid="ignore", divide="ignore"):
            hit_share, precision = both / true, np.where(answered > 0, both / answered, 0.0)
            each = hit_share * precision + (1 - hit_share) * true / sums[:, -1:]
        return average_present(each)

    return Summed(rows, value)


def require_metric(scoring: Scoring) -> None:
    """Refuse a scoring for whose metric, or a companion of it, a package is not installed, or the tokenizer of its
    language.

    Raises:
        UserError: naming the extra.
    """
    names = COMPANIONS.get(scoring.metric, (scoring.metric,))
    for name in names:
        if name in PACKAGES:
            require_package(PACKAGES[name], f"scoring.metric: {scoring.metric}")
    if "bleu" in names:
        choose_bleu_tokenizer(scoring.tokenize)


TEXT_METRICS: dict[str, Callable[..., Summed]] = {
    "wer": partial(error_rate, unit="wer"),
    "cer": partial(error_rate, unit="cer"),
    "bleu": bleu,
    "meteor": meteor,
    "cider": cider,
}


def is_right(answer: str, references: Sequence[str], scoring: Scoring) -> bool:
    """Return whether an answer equals one of the right ones after normalising."""
    return normalize_text(answer, scoring.normalize) in {
        normalize_text(r, scoring.normalize) for r in references
    }


def measure_metric(answers: Sequence[str], references: References, scoring: Scoring, metric: str) -> Summed:
    """Return one metric of a set of answers.

    Args:
        references: all right answers of every clip, at least one each.

    Raises:
        UserError: see ``bleu``. UndefinedScoreError: see ``cider``; where all right answers are empty after
            normalising.
    """
    measure = sum_metric(answers, references, scoring, metric)
    if not np.isfinite(measure.score()):
        raise UndefinedScoreError(
            f"all right answers are empty after normalizing (scoring.normalize: {scoring.normalize})"
        )
    return measure


def sum_metric(answers: Sequence[str], references: References, scoring: Scoring, metric: str) -> Summed:
    """Return what ``measure_metric`` does, also where its score is no number."""
    if metric in CLASS_METRICS or metric == "accuracy":
        right = [is_right(a, r, scoring) for a, r in zip(answers, references, strict=True)]
        if metric == "accuracy":
            return make_mean(np.array(right, np.float64))
        given, true = (
            [normalize_text(text, scoring.normalize) for text in texts]
            for texts in (answers, [group[0] for group in references])
        )
        return measure_class_averages(*number_answers(given, right, true))[metric]
    if metric == "map":
        lists = [[normalize_tags(text, scoring) for text in group] for group in references]
        return tag_precision([normalize_tags(a, scoring) for a in answers], lists, scoring.separator)
    truths = [[normalize_text(r, scoring.normalize) for r in texts] for texts in references]
    return TEXT_METRICS[metric](
        [normalize_text(a, scoring.normalize) for a in answers], truths, tokenize=scoring.tokenize
    )


def normalize_tags(text: str, scoring: Scoring) -> str:
    """Normalise every tag of a list; the marks between them stay."""
    tags = text.split(scoring.separator)
    return scoring.separator.join(normalize_text(tag, scoring.normalize) for tag in tags)


def measure_with_companions(
    answers: Sequence[str], references: References, scoring: Scoring, is_closed: bool = False
) -> tuple[dict[str, Summed], dict[str, str]]:
    """Return the metric of a template and its companions, by name, the metric itself first; and of those that say
    nothing of these answers, why.

    Args:
        is_closed: an answer is a label of a closed set.
    """
    names = COMPANIONS.get(scoring.metric, (scoring.metric,))
    if is_closed and scoring.metric == "accuracy":
        names = CLASS_COMPANIONS
    measured: dict[str, Summed] = {}
    undefined: dict[str, str] = {}
    for name in names:
        try:
            measured[name] = measure_metric(answers, references, scoring, name)
        except UndefinedScoreError as problem:
            undefined[name] = str(problem)
    return measured, undefined


def list_class_companions(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy, UAR and macro-F1 that a result of ``evaluate_entry`` has besides its metric."""
    metrics = result.get("metrics") or {}
    if result["metric"] not in CLASS_COMPANIONS:
        return {}
    return {name: metrics[name] for name in CLASS_COMPANIONS if name in metrics and name != result["metric"]}
