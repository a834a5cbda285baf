"""Ask a model the rows of an evaluation set; processes share the rows out and put the answers together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from uniaudio.data.collate import collate, collate_prompts
from uniaudio.data.eval_examples import LONGEST_CLIP, EvalExamples, iterate_examples
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.template import Template
from uniaudio.data.template_file import JOINED_METRICS
from uniaudio.distributed import gather_objects, rank, world_size
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.embedding import batch_by_length
from uniaudio.evaluate.generation.generated_answers import generate
from uniaudio.model.audio_lm import AudioLM
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE, Example

EXAMPLE_SECONDS = 1.0  # what the text of a question weighs in a batch, in seconds of audio
CHUNK_SECONDS = 3600.0  # of decoded audio that a process holds at a time
LABEL_TOKENS = 50  # tokens of labels that weigh as much as a second of audio


@dataclass(frozen=True)
class PredictionSettings:
    """How evaluation sets are asked.

    Args:
        max_new_tokens: of an answer.
        batch_seconds: audio of a batch; the answers do not depend on it.
        window_seconds: length of the windows of longer clips, and of crops, where `long_clips` does not say.
        labels: score the labels of closed sets too.
        shared: every process holds the whole model, and they share the rows out.
        repetition_penalty: of tokens that an answer already holds; 1 is none.
    """

    max_new_tokens: int
    batch_seconds: float
    window_seconds: float = LONGEST_CLIP
    labels: bool = True
    shared: bool = False
    repetition_penalty: float = 1.0

    @property
    def share(self) -> tuple[int, int]:
        """Return which rows this process asks: (i, n) for every n-th from row i on."""
        return (rank(), world_size()) if self.shared else (0, 1)


@dataclass(frozen=True)
class Question:
    """A row that can be asked: its place in the source and all its right answers."""

    place: int
    example: Example
    references: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """What a model said to one row, without the clips.

    Args:
        log_likelihoods: of every label of a closed set, where they were scored. is_cut: the answer had not ended
            when it was as long as allowed.
        window: (start, end) in seconds, of an answer to a window of a clip alone.
        windows: the answers to the windows of a clip, where this one is made of them.
    """

    place: int
    id: str
    references: tuple[str, ...]
    answer: str
    log_likelihoods: tuple[float, ...] | None = None
    is_cut: bool = False
    window: tuple[float, float] | None = None
    windows: tuple[Prediction, ...] = ()


@dataclass
class Answers:
    """The answers of one process, or of all together, in the order of the source.

    Args:
        skips: (place, reason) of rows that could not be used.
        losses: (place, loss summed over the tokens of the first right answer, their number) of questions, without
            windows whose answers are joined: none of them is to give the whole answer.
        questions: places of those that could be used.
    """

    answered: list[Prediction] = field(default_factory=list)
    skips: list[tuple[int, Skip]] = field(default_factory=list)
    losses: list[tuple[int, float, int]] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)

    def sum_losses(self) -> tuple[float, int]:
        """Return the summed loss and the number of its tokens."""
        return sum(loss for _, loss, _ in self.losses), sum(tokens for _, _, tokens in self.losses)


def iterate_question_chunks(
    examples: EvalExamples,
    format: ChatFormat,
    settings: PredictionSettings,
    count_slots: Callable[[int], int],
    answers: Answers,
    longest: str | None = None,
) -> Iterator[list[Question]]:
    """Read this process's rows of an evaluation set and yield those that can be asked, ``CHUNK_SECONDS`` at a time.

    Args:
        count_slots: audio tokens of a clip of so many samples.
        answers: takes up the rows that cannot be asked, and the places of questions that can.
        longest: the label of most tokens, where all labels are scored.
    """
    chunk: list[Question] = []
    seconds = 0.0
    for place, item in iterate_examples(examples, settings.window_seconds, settings.share):
        if isinstance(item, Skip):
            answers.skips.append((place, item))
            continue
        example, references = item
        try:
            audio_tokens = sum(count_slots(len(clip)) for clip in example.clips)
            for text in dict.fromkeys([example.answer, longest or example.answer]):
                format.check_question(example.prompt, text, audio_tokens)
            for text in references:
                format.check_data_text(text)
        except RowError as problem:
            answers.skips.append((place, Skip.of(examples.entry.dataset.name, example.id, problem)))
            continue
        chunk.append(Question(place, example, references))
        answers.questions.append(place)
        seconds += sum(map(len, example.clips)) / SAMPLE_RATE
        if seconds > CHUNK_SECONDS:
            yield chunk
            chunk, seconds = [], 0.0
    if chunk:
        yield chunk


def gather_answers(local: Answers, settings: PredictionSettings) -> Answers:
    """Put the answers of all processes together, on all of them, in the order of the source and of their windows.

    A row of which a window cannot be used has no answer and no loss, and is skipped once.
    """
    parts = gather_objects(local) if settings.shared else [local]
    skips = {place: skip for part in parts for place, skip in reversed(part.skips)}
    answered = [item for part in parts for item in part.answered if item.place not in skips]
    return Answers(
        sorted(answered, key=lambda item: (item.place, item.window or (0.0, 0.0))),
        sorted(skips.items(), key=lambda item: item[0]),
        [loss for part in parts for loss in part.losses if loss[0] not in skips],
        [place for part in parts for place in part.questions if place not in skips],
    )


def explain_no_row(examples: EvalExamples, answers: Answers) -> str:
    """Say that no row of a set could be used, with the reason of the first."""
    why = answers.skips[0][1].reason if answers.skips else "the split is empty"
    return f"no row of split '{examples.entry.split}' can be used ({why})"


def batch_questions(
    usable: Sequence[Question], batch_seconds: float, label_tokens: int = 0
) -> list[list[int]]:
    """Return the indices of questions in batches of similar length."""
    text = EXAMPLE_SECONDS + label_tokens / LABEL_TOKENS
    seconds = [sum(map(len, question.example.clips)) / SAMPLE_RATE + text for question in usable]
    return batch_by_length(seconds, batch_seconds)


def tokenize_labels(names: Sequence[str], format: ChatFormat) -> Ragged:
    """Return the token ids of every label with its end of turn.

    Raises:
        UserError: when a label holds markup of the decoder's chat.
    """
    try:
        return Ragged.from_rows([torch.tensor(format.answer(name)) for name in names])
    except RowError as problem:
        raise UserError(
            f"labels: {problem.reason} ({problem.detail}); write the label differently"
        ) from problem


@torch.no_grad()
def predict_entry(
    model: AudioLM,
    format: ChatFormat,
    examples: EvalExamples,
    settings: PredictionSettings,
    advance: Callable[[int], None] = lambda count: None,
) -> Answers:
    """Let a model in eval mode answer an evaluation set: greedily, and by the likelihood of every label of a closed
    set.

    Every process must call it; with ``settings.shared`` each asks its share. The loss of a closed set comes with the
    scores of its labels; else it is one more forward.

    Args:
        advance: called with the number of rows that were answered since.

    Returns:
        The answers of all processes; none where no row can be used, see ``explain_no_row``.
    """
    template = examples.entry.template
    names = template.labels if settings.labels else None
    labels = tokenize_labels(names, format) if names else None
    longest = max(names, key=lambda name: len(format.answer(name))) if names else None
    local = Answers()
    done: set[int] = set()  # rows, of which the windows of long clips are several questions

    def count_rows(places: Iterable[int]) -> None:
        before = len(done)
        done.update(places)
        advance(len(done) - before)

    for usable in iterate_question_chunks(examples, format, settings, model.count_slots, local, longest):
        count_rows(place for place, _ in local.skips)
        for indices in batch_questions(
            usable, settings.batch_seconds, 0 if labels is None else len(labels.values)
        ):
            answer_batch(model, format, [usable[i] for i in indices], template, labels, settings, local)
            count_rows(usable[i].place for i in indices)
    count_rows(place for place, _ in local.skips)
    return gather_answers(local, settings)


def answer_batch(
    model: AudioLM,
    format: ChatFormat,
    questions: Sequence[Question],
    template: Template,
    labels: Ragged | None,
    settings: PredictionSettings,
    answers: Answers,
) -> None:
    """Answer some questions of a set and add what came of them to ``answers``.

    Args:
        labels: the token ids of every label, where they are scored.
    """
    device = next(model.parameters()).device
    examples, task = [question.example for question in questions], (template.task,)
    prompts = collate_prompts(examples, format, model.count_slots, task).to(device)
    read = model.read_prompts(prompts)
    generated = generate(model, prompts, format, settings.max_new_tokens, read, settings.repetition_penalty)
    scores: list[tuple[float, ...] | None] = [None] * len(questions)
    if labels is not None and template.labels is not None:
        rows = model.label_log_likelihoods(prompts, labels, read).tolist()
        scores = [tuple(row) for row in rows]
    if labels is not None and template.labels is not None and not template.multilabel:
        truth = [template.labels.index(example.answer) for example in examples]
        tokens = labels.lengths[truth].tolist()
        for question, row, k, count in zip(questions, rows, truth, tokens, strict=True):
            answers.losses.append((question.place, -row[k], count))
    else:  # a list of labels is none of them
        add_losses(model, format, questions, template, answers)
    answers.answered += [
        Prediction(
            question.place,
            question.example.id,
            question.references,
            said.text,
            score,
            said.is_cut,
            question.example.window,
        )
        for question, said, score in zip(questions, generated, scores, strict=True)
    ]


def add_losses(
    model: AudioLM, format: ChatFormat, questions: Sequence[Question], template: Template, answers: Answers
) -> None:
    """Add the losses of the true answers of some questions, without windows whose answers are joined."""
    joins = template.scoring.metric in JOINED_METRICS
    whole = [question for question in questions if not (joins and question.example.window is not None)]
    if not whole:
        return
    # the model adds losses up by task: with a task for each question they come one by one
    tasks = tuple(map(str, range(len(whole))))
    examples = [replace(question.example, task=task) for question, task in zip(whole, tasks, strict=True)]
    device = next(model.parameters()).device
    batch = collate(examples, format, model.count_slots, tasks).to(device)
    for question, (loss, tokens, _) in zip(whole, model(batch).per_task.tolist(), strict=True):
        answers.losses.append((question.place, loss, round(tokens)))


@torch.no_grad()
def measure_losses(
    model: AudioLM, format: ChatFormat, examples: EvalExamples, settings: PredictionSettings
) -> Answers:
    """Return the losses of the true answers of an evaluation set; nothing is generated.

    Every process must call it; with ``settings.shared`` each reads its share.

    Returns:
        Those of all processes; without questions where no row can be used, see ``explain_no_row``.
    """
    local = Answers()
    for usable in iterate_question_chunks(examples, format, settings, model.count_slots, local):
        for indices in batch_questions(usable, settings.batch_seconds):
            add_losses(model, format, [usable[i] for i in indices], examples.entry.template, local)
    return gather_answers(local, settings)
