"""Checkpoints of runs, the networks in a file, and weights matched key by key.

A run's checkpoint holds everything needed to continue (train.checkpoint writes it); here it is read
for inference. Files of other projects are read in `releases`.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from ino.errors import CheckpointError
from ino.models.vit import VisionTransformer, build_vit
from ino.models.weight_files import load_plain

FORMAT = "ino-training-run"
VERSION = 1
NetworkName = Literal["student", "teacher"]

_LOG = logging.getLogger("ino")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a run's checkpoint; only tensors and plain values are ever unpickled.

    Raises:
        CheckpointError: the file is missing, truncated, would run code, or is no run's checkpoint.
    """
    content = load_plain(path)
    if content.get("format") != FORMAT:
        found = ", ".join(list(content)[:4])
        raise CheckpointError(
            f"{path} is not a checkpoint of ino train: expected the key 'format', found {found}"
        )
    _check_version(content, path)
    return content


def _check_version(content: Mapping[str, Any], source: Path) -> None:
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{source} has checkpoint version {content.get('version')}, this ino reads {VERSION}"
        )


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a file, else the newest checkpoint of the run in that folder.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        raise CheckpointError(
            f"no checkpoint found at {path}: give a checkpoint (.pt) or the folder of a run"
        )
    return found[-1]


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step_*.pt"))


def vit_of(
    content: Mapping[str, Any], *, source: Path, network: NetworkName = "student"
) -> VisionTransformer:
    """The backbone in a run's checkpoint, in evaluation mode.

    Args:
        content: of the checkpoint.
        source: for messages.
        network: `student`, as the authors evaluate, or `teacher`.

    Raises:
        CheckpointError: the checkpoint is of another version, or damaged.
        ConfigError: its architecture is unknown.
    """
    _check_version(content, source)
    try:
        model = content["config"]["model"]
        arch, patch_size, weights = model["arch"], model["patch_size"], content[network]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source} lacks {error}, which every checkpoint of ino train has; it is damaged"
        ) from error
    if not (isinstance(arch, str) and type(patch_size) is int and are_tensors(weights)):
        raise CheckpointError(
            f"{source} does not hold what every checkpoint of ino train has: expected the name of "
            f"an architecture, a patch in pixels and the tensors of the {network}; it is damaged"
        )
    prefix = "backbone."
    backbone = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    vit = build_vit(arch, patch_size=patch_size, position_side=position_side(backbone))
    load_exactly(vit, backbone, source=source)
    return vit.eval()


def networks_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file has as `student` and `teacher`, or as its one network, whose name is empty.

    Nothing is checked: see `are_tensors`.
    """
    if found := {name: content[name] for name in get_args(NetworkName) if name in content}:
        return found
    inner = (content[name] for name in ("state_dict", "model") if name in content)
    return {"": next(inner, content)}


def are_tensors(weights: Any) -> bool:
    """Whether something holds tensors by name and nothing else."""
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )


def choose_network(
    networks: Mapping[str, dict[str, Any]],
    *,
    network: NetworkName | None,
    usual: NetworkName,
    source: Path,
) -> dict[str, Any]:
    """The weights of one of a file's networks.

    Args:
        networks: at least one, named as by `networks_in`.
        network: the one that is asked for.
        usual: the one to take where none is asked for and the file holds it.
        source: for messages.

    Raises:
        CheckpointError: the file holds the other one only.
    """
    if "" in networks:
        warn_of_one(source, network)
        return networks[""]
    found = next(iter(networks))
    chosen = network or (usual if usual in networks else found)
    if chosen not in networks:
        raise CheckpointError(
            f"{source} holds the {found} and no {chosen}: ask for the {found}, or give a file that "
            "holds both"
        )
    return networks[chosen]


def warn_of_one(source: Path | str, network: NetworkName | None) -> None:
    """Warns where one of two networks is asked for of weights that are of one."""
    if network is not None:
        _LOG.warning(
            "%s has one network, which is taken: asking for the %s changes nothing", source, network
        )


def position_side(backbone: dict[str, Tensor]) -> int | None:
    """Positions a side of the grid for which a backbone's position embeddings were made.

    None where there are none.

    Raises:
        CheckpointError: the grid is not square.
    """
    if "pos_embed" not in backbone:
        return None
    shape = backbone["pos_embed"].shape
    num_positions = shape[1] - 1 if len(shape) == 3 else 0
    side = math.isqrt(max(0, num_positions))
    if side * side != num_positions or side == 0:
        raise CheckpointError(
            f"the weights have position embeddings for {num_positions} patches, expected those of "
            "a square grid: use weights of a plain ViT"
        )
    return side


def load_exactly(module: nn.Module, weights: dict[str, Tensor], *, source: Path) -> None:
    """Loads weights whose keys and shapes are exactly those of the module.

    Raises:
        CheckpointError: see `check_exact`.
    """
    check_exact(module, weights, source=source)
    module.load_state_dict(weights)


def check_exact(module: nn.Module, weights: dict[str, Tensor], *, source: Path) -> None:
    """Checks that keys and shapes of weights are exactly those of the module.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; the message names them.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected == found:
        return
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {found[name]} instead of {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    raise CheckpointError(
        f"{source} is of another architecture: {'; '.join(problems[:3])}{more}; "
        "build the model that the weights were trained with"
    )
