"""A MODEL on the command line: a path or a name, and behind a question mark the options of its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniaudio.config.encoders import LISTENING, EncoderConfig, select_given
from uniaudio.config.nearest import suggest_name
from uniaudio.config.records import build
from uniaudio.config.strict_yaml import parse_override_value
from uniaudio.errors import UserError

SOURCE = ("kind", "revision")  # which weights a name stands for, and who reads them; a run states its own
OPTIONS = (*LISTENING, *SOURCE)
TEXTS = SOURCE  # their values are texts, even where they look like numbers
BEHIND_PATH = ("random:", ":ema")  # parts of a path that no folder has in its name


@dataclass(frozen=True)
class ModelSpec:
    """``PATH?option=value&NAME.option=value`` taken apart.

    Args:
        path: run folder, checkpoint (with ``:ema``), folder or Hub name of an encoder, or ``random:PATH``.
        options: values by option, checked as in a config, for the only encoder.
        parts: the same by the names of the encoders of a run with several.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def has_options(self) -> bool:
        return bool(self.options or self.parts)

    def configure_model(self, trust_remote_code: bool = False) -> EncoderConfig:
        """Return the settings of an encoder that is not one of a run.

        Raises:
            UserError: when an option is for an encoder by its name.
        """
        if self.parts:
            name, options = next(iter(self.parts.items()))
            option = next(iter(options))
            raise UserError(
                f"{self.path} is not a run, so its encoder has no name; write {option}, not {name}.{option}"
            )
        settings = EncoderConfig(path=self.path, trust_remote_code=trust_remote_code)
        return settings.model_copy(update=dict(self.options))

    def configure_run(self, encoders: Mapping[str, EncoderConfig]) -> dict[str, EncoderConfig]:
        """Return the encoders of a run's config with the options in place of its settings.

        Raises:
            UserError: when an option names no encoder where there are several, or one that the run does not have, or
                what the weights of the run are.
        """
        names = list(encoders)
        parts = {name: dict(options) for name, options in self.parts.items()}
        if self.options and len(names) > 1:
            option = next(iter(self.options))
            raise UserError(
                f"{self.path} has the encoders {', '.join(names)}; write the option with a name, "
                f"such as {names[0]}.{option}, not {option}"
            )
        if self.options:
            parts[names[0]] = {**parts.get(names[0], {}), **self.options}
        for name, options in parts.items():
            if name not in encoders:
                raise UserError(
                    f"{self.path} has no encoder '{name}'{suggest_name(name, names)}; it has {', '.join(names)}"
                )
            if fixed := [option for option in options if option in SOURCE]:
                raise UserError(f"{self.path} is a run, whose config states {fixed[0]}; leave {fixed[0]} out")
        return {name: settings.model_copy(update=parts.get(name, {})) for name, settings in encoders.items()}


def split_options(text: str) -> tuple[str, str]:
    """Return a MODEL's path and the text behind the question mark; a folder of that name has no options."""
    prefix, suffix = BEHIND_PATH
    if "?" not in text or Path(text.removeprefix(prefix).removesuffix(suffix)).exists():
        return text, ""
    path, _, options = text.rpartition("?")
    return path, options


def parse_model_spec(text: str) -> ModelSpec:
    """Take a MODEL apart and check its options; nothing is read but whether a folder has this name.

    Raises:
        UserError: naming an option that is unknown, without a value, given twice or out of bounds.
    """
    if not text:
        raise UserError("a model is missing: give a run folder, or the folder or Hub name of an encoder")
    path, query = split_options(text)
    if path == text:
        return ModelSpec(text)
    if not path:
        raise UserError(f"{text}: a path or a name must come before the question mark")
    parts: dict[str, dict[str, Any]] = {}
    for assignment in query.split("&"):
        key, equals, value = assignment.partition("=")
        name, _, option = key.rpartition(".")
        if option not in OPTIONS:
            raise UserError(
                f"{text}: a model has no option '{option}'{suggest_name(option, OPTIONS)}; known: {', '.join(OPTIONS)}"
            )
        if not equals or not value:
            raise UserError(f"{text}: write {key}=VALUE")
        if option in parts.setdefault(name, {}):
            raise UserError(f"{text}: {key} is given twice")
        parts[name][option] = value if option in TEXTS else parse_override_value(value)
    checked = {name: check_options(text, options) for name, options in parts.items()}
    return ModelSpec(path, checked.pop("", {}), checked)


def check_options(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of one encoder as a config would hold them.

    Raises:
        UserError: when a value has another type or is out of bounds.
    """
    settings = build(EncoderConfig, {"path": "any", **options}, where)
    return {option: getattr(settings, option) for option in options}


def write_model_spec(path: str, settings: EncoderConfig, **options: Any) -> str:
    """Return the MODEL that stands for a path with the settings of a config, without those that it leaves out.

    Args:
        options: laid over the settings.
    """
    values = select_given(settings, OPTIONS) | options
    written = [f"{option}={write_option(value)}" for option, value in values.items()]
    return f"{path}?{'&'.join(written)}" if written else path


def write_option(value: Any) -> str:
    """Return the shortest text of an option's value that is read as the same value again."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
