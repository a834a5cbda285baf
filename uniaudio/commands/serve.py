"""Open the page of a checkpoint on an address of this machine."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

import uvicorn
from rich.console import Console

from uniaudio.build.model import LoadedModel, load_model, stage_recipes
from uniaudio.config.run import RunConfig
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.errors import UserError
from uniaudio.serve.answering import Reply, reply
from uniaudio.serve.app import Page, build_app
from uniaudio.serve.limits import Limits
from uniaudio.serve.prompts import Offer, offers

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1", "[::1]")


def serve(checkpoint: str, host: str, port: int, limits: Limits, trust: Trust = NO_TRUST) -> None:
    """Load a checkpoint and answer questions on a page until the process is stopped.

    Args:
        checkpoint: run folder or checkpoint folder. port: 0 takes a free one; the address is printed.

    Raises:
        UserError: when the address cannot be taken or the checkpoint cannot be loaded.
    """
    console = Console()
    door = open_door(host, port)
    try:
        if not is_local(host):
            console.print(
                f"[yellow]the page can be reached from other machines through {host}, without a password; "
                f"whoever reaches it can use the model[/]"
            )
        with console.status(f"loading {checkpoint}"):
            loaded = load_model(checkpoint, trust=trust)
        page = Page(checkpoint.rstrip("/"), facts(loaded), offered(loaded.config, console))

        def answer(data: bytes, question: str, offer: Offer | None) -> Reply:
            return reply(loaded, data, question, offer, limits)

        app = build_app(answer, page, limits, names_of(host))
        door.listen()  # whoever opens the address that is told below is not turned away
        shown = f"[{host}]" if ":" in host else host
        console.print(f"open http://{shown}:{door.getsockname()[1]} (end with Ctrl-C)", highlight=False)
        settings = uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=1 << 16,
        )
        with suppress(KeyboardInterrupt):  # Ctrl-C is how a page is ended
            uvicorn.Server(settings).run(sockets=[door])
    finally:
        door.close()


def open_door(host: str, port: int) -> socket.socket:
    """Take the address before the model is loaded, so that a port in use is told at once.

    Raises:
        UserError: when it cannot be taken.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind, proto)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
    except (OSError, OverflowError) as problem:
        raise UserError(
            f"the address {host}:{port} cannot be taken ({problem}); give another --port or --host"
        ) from problem
    return door


def is_local(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_of(host: str) -> list[str]:
    """Return the names under which the page may be reached: its address, or any where it listens on all of them."""
    return ["*"] if host in ("0.0.0.0", "::", "") else [*LOCAL_NAMES, host]


def facts(loaded: LoadedModel) -> list[tuple[str, str]]:
    """Return what the page says about the parts of a model."""
    model, config = loaded.model, loaded.config
    millions = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    names = " + ".join(config.encoders)
    decoder = config.decoder.path if config.decoder.miniature is None else "miniature"
    return [
        ("encoder", f"{names}, {millions:.1f} M parameters, {model.encoder.frame_rate:g} frames/s"),
        ("decoder", str(decoder)),
        ("device", str(next(model.parameters()).device)),
    ]


def offered(config: RunConfig, console: Console) -> list[Offer]:
    """Return the trained questions, or none where the recipes are not on this machine: the model answers without."""
    try:
        return offers(stage_recipes(config))
    except UserError as problem:
        console.print(f"[yellow]no trained questions are offered: {problem}[/]")
        return []
