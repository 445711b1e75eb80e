"""From a name in a config to a built object: look up, import, check the arguments, call.

`resolve(ENCODERS, cfg.encoder, n_chans=63, n_times=250, dim=256)` is how a stage builds anything that a YAML names.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from eegrecon.config import Choice, did_you_mean
from eegrecon.errors import ConfigError


def lookup(registry: Mapping[str, str], name: str) -> Callable[..., Any]:
    """Import what a registry holds under this name.

    Raises:
        ConfigError: The name is not in the registry; lists the choices.
    """
    if name not in registry:
        raise ConfigError(f"The name {name!r} is not known: {did_you_mean(name, registry)}.")
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def check_args(build: Callable[..., Any], choice: Choice, facts: Mapping[str, Any]) -> None:
    """Check a choice's `args` against the signature of what they are for, before anything is built.

    Args:
        build: The class or function.
        choice: Its name and arguments in the config.
        facts: Arguments that come from the data or the code (channels, samples, sizes), never from a YAML.

    Raises:
        ConfigError: An argument is unknown, missing, or a fact of the data; lists every such problem.
    """
    parameters = inspect.signature(build).parameters
    free = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values())
    named = {
        name: item
        for name, item in parameters.items()
        if item.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    accepted = [name for name in named if name not in facts]
    problems = []
    for name in choice.args:
        if name in facts:
            problems.append(f"{name!r} is a fact of the data and cannot be set")
        elif name not in named and not free:
            listing = did_you_mean(str(name), accepted) if accepted else "it takes none"
            problems.append(f"{name!r} is not an argument ({listing})")
    for name, item in named.items():
        if item.default is inspect.Parameter.empty and name not in facts and name not in choice.args:
            problems.append(f"{name!r} has no value (set it under args)")
    if problems:
        raise ConfigError(f"The args of {choice.name!r} do not fit: " + "; ".join(problems) + ".")


def resolve(registry: Mapping[str, str], choice: Choice, **facts: Any) -> Any:
    """Build what a config names: `registry[choice.name](**facts, **choice.args)`.

    Raises:
        ConfigError: The name or an argument is unknown (lists what is accepted), or the constructor refuses a value.
    """
    build = lookup(registry, choice.name)
    check_args(build, choice, facts)
    try:
        return build(**facts, **choice.args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The args {choice.args} of {choice.name!r} are refused: {error}") from error
