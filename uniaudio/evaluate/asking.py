"""Ask a model the rows of an evaluation set; processes share the rows out and put the answers together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from uniaudio.data.asked import iterate_examples
from uniaudio.data.batch import collate, collate_prompts
from uniaudio.data.cursor import Skip
from uniaudio.data.recipe import EvalEntry
from uniaudio.data.tokens import ChatFormat
from uniaudio.distributed import gather_objects, rank, world_size
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.embed import length_batches
from uniaudio.evaluate.generate import generate
from uniaudio.model.audio_lm import AudioLM
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE, Example

EXAMPLE_SECONDS = 1.0  # what the text of a question weighs in a batch, in seconds of audio
LABEL_TOKENS = 50  # tokens of labels that weigh as much as a second of audio


@dataclass(frozen=True)
class AskSettings:
    """How evaluation sets are asked.

    Args:
        max_examples: rows of each set, fewer where its recipe says so. max_new_tokens: of an answer.
        batch_seconds: audio of a batch; the answers do not depend on it. max_seconds: longer clips are left out.
        labels: score the labels of closed sets too.
        shared: every process holds the whole model, and they share the rows out.
    """

    max_examples: int
    max_new_tokens: int
    batch_seconds: float
    max_seconds: float = 600.0
    labels: bool = True
    shared: bool = False

    @property
    def share(self) -> tuple[int, int]:
        """Return which rows this process asks: (i, n) for every n-th from row i on."""
        return (rank(), world_size()) if self.shared else (0, 1)

    def limit(self, entry: EvalEntry) -> int:
        """Return how many rows of a set are asked."""
        return min(entry.max_examples or self.max_examples, self.max_examples)


@dataclass(frozen=True)
class Question:
    """A row that can be asked: its place in the source and all its right answers."""

    place: int
    example: Example
    references: tuple[str, ...]


@dataclass(frozen=True)
class Answered:
    """What a model said to one row, without the clips.

    Args:
        log_likelihoods: of every label of a closed set, where they were scored.
    """

    place: int
    id: str
    references: tuple[str, ...]
    answer: str
    log_likelihoods: tuple[float, ...] | None = None


@dataclass
class Answers:
    """The answers of one process, or of all together, in the order of the source.

    Args:
        skips: (place, reason) of rows that could not be used.
        loss: summed over the tokens of the first right answers. tokens: their number.
    """

    answered: list[Answered] = field(default_factory=list)
    skips: list[tuple[int, Skip]] = field(default_factory=list)
    loss: float = 0.0
    tokens: int = 0


def usable_questions(
    entry: EvalEntry, format: ChatFormat, settings: AskSettings, slots_for: Callable[[int], int]
) -> tuple[list[Question], list[tuple[int, Skip]]]:
    """Read this process's rows of an evaluation set: those that can be asked, and the others with reasons.

    Args:
        slots_for: audio tokens of a clip of so many samples.
    """
    first, step = settings.share
    usable, skips = [], []
    items = iterate_examples(entry, settings.limit(entry), settings.max_seconds, settings.share)
    for number, item in enumerate(items):
        place = first + number * step
        if isinstance(item, Skip):
            skips.append((place, item))
            continue
        example, references = item
        try:
            audio_tokens = sum(slots_for(len(clip)) for clip in example.clips)
            format.check_question(example.prompt, example.answer, audio_tokens)
            for text in references:
                format.checked(text)
            usable.append(Question(place, example, references))
        except RowError as problem:
            skips.append((place, Skip.of(entry.dataset.name, example.id, problem)))
    return usable, skips


def gathered(own: Answers, entry: EvalEntry, settings: AskSettings) -> Answers:
    """Put the answers of all processes together, on all of them, in the order of the source.

    Raises:
        UserError: on all processes, when no row could be used.
    """
    parts = gather_objects(own) if settings.shared else [own]
    whole = Answers(
        sorted((item for part in parts for item in part.answered), key=lambda item: item.place),
        sorted((item for part in parts for item in part.skips), key=lambda item: item[0]),
        sum(part.loss for part in parts),
        sum(part.tokens for part in parts),
    )
    if not whole.tokens:
        why = whole.skips[0][1].reason if whole.skips else "the split is empty"
        raise UserError(f"{entry.name}: no row of split '{entry.split}' can be used ({why})")
    return whole


def batches_of(usable: Sequence[Question], batch_seconds: float, label_tokens: int = 0) -> list[list[int]]:
    """Return the indices of questions in batches of similar length."""
    text = EXAMPLE_SECONDS + label_tokens / LABEL_TOKENS
    seconds = [sum(map(len, question.example.clips)) / SAMPLE_RATE + text for question in usable]
    return length_batches(seconds, batch_seconds)


def label_ids(names: Sequence[str], format: ChatFormat) -> Ragged:
    """Return the token ids of every label with its end of turn.

    Raises:
        UserError: when a label holds markup of the decoder's chat.
    """
    try:
        return Ragged.from_rows([torch.tensor(format.answer(name)) for name in names])
    except RowError as problem:
        raise UserError(
            f"labels: {problem.reason} ({problem.detail}); write the label in another way"
        ) from problem


@torch.no_grad()
def ask_entry(
    model: AudioLM,
    format: ChatFormat,
    entry: EvalEntry,
    settings: AskSettings,
    told: Callable[[int], None] = lambda count: None,
) -> Answers:
    """Let a model in eval mode answer an evaluation set: greedily, and by the likelihood of every label of a closed
    set.

    Every process must call it; with ``settings.shared`` each asks its share. The loss of a closed set comes with the
    scores of its labels; else it is one more forward.

    Args:
        told: called with the number of rows that were answered since.

    Raises:
        UserError: when no row can be used.
    """
    device = next(model.parameters()).device
    names = entry.template.labels if settings.labels else None
    labels = label_ids(names, format) if names else None
    own = Answers()
    usable, own.skips = usable_questions(entry, format, settings, model.slots_for)
    told(len(own.skips))
    for indices in batches_of(usable, settings.batch_seconds, 0 if labels is None else len(labels.values)):
        questions = [usable[i] for i in indices]
        examples, task = [question.example for question in questions], (entry.template.task,)
        prompts = collate_prompts(examples, format, model.slots_for, task).to(device)
        read = model.read_prompts(prompts)
        answers = generate(model, prompts, format, settings.max_new_tokens, read)
        scores: list[tuple[float, ...] | None] = [None] * len(questions)
        if labels is not None and names is not None:
            rows = model.label_log_likelihoods(prompts, labels, read).tolist()
            scores = [tuple(row) for row in rows]
            truth = [names.index(example.answer) for example in examples]
            own.loss -= sum(row[k] for row, k in zip(rows, truth, strict=True))
            own.tokens += int(labels.lengths[truth].sum())
        else:
            loss = model(collate(examples, format, model.slots_for, task).to(device))
            own.loss, own.tokens = own.loss + float(loss.total), own.tokens + loss.answer_tokens
        own.answered += [
            Answered(question.place, question.example.id, question.references, answer, score)
            for question, answer, score in zip(questions, answers, scores, strict=True)
        ]
        told(len(questions))
    return gathered(own, entry, settings)


@torch.no_grad()
def answer_loss(
    model: AudioLM, format: ChatFormat, entry: EvalEntry, settings: AskSettings
) -> tuple[float, int]:
    """Return the summed loss of the true answers of an evaluation set, and their tokens.

    Every process must call it; with ``settings.shared`` each reads its share.
    """
    device = next(model.parameters()).device
    own = Answers()
    usable, own.skips = usable_questions(entry, format, settings, model.slots_for)
    for indices in batches_of(usable, settings.batch_seconds):
        examples = [usable[i].example for i in indices]
        batch = collate(examples, format, model.slots_for, (entry.template.task,)).to(device)
        loss = model(batch)
        own.loss, own.tokens = own.loss + float(loss.total), own.tokens + loss.answer_tokens
    whole = gathered(own, entry, settings)
    return whole.loss, whole.tokens
