"""Open the page of a checkpoint on an address of this machine."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.text import Text

from uniaudio.build.model import LoadedModel, load_model, load_stage_recipes
from uniaudio.config.run import RunConfig
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import make_console, print_warning
from uniaudio.errors import UserError
from uniaudio.serve.answering import Reply, answer_upload
from uniaudio.serve.limits import Limits
from uniaudio.serve.tasks import TrainedTask, list_tasks

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


def serve(checkpoint: str, host: str, port: int, limits: Limits, trust: Trust = NO_TRUST) -> None:
    """Load a checkpoint and answer questions on a page until the process is stopped.

    Args:
        checkpoint: run folder, checkpoint or exported whole model. port: 0 takes a free one; the address is printed.

    Raises:
        UserError: when the address cannot be taken or the checkpoint cannot be loaded.
    """
    console = make_console()
    with bind(host, port) as listener, tempfile.TemporaryDirectory(prefix="uniaudio-serve-") as uploads:
        if not is_local_address(host):
            open_to_all = f"other machines can reach the page through {host} without a password"
            print_warning(f"{open_to_all}; anyone who can reach it can use the model", console)
        with console.status(Text(f"loading {checkpoint}")):
            loaded = load_model(checkpoint, trust=trust)
            tasks = find_tasks(loaded.config, console)
            # read by gradio when it is imported: nothing is reported to its makers, uploads stay in our folder
            os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=uploads)
            from uniaudio.serve.page import build_page
            from uniaudio.serve.server import build_server

            def answer(data: bytes, question: str, task: TrainedTask | None) -> Reply:
                return answer_upload(loaded, data, question, task, limits)

            page = build_page(answer, checkpoint.rstrip("/"), describe_model(loaded), tasks, limits)
            server = build_server(page, limits, list_host_names(host))
        listener.listen()  # whoever opens the address that is printed below is not turned away
        shown = f"[{host}]" if ":" in host else host
        console.print(f"open http://{shown}:{listener.getsockname()[1]} (end with Ctrl-C)")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # as Ctrl-C: the uploads are deleted
        with suppress(KeyboardInterrupt):  # which the server raises anew when it has stopped
            server.run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Take the address before the model is loaded, so that a port in use is reported at once.

    Raises:
        UserError: when it cannot be taken.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as problem:
        raise UserError(
            f"the address {host}:{port} cannot be used ({problem}); give another --port or --host"
        ) from problem
    return listener


def is_local_address(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def list_host_names(host: str) -> Sequence[str]:
    """Return the names under which the page is reached; none where it listens on all addresses of the machine."""
    return () if host in ("0.0.0.0", "::", "") else (*LOCAL_NAMES, host)


def describe_model(loaded: LoadedModel) -> str:
    """Return one line about the parts of a model."""
    model, config = loaded.model, loaded.config
    millions = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    decoder = config.decoder.path if config.decoder.miniature is None else "miniature"
    return (
        f"encoder {' + '.join(config.encoders)}, {millions:.1f} M parameters, {model.encoder.frame_rate:g} frames/s · "
        f"decoder {decoder} · device {next(model.parameters()).device}"
    )


def find_tasks(config: RunConfig, console: Console) -> list[TrainedTask]:
    """Return the trained tasks, or none where the recipes are not on this machine: the model answers without."""
    try:
        return list_tasks(load_stage_recipes(config))
    except UserError as problem:
        print_warning(f"the questions used in training cannot be listed: {problem}", console)
        return []
