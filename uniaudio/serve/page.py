"""The page: a clip, a question, and what the model makes of them."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import is_file_obj, traverse
from matplotlib.figure import Figure

from uniaudio.data.template import AUDIO
from uniaudio.errors import UserError
from uniaudio.serve.answering import Reply
from uniaudio.serve.limits import KEPT_SECONDS, Limits
from uniaudio.serve.tasks import TrainedTask

THEME = gr.themes.Default(  # with fonts of the machine: gradio's own choice is loaded from elsewhere
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)

AnswerUpload = Callable[[bytes, str, TrainedTask | None], Reply]
Choices = dict[str, tuple[TrainedTask, str]]  # in the menu: task and wording by name


class WebPage(gr.Blocks):
    """Components and functions whose inputs are uploaded files only.

    An application that is mounted in another one does not check this: it would read any file of the machine whose path
    a client sends, and fetch any address.
    """

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any
    ) -> list[Any]:
        """Return what the function of an event is called with.

        Raises:
            gr.Error: when an input names a file that was not uploaded, or was deleted since.
        """

        def check_file(file: dict[str, Any]) -> None:
            path = Path(file["path"]).resolve()
            if not (path.is_relative_to(Path(self.GRADIO_CACHE).resolve()) and path.is_file()):
                raise gr.Error("the clip is no longer available; upload it again", print_exception=False)

        traverse(inputs, check_file, is_file_obj)
        return await super().preprocess_data(block_fn, inputs, *rest, **options)


def build_page(
    answer: AnswerUpload, name: str, facts: str, tasks: Sequence[TrainedTask], limits: Limits
) -> WebPage:
    """Return the page of one checkpoint; its one public function is ``/ask`` of clip, question and task.

    Args:
        answer: from the bytes of a clip, a question and the task whose labels are compared.
        name: of the checkpoint. facts: one line about its parts. tasks: whose questions are offered.
    """
    choices = list_choices(tasks)

    def answer_question(
        clip: str | None, question: str, task: str = ""
    ) -> tuple[str, dict[str, float] | None, Figure]:
        if clip is None:
            raise gr.Error("upload or record a clip first", print_exception=False)
        try:
            reply = answer(Path(clip).read_bytes(), question, choices[task][0] if task else None)
        except UserError as problem:
            message = html.escape(str(problem))  # gradio shows messages as HTML
            raise gr.Error(message, None, print_exception=False) from None
        return reply.answer or "(an empty answer)", reply.labels or None, reply.spectrogram

    def choose(key: str) -> tuple[Any, Any]:
        task, wording = choices.get(key, (None, ""))
        return wording, gr.Label(visible=bool(task and task.labels))

    with WebPage(
        title=f"{name} – uniaudio", analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)
    ) as page:
        gr.Markdown(f"# Ask about a clip\n`{name.replace('`', '')}` · {html.escape(facts)}")
        with gr.Row():
            with gr.Column():
                clip, task_menu, question, button = add_question_inputs(choices, limits)
            with gr.Column():
                reply, labels, spectrogram = add_reply_outputs(choices)
        gr.Markdown(
            "Clips stay on the machine that serves this page and are deleted after an hour or when "
            "the page stops."
        )
        task_menu.change(
            choose,
            task_menu,
            [question, labels],
            concurrency_limit=None,
            api_visibility="private",
            show_progress="hidden",
        )
        button.click(
            answer_question,
            [clip, question, task_menu],
            [reply, labels, spectrogram],
            api_name="ask",
            show_progress_on=reply,
        )
    page.queue(max_size=limits.max_waiting, api_open=False, default_concurrency_limit=1)
    return page


def add_question_inputs(
    choices: Choices, limits: Limits
) -> tuple[gr.Audio, gr.Dropdown, gr.Textbox, gr.Button]:
    """Add what a question is asked with: the clip, the menu of trained questions, the question, the button."""
    menu = [
        (f"{key.replace('_', ' ')}: {wording.replace(AUDIO, '').strip()}", key)
        for key, (_, wording) in choices.items()
    ]
    first = next(iter(choices), "")
    clip = gr.Audio(
        label=f"Clip of up to {limits.max_seconds:g} s and {limits.max_mib:g} MiB",
        type="filepath",
        buttons=[],
    )
    task_menu = gr.Dropdown(
        [*menu, ("your own question", "")],
        value=first,
        label="Trained questions",
        visible=bool(menu),
    )
    question = gr.Textbox(
        choices[first][1] if first else "",
        label="Question",
        lines=3,
        max_length=limits.max_characters,
        info="`<audio>` marks the position of the clip; without it, the clip comes first.",
    )
    return clip, task_menu, question, gr.Button("Ask", variant="primary")


def add_reply_outputs(choices: Choices) -> tuple[gr.Textbox, gr.Label, gr.Plot]:
    """Add what a reply is shown in: the answer, the probabilities of a closed set of labels, the spectrogram."""
    first_task = next((task for task, _ in choices.values()), None)
    reply = gr.Textbox(label="Answer", interactive=False, lines=2, max_lines=8, buttons=["copy"])
    labels = gr.Label(
        label="Probability of each label",
        show_heading=False,
        visible=bool(first_task and first_task.labels),
    )
    return reply, labels, gr.Plot(show_label=False)


def list_choices(tasks: Sequence[TrainedTask]) -> Choices:
    """Return every wording with its task by its name in the menu: that of the task, then "task (2)" and so on."""
    choices = {}
    for task in tasks:
        for number, wording in enumerate(task.wordings, start=1):
            choices[task.task if number == 1 else f"{task.task} ({number})"] = task, wording
    return choices
