"""Scores of texts against values by hand and plain loops."""

import math
import sys
import unicodedata
from collections import Counter
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from sklearn.metrics import average_precision_score
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from uniaudio.data.template_file import Scoring
from uniaudio.errors import UserError
from uniaudio.evaluate.metrics import intervals, text_metrics
from uniaudio.evaluate.metrics.normalization import normalize_challenge_text, normalize_text
from uniaudio.evaluate.metrics.text_metrics import (
    UndefinedScoreError,
    bleu,
    error_rate,
    is_right,
    measure_metric,
    measure_with_companions,
    meteor,
    require_metric,
    tag_precision,
)
from uniaudio.evaluate.metrics.tokenization import separate_units
from uniaudio.run_records import describe_undefined_scores

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=7).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=6)


def edits(truth, answer):
    """Levenshtein's distance by its recursion, row by row."""
    row = list(range(len(answer) + 1))
    for i, a in enumerate(truth, 1):
        new = [i]
        for j, b in enumerate(answer, 1):
            new.append(min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (a != b)))
        row = new
    return row[-1]


@given(PAIRS)
def test_error_rates_are_edits_over_units(pairs):
    answers, references = [a for a, _ in pairs], [r for _, r in pairs]
    for unit, split in (("wer", str.split), ("cer", list)):
        wrong = sum(edits(split(r[0]), split(a)) for a, r in pairs)
        total = sum(len(split(r[0])) for _, r in pairs)
        assert error_rate(answers, references, unit).score() == pytest.approx(wrong / total)


def test_words_where_nothing_was_said_are_insertions():
    assert error_rate(["oh my", "yes"], [[""], ["yes"]], "wer").score() == 2.0
    assert error_rate(["ab", "yes"], [[""], ["yes"]], "cer").score() == pytest.approx(2 / 3)
    assert math.isnan(error_rate([""], [[""]], "wer").score())


def test_bleu_by_hand():
    # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, and no four words, which count as half of one
    assert bleu(["a b c d"], [["a b c e"]]).score() == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    assert bleu(["a b c d"], [["x", "a b c d"]]).score() == pytest.approx(1)
    # everything found, but 4 words for 5: exp(1 - 5/4)
    assert bleu(["a b c d"], [["a b c d e"]]).score() == pytest.approx(math.exp(-1 / 4))


@given(PAIRS)
def test_bleu_of_sums_is_sacrebleus_of_the_corpus(pairs):
    answers, references = [a for a, _ in pairs], [r for _, r in pairs]
    most = max(map(len, references))
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    assert bleu(answers, references).score() == pytest.approx(
        BLEU().corpus_score(answers, streams).score / 100
    )


def test_meteor_by_hand():
    # three words match, one by its stem, in one piece: F = 1, penalty 0.5 * (1/3)**3
    whole = 1 - 0.5 / 27
    assert meteor(["the cats sat"], [["the cat sat"]]).score() == pytest.approx(whole)
    # one word of two, reference of three: P = 1/2, R = 1/3, F = P * R / (0.9 * P + 0.1 * R), one piece: penalty 0.5
    one = (1 / 6) / (0.45 + 0.1 / 3) * 0.5
    assert meteor(["a b"], [["a c d"]]).score() == pytest.approx(one)
    assert meteor(["a b", "the cats sat"], [["a c d"], ["x", "the cat sat"]]).score() == pytest.approx(
        (one + whole) / 2
    )
    assert meteor(["dog"], [["hound"]]).score() == 0  # synonyms are left out


def cider_by_loops(answers, references):
    """CIDEr-D: clipped cosines of tf-idf vectors of n-grams, times a Gaussian of the difference in length, times 10."""

    def grams(text, n):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    clips = len(answers)
    scores = []
    for answer, truths in zip(answers, references, strict=True):
        total = 0.0
        for n in range(1, 5):

            def weigh(text, n=n):
                weights = {}
                for gram, count in grams(text, n).items():
                    documents = sum(any(gram in grams(r, n) for r in group) for group in references)
                    weights[gram] = count * (math.log(clips) - math.log(max(1, documents)))
                return weights

            for truth in truths:
                one, other = weigh(answer), weigh(truth)
                norm = math.sqrt(sum(x * x for x in one.values()) * sum(x * x for x in other.values()))
                dot = sum(min(x, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, x in one.items())
                apart = len(answer.split()) - len(truth.split())
                total += (dot / norm if norm else 0.0) * math.exp(-(apart**2) / 72)
        scores.append(10 * total / 4 / len(truths))
    return scores


def test_cider_equals_its_definition():
    pytest.importorskip("aac_metrics", reason="the extra `captions` is not installed")
    answers = ["a dog barks in the rain", "birds sing", "a man speaks while a dog barks"]
    references = [
        ["a dog barks", "a dog is barking in the rain"],
        ["birds sing in a tree", "many birds"],
        ["a man speaks", "a man talks while a dog barks loudly"],
    ]
    measured = text_metrics.cider(answers, references)
    np.testing.assert_allclose(measured.rows[:, 0], cider_by_loops(answers, references), rtol=1e-6)
    assert measured.score() == pytest.approx(sum(cider_by_loops(answers, references)) / 3)
    with pytest.raises(UndefinedScoreError, match="two clips or more"):
        text_metrics.cider(answers[:1], references[:1])


def test_a_metric_of_an_extra_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "aac_metrics", None)
    with pytest.raises(
        UserError, match=r"cider needs the extra captions: pip install 'uniaudio\[captions\]'"
    ):
        require_metric(Scoring(metric="cider"))
    require_metric(Scoring(metric="wer"))
    for metric, package in (("wer", "jiwer"), ("bleu", "sacrebleu"), ("meteor", "nltk")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=f"{metric} needs the extra metrics"):
            require_metric(Scoring(metric=metric))


@pytest.mark.parametrize("package", ["nltk", "sacrebleu"])
def test_the_packages_of_companions_are_needed_too(package, monkeypatch):
    """The extra of ``cider`` does not bring those of METEOR and BLEU, which are reported beside it."""
    monkeypatch.setitem(sys.modules, "aac_metrics", ModuleType("aac_metrics"))
    sys.modules["aac_metrics"].__spec__ = ModuleSpec("aac_metrics", None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"scoring\.metric: cider needs the extra metrics"):
        require_metric(Scoring(metric="cider"))


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from("abcdx")), st.sets(st.sampled_from("abcd"), min_size=1)),
        min_size=2,
        max_size=8,
    )
)
def test_precision_of_tags_is_scikit_learns_of_zeros_and_ones(pairs):
    answers = ["; ".join(sorted(answered)) for answered, _ in pairs]
    references = [[";".join(sorted(true))] for _, true in pairs]
    tags = sorted(set().union(*(true for _, true in pairs)))
    truth = np.array([[tag in true for tag in tags] for _, true in pairs], int)
    answered = np.array([[tag in row for tag in tags] for row, _ in pairs], int)
    each = [average_precision_score(truth[:, k], answered[:, k]) for k in range(len(tags))]
    assert tag_precision(answers, references, ";").score() == pytest.approx(np.mean(each))


def score_answers(answers, references, scoring):
    return measure_metric(answers, references, scoring, scoring.metric).score()


def test_scores_of_templates():
    words = Scoring(metric="wer", normalize="words")
    assert score_answers(["the cat sat", "a dog"], [["The cat, sat."], ["the dog"]], words) == pytest.approx(
        1 / 5
    )
    plain = Scoring(metric="accuracy", normalize="lowercase")
    assert score_answers(["Dog", "cat"], [["dog"], ["dog", "wolf"]], plain) == 0.5
    assert is_right("WOLF ", ["dog", "wolf"], plain)
    assert not is_right("Dog", ["dog"], Scoring(normalize="none"))
    tags = Scoring(metric="map", separator=",")
    assert score_answers(["Rain, dog", "rain"], [["dog,rain"], ["rain"]], tags) == 1
    measured, _ = measure_with_companions(["a cat"], [["a bat"]], words)
    assert {name: measure.score() for name, measure in measured.items()} == {"wer": 0.5, "cer": 0.2}
    assert list(measure_with_companions(["a"], [["a"]], tags)[0]) == ["map", "accuracy"]
    assert list(measure_with_companions(["a"], [["a"]], Scoring(metric="meteor"))[0]) == ["meteor", "bleu"]


METRICS = ("accuracy", "uar", "macro_f1", "wer", "cer", "bleu", "meteor", "cider", "map")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("answers", "references"),
    [
        (["a dog"], [["a dog"]]),  # one row
        ([""], [["a dog"]]),
        (["", ""], [["a dog"], ["a cat"]]),  # nothing is answered
        (["a dog", "a cat"], [["a dog"], ["a dog"]]),  # one class
        (["", ""], [["!"], ["?"]]),  # no right answer has a word
        (["a", ""], [["!"], ["a b"]]),
    ],
)
def test_no_answers_end_an_evaluation(metric, answers, references):
    """Every metric has a score that is a number, or says why it has none."""
    if metric == "cider":
        pytest.importorskip("aac_metrics", reason="the extra `captions` is not installed")
    scoring = Scoring(metric=metric, normalize="words")
    measured, undefined = measure_with_companions(answers, references, scoring, is_closed=True)
    assert set(measured).isdisjoint(undefined)
    assert metric in {*measured, *undefined}
    for measure in measured.values():
        interval = intervals.compute_interval(measure.clips, measure.resample)
        assert np.isfinite([measure.score(), *interval]).all()
    has_no_text = not any(normalize_text(text, "words") for texts in references for text in texts)
    expected = {"cider"} if len(answers) == 1 else set()
    expected |= {"wer", "cer", "map", "cider"} if has_no_text else set()
    assert set(undefined) == expected & {*text_metrics.COMPANIONS.get(metric, ()), metric}


def test_an_undefined_metric_leaves_its_companions(monkeypatch):
    def refuse(answers, references, tokenize):
        raise UndefinedScoreError("too few")

    monkeypatch.setitem(text_metrics.TEXT_METRICS, "cider", refuse)
    measured, undefined = measure_with_companions(["a dog"], [["a dog"]], Scoring(metric="cider"))
    assert undefined == {"cider": "too few"}
    assert list(measured) == ["meteor", "bleu"]
    assert describe_undefined_scores("set", {"undefined": undefined}) == ["set: cider is undefined: too few"]
    assert describe_undefined_scores("set", {"score": 1.0}) == []


def test_normalising():
    assert normalize_text(" A  Dog's,\tbark! ", "none") == "A Dog's, bark!"
    assert normalize_text(" A  Dog's, bark! ", "lowercase") == "a dog's, bark!"
    assert normalize_text(" A  Dog's, bark! ", "words") == "a dog's bark"
    assert normalize_text("[noise] Ünder-way (laughs), ok!", "whisper") == "ünder way ok"
    assert normalize_text("I can't pay twenty-five dollars, Mr. Fox.", "whisper_english") == (
        "i can not pay $25 mister fox"
    )


def test_text_of_the_challenge():
    assert normalize_challenge_text(' Ｗｅｌｌ-known:  "Fan" (ﬁne)… ') == "well known fan fine"


@pytest.mark.parametrize("how", ["lowercase", "words", "whisper"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("मैं स्कूल जाता हूँ", 4),  # Hindi
        ("நான் பள்ளிக்குச் செல்கிறேன்", 3),  # Tamil
        ("ഞാൻ സ്കൂളിൽ പോകുന്നു", 3),  # Malayalam
        ("ذَهَبَ الْوَلَدُ", 2),  # vowelled Arabic
        ("שָׁלוֹם עוֹלָם", 2),  # pointed Hebrew
        ("ฉันไปโรงเรียน", 1),  # Thai: one run without blanks
    ],
)
def test_combining_marks_are_parts_of_words(how, text, words):
    even = normalize_text(text, how)
    assert len(even.split()) == words
    assert normalize_text(text + "!", "words") == normalize_text(text, "words")
    marks = [c for c in text if unicodedata.category(c)[0] == "M"]
    kept = unicodedata.normalize("NFD", even)
    assert sum(unicodedata.category(c)[0] == "M" for c in kept) >= len(marks)


def test_a_wrong_vowel_sign_is_an_error():
    scoring = Scoring(metric="wer", normalize="words")
    assert score_answers(["मैं स्कूल जाती हूँ"], [["मैं स्कूल जाता हूँ"]], scoring) == 0.25
    assert not is_right("जाती", ["जाता"], scoring)


@pytest.mark.parametrize("how", ["none", "lowercase", "words", "whisper", "whisper_english"])
def test_two_ways_to_write_an_accent_are_one(how):
    for text in ("café über", "한국어", "Việt Nam"):
        assert normalize_text(unicodedata.normalize("NFD", text), how) == normalize_text(text, how)


def test_typographic_signs_are_plain_ones():
    for how in ("lowercase", "words", "whisper", "whisper_english"):
        assert normalize_text("It’s “fine”", how) == normalize_text('it\'s "fine"', how)
    assert normalize_text("L’été", "words") == "l'été"
    assert normalize_text("It’s", "none") == "It’s"
    assert normalize_text("co\u00adoperate می\u200cخواهم", "words") == "cooperate میخواهم"
    # a sign's variant mark is no word
    assert normalize_text("sun \u2600\ufe0f and rain", "words") == "sun and rain"


@given(st.text(st.sampled_from("abcÄÖß éñçABC09_-'.,!?()[]<>$%+日本가ーＡ"), max_size=20))
def test_whisper_is_transformers_basic_normaliser_where_there_are_no_marks(text):
    expected = " ".join(BasicTextNormalizer()(text).split())
    assert normalize_text(text, "whisper") == expected


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("今天天气好", "今 天 天 气 好"),
        ("我爱 New York 市", "我 爱 New York 市"),
        ("東京タワーへ行く", "東 京 タ ワ ー へ 行 く"),
        ("ที่นี่", "ที่ นี่"),  # consonant, vowel and tone are one unit
        ("ភាសា", "ភា សា"),
        ("မြန်မာ", "မြ န် မာ"),
        ("한국 사람", "한국 사람"),  # Korean has blanks
        ("plain words", "plain words"),
    ],
)
def test_units_by_script(text, units):
    assert separate_units(text, "auto") == units
    assert separate_units(text, "words") == text


def test_words_of_languages_without_blanks():
    # one of five characters wrong, one of three words
    answers, references = ["今天天汽好", "a b d"], [["今天天气好"], ["a b c"]]
    rate = partial(score_answers, answers, references)
    assert rate(Scoring(metric="wer")) == pytest.approx(2 / 8)
    assert rate(Scoring(metric="wer", tokenize="zh")) == pytest.approx(2 / 8)
    assert rate(Scoring(metric="wer", tokenize="words")) == pytest.approx(2 / 4)
    assert rate(Scoring(metric="wer", tokenize="characters")) == pytest.approx(2 / 8)
    # blanks that a recogniser sets between characters are no errors, but where it is told so
    assert score_answers(["今 天 天气 好"], [["今天天气好"]], Scoring(metric="cer")) == 0
    assert score_answers(
        ["今 天 天气 好"], [["今天天气好"]], Scoring(metric="cer", tokenize="words")
    ) == pytest.approx(3 / 5)


def test_bleu_of_chinese_counts_characters():
    answer, truth = "今天天气很好我们去公园", "今天天气很好我们去学校"
    expected = BLEU(tokenize="zh").corpus_score([answer], [[truth]]).score / 100
    assert 0.5 < expected < 1
    for tokenize in ("auto", "zh"):
        assert score_answers([answer], [[truth]], Scoring(metric="bleu", tokenize=tokenize)) == pytest.approx(
            expected
        )
    assert score_answers([answer], [[truth]], Scoring(metric="bleu", tokenize="words")) == 0


def test_a_tokenizer_that_is_not_installed(monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("\nJapanese tokenization requires extra dependencies\nmore")

    monkeypatch.setattr("sacrebleu.metrics.bleu.BLEU", missing)
    with pytest.raises(UserError, match=r"tokenize: ja: .*ja-mecab is not installed.*sacrebleu\[ja\]"):
        require_metric(Scoring(metric="bleu", tokenize="ja"))
