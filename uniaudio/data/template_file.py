"""The file of a template as it is written: its keys, and how answers are scored."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from uniaudio.config.records import Strict
from uniaudio.config.usual_names import TEMPLATE_NAMES, UsualNames
from uniaudio.data.labels import LabelList

JOINED_METRICS = ("wer", "cer", "bleu", "meteor", "cider")  # of texts, whose parts in order are the whole


class Scoring(Strict):
    """How answers are scored.

    Read by: eval, train, forgetting.
    """

    metric: Literal["accuracy", "uar", "macro_f1", "wer", "cer", "bleu", "meteor", "cider", "map"] = (
        "accuracy"
    )
    """Accuracy, unweighted average recall (balanced accuracy), macro-F1, word or character error rate, BLEU,
    METEOR, CIDEr-D, or mean average precision of tags.
    """
    normalize: Literal["none", "lowercase", "words", "whisper", "whisper_english"] = "lowercase"
    """Text normalization before comparison: `none`, `lowercase`, `words` (no punctuation), or Whisper's
    normalizers.
    """
    tokenize: Literal["auto", "words", "characters", "zh", "ja", "ko", "th", "lo", "km", "my"] = "auto"
    """What counts as a word in WER and BLEU: `auto` depends on the script, `words` splits at blanks, `characters`
    counts every character, and a language uses its tokenizer.
    """
    separator: str = Field(default=";", min_length=1)
    """Text between the tags of an answer, for `map`."""
    likelihood: Literal["sum", "mean"] = "sum"
    """How labels of a closed set are compared: by the `sum` of their tokens' log-likelihoods, or by the
    `mean`, which does not favour short labels.
    """


class TemplateFile(Strict):
    """A template: what is asked, and what the answer is.

    Read by: recipe commands, eval, forgetting, report.
    """

    usual_names: ClassVar[UsualNames | None] = TEMPLATE_NAMES
    task: str
    """Name of the task; equals the file name."""
    domain: Literal["speech", "sound", "music"]
    """Domain of the task, for averages and charts."""
    inputs: tuple[str, ...]
    """Exactly the columns that prompts and target use."""
    labels: LabelList | None = None
    """Closed set of answers, if neither the recipe nor the dataset defines one; prompts can use the applicable set as
    `labels`. Default: answers are open.
    """
    labels_from: str | None = None
    """Text file with one label per line, relative to the template, in place of `labels`."""
    prompts: tuple[str, ...] = Field(min_length=1)
    """Phrasings of the question as Jinja texts with `<audio>` in place of each clip. Training draws one, evaluation
    uses the first. For Whisper's own decoder, they may contain its task tokens, such as `<|transcribe|>`.
    """
    target: str | None = None
    """The answer as a Jinja text. Either `target` or `target_one_of` is required."""
    target_one_of: str | None = None
    """Column with a list of right answers: training draws one, evaluation accepts all."""
    scoring: Scoring = Scoring()
    """How answers are scored."""

    @model_validator(mode="after")
    def check_one_target(self) -> TemplateFile:
        if (self.target is None) == (self.target_one_of is None):
            raise ValueError("give exactly one of `target` and `target_one_of`")
        if self.labels is not None and self.labels_from is not None:
            raise ValueError("give `labels` or `labels_from`, not both")
        return self
