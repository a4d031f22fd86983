"""What the commands share that carry masks: the tracker of their options, a bar of progress."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from jsonargparse import Namespace

from ino.errors import ConfigError

_LOG = logging.getLogger("ino")


def tracker_of(chosen: Namespace) -> tuple[Any, dict[str, Any]]:
    """The tracker that the options ask for, and what to store about it."""
    backbone, protocol, settings = backbone_of(chosen)

    from ino.propagate.tracker import Tracker

    device, precision = settings["device"], settings["precision"]
    return Tracker(backbone, protocol=protocol, device=device, precision=precision), settings


def backbone_of(chosen: Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """The backbone and the protocol that the options ask for, and what to store about them."""
    from ino.propagate.protocols import get_protocol

    overrides = _overrides(chosen.set or [])
    if chosen.protocol is not None:  # faults are told of before work
        get_protocol(chosen.protocol, **overrides)

    from ino.models.backbone import choose_device
    from ino.models.load import load_backbone
    from ino.tasks.results import fingerprint

    backbone = load_backbone(chosen.weights, network=chosen.network)
    protocol = get_protocol(chosen.protocol or backbone.protocol, **overrides)
    if chosen.weights == "color" and "layer" in overrides:
        _LOG.warning("color has one layer, which is read: --set layer changes nothing")
    device = choose_device(chosen.device)
    return (
        backbone,
        protocol,
        {
            "weights": chosen.weights,
            **fingerprint(chosen.weights),
            "network": chosen.network,
            "device": str(device),
            "precision": chosen.precision,
        },
    )


def describe(chosen: Namespace, protocol: Any) -> str:
    """What results were made with, for the screen."""
    from ino.propagate.protocols import describe_protocol

    return f"weights {chosen.weights}; protocol {describe_protocol(protocol)}"


def _overrides(texts: Sequence[str]) -> dict[str, Any]:
    overrides = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"--set {text} must be FIELD=VALUE, as in --set short_side=240")
        overrides[name] = None if value.lower() == "none" else _parsed(text, value)
    return overrides


def _parsed(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"--set {text[:80]} has no value of YAML after the =: give a number, a word, true, "
            "false or null, as in --set short_side=240"
        ) from error


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows a bar; call what it yields after each of the `total`, 0 where that is not known.

    What ends before the first of them leaves no bar above its message.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (what, MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total or None)
        try:
            yield lambda: bar.advance(task)
        except BaseException:
            if not bar.tasks[task].completed:
                bar.live.transient = True
                bar.live.stop()
                bar.disable = True  # or its own end writes an empty line to what is no terminal
            raise
