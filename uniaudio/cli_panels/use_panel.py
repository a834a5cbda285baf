"""Commands that use a trained model: the panel "Use" of `uniaudio --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uniaudio.cli_panels.arguments import AllowCode, Model, TrustRemoteCode, slow_imports
from uniaudio.config.trust import Trust
from uniaudio.extras import require_package
from uniaudio.outputs import check_file_option, check_folder_option

PANEL = "Use"  # of `uniaudio --help`

app = typer.Typer()


@app.command(
    rich_help_panel=PANEL, epilog='Example: uniaudio ask runs/birds clip.wav "Which bird is calling?"'
)
def ask(
    model: Annotated[str, typer.Argument(help="Run folder, checkpoint or exported whole model.")],
    clip: Annotated[Path, typer.Argument(help="Audio file.")],
    text: Annotated[
        str, typer.Argument(help="The question; <audio> marks the position of the clip (default: first).")
    ],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 256,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Ask a trained model one question about one clip.

    Reads: the model's newest checkpoint and the audio file.
    Writes: nothing.
    Prints: the answer.
    """
    from uniaudio.checks.named_paths import refuse_missing_clips, refuse_missing_model

    refuse_missing_clips([clip])
    refuse_missing_model(model)
    with slow_imports():
        from uniaudio.commands.ask import answer_file_question

    typer.echo(answer_file_question(model, clip, text, max_new_tokens, Trust(trust_remote_code, allow_code)))


@app.command(
    rich_help_panel=PANEL, epilog="Example: uniaudio embed runs/birds dog.flac rain.wav -o embeddings.npz"
)
def embed(
    model: Model,
    clips: Annotated[list[Path], typer.Argument(help="Audio files.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="NPZ file to write.", callback=check_file_option)],
    frames: Annotated[bool, typer.Option(help="Also store the frames of every clip.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Write embeddings of clips to an NPZ file.

    Reads: the encoder and the audio files.
    Writes: `files`, `embeddings` (means over frames), `frame_rate`, and with --frames `frames_0`, `frames_1` ...
    Prints: the file, the number of clips and the width of an embedding.
    """
    from uniaudio.checks.named_paths import refuse_missing_clips, refuse_missing_encoder

    refuse_missing_clips(clips)
    refuse_missing_encoder(model)
    with slow_imports():
        from uniaudio.commands.embed import embed_files

    embed_files(model, clips, out, frames, Trust(trust_remote_code, allow_code))


@app.command(rich_help_panel=PANEL, epilog="Example: uniaudio export runs/birds birds_encoder --to hf")
def export(
    model: Model,
    out: Annotated[
        Path, typer.Argument(metavar="DIR", help="New folder to write.", callback=check_folder_option)
    ],
    to: Annotated[
        str,
        typer.Option(
            help="The encoder: hf, xares, xares-llm, mteb, hear or onnx. The whole model: hf-lm, qwen2-audio, "
            "audio-flamingo3, voxtral or ultravox."
        ),
    ] = "hf",
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            help="OWNER/NAME on the Hub to upload to (hf or a whole model); a new repository is private."
        ),
    ] = None,
    decoder: Annotated[
        str, typer.Option(help="With hf-lm: inside stores the decoder's weights, reference only its name.")
    ] = "inside",
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Export an encoder, or a whole model in a published format.

    Reads: the model; for the model card, the recipes of the run, and probe scores and answers in its folder.
    Writes: a new folder with a transformers model, an ONNX file, or an entry for a benchmark (X-ARES, MTEB, HEAR).
    Prints: the files, and a line of Python that loads the exported model.
    """
    from uniaudio.checks.named_paths import refuse_missing_encoder

    refuse_missing_encoder(model)
    with slow_imports():
        from uniaudio.commands.export import export_checkpoint

    export_checkpoint(model, out, to, push_to_hub, Trust(trust_remote_code, allow_code), decoder)


@app.command(rich_help_panel=PANEL, epilog="Example: uniaudio serve runs/birds --port 7860")
def serve(
    model: Annotated[str, typer.Argument(help="Run folder, checkpoint or exported whole model.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 selects a free one.", min=0, max=65535)] = 7860,
    max_seconds: Annotated[float, typer.Option(help="Longest clip, in seconds.", min=0.1)] = 60,
    max_mib: Annotated[float, typer.Option(help="Largest file, in MiB.", min=0.01)] = 20,
    timeout: Annotated[float, typer.Option(help="Longest time for one question, in seconds.", min=1)] = 60,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
) -> None:
    """Open a local web page to ask a model questions about clips.

    Reads: the model's newest checkpoint; uploaded clips are deleted after an hour and when the page is stopped.
    Writes: nothing.
    Prints: the address of the page.
    """
    require_package("gradio", "uniaudio serve")
    from uniaudio.checks.named_paths import refuse_missing_model

    refuse_missing_model(model)
    with slow_imports():
        from uniaudio.commands.serve import serve as open_page
        from uniaudio.serve.limits import Limits

    limits = Limits(max_seconds, max_mib, timeout)
    open_page(model, host, port, limits, Trust(trust_remote_code, allow_code))
