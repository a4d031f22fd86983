"""Whether a network learns: what its targets and features say, in numbers.

Two collapses keep a loss finite, even low, and teach nothing: targets that are uniform and targets
that are the same for every view. Both show in the information of the targets about their view,
which is then 0. Features that lie along few directions show in their deviation and rank.

These numbers cost more than a term of the loss, so they are taken on some steps only.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.distributed.tensor import DTensor

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.errors import InoError
from ino.models.student_teacher import Views
from ino.models.vit import VisionTransformer
from ino.system import atomic_path
from ino.train.distributed import gather
from ino.train.log import RunLog
from ino.train.objective import Targets
from ino.train.run import Run, save_best

MAX_IMAGES = 16
"""Global crops whose features are looked at."""

MAX_TOKENS = 2048
"""Patch tokens whose rank is taken."""


@torch.no_grad()
def target_numbers(targets: Float[Tensor, "*views classes"], *, name: str) -> dict[str, Tensor]:
    """Entropy and information of target distributions, in nats.

    `entropy_NAME` is the mean entropy H(t) of a target: log of the number of classes where it is
    uniform, 0 where it is one class. `information_NAME` is the entropy of the mean target less
    `entropy_NAME`, the mutual information of view and class: 0 where all views have the same
    target, at most the log of the number of views.

    Args:
        targets: the teacher's distributions, each of sum 1.
        name: `class` or `patch`.
    """
    flat = targets.flatten(0, -2).float()
    entropy = _entropy(flat).mean()
    return {f"entropy_{name}": entropy, f"information_{name}": _entropy(flat.mean(0)) - entropy}


def divergences(numbers: Mapping[str, float]) -> dict[str, float]:
    """Kullback-Leibler divergences of the student from its targets, in nats.

    A term of the loss is a cross-entropy, the entropy of the targets, which the student cannot
    change, and the divergence, which it can: KL = term - entropy. Terms that are off have none.

    Args:
        numbers: terms of the loss and entropies, by name.
    """
    found = {}
    for term, entropy in (("g2g", "class"), ("l2g", "class"), ("masked", "patch")):
        if numbers.get(term) and f"entropy_{entropy}" in numbers:
            found[f"kl_{term}"] = numbers[term] - numbers[f"entropy_{entropy}"]
    return found


@torch.no_grad()
def feature_numbers(
    backbone: VisionTransformer, crops: Float[Tensor, "time batch 3 height width"]
) -> dict[str, Tensor]:
    """Deviation and effective rank of a backbone's tokens.

    `std_class` and `std_patch` are the deviations of L2-normalised tokens, averaged over dimensions
    and multiplied by the root of their number: 1 where tokens point everywhere, 0 where all are the
    same (as in SimSiam, arXiv:2011.10566). `rank_patch` is the exponential of the entropy of the
    normalised singular values of patch tokens (RankMe, arXiv:2210.02885): 1 to the width.

    Args:
        backbone: in evaluation mode.
        crops: normalised; the first of them are used.
    """
    images = crops.transpose(0, 1).flatten(0, 1)[:MAX_IMAGES]
    tokens = backbone(images).float()
    patches = tokens[:, 1:].flatten(0, 1)
    step = math.ceil(len(patches) / MAX_TOKENS)
    return {
        "std_class": _deviation(tokens[:, 0]),
        "std_patch": _deviation(patches),
        "rank_patch": effective_rank(patches[::step]),
    }


def effective_rank(features: Float[Tensor, "sample dim"]) -> Float[Tensor, ""]:
    """The exponential of the entropy of the singular values, normalised to sum 1; NaN of NaN."""
    # By the Gram matrix of the smaller side, in fp64, which not every device has.
    matrix = features.cpu().double()
    if not matrix.isfinite().all():
        return matrix.new_tensor(math.nan)
    gram = matrix.T @ matrix if len(matrix) > matrix.shape[1] else matrix @ matrix.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return _entropy(singular / singular.sum().clamp(min=1e-12)).exp()


def _deviation(tokens: Float[Tensor, "sample dim"]) -> Float[Tensor, ""]:
    directions = F.normalize(tokens, dim=-1)
    return directions.std(dim=0, correction=0).mean() * tokens.shape[-1] ** 0.5


def _entropy(probabilities: Float[Tensor, "*rows classes"]) -> Float[Tensor, "*rows"]:
    return torch.special.entr(probabilities).sum(dim=-1)


# Warnings of a collapse that a person understands: what is seen, what it means, what to try.


PATIENCE = 3
"""Looks in a row that must find the same before it is told."""

UNIFORM = 0.98
"""Share of the largest entropy from which targets count as uniform."""

CONSTANT = 0.02
"""Information, as a share of its most, below which all views have the same target."""

LOW_RANK = 0.03
"""Share of the width below which features count as collapsed."""


@dataclass
class CollapseMonitor:
    """Tells of each kind of collapse once an episode; it is told again when it comes back."""

    num_classes: int
    num_views: int
    width: int
    first_step: int
    _seen: dict[str, int] = field(default_factory=dict)

    def check(self, step: int, numbers: Mapping[str, float]) -> list[str]:
        """The warnings that the numbers of a step give reason for.

        Args:
            step: counted from 0; before `first_step` nothing is told, for a network that has learnt
                little yet looks collapsed.
            numbers: of `ino.train.monitors`, by name; those that are missing are not judged.
        """
        if step < self.first_step:
            return []
        found = []
        # What is no number is told as a step that is skipped, not as a collapse.
        numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
        for kind, judge in _KINDS.items():
            words = judge(self, numbers)
            if words is None:
                continue
            self._seen[kind] = self._seen.get(kind, 0) + 1 if words else 0
            if self._seen[kind] == PATIENCE:
                found.append(f"at step {step} {words}")
        return found


def _uniform(monitor: CollapseMonitor, numbers: Mapping[str, float], name: str) -> str | None:
    most = math.log(monitor.num_classes)
    entropy = numbers.get(f"entropy_{name}")
    if entropy is None or entropy < UNIFORM * most:
        return None if entropy is None else ""
    return (
        f"the teacher's outputs for {name} tokens are nearly uniform (entropy {entropy:.2f} of at "
        f"most {most:.2f} nats): the network learns nothing from them; lower "
        "loss.teacher_temperature, or optim.lr"
    )


def _constant(monitor: CollapseMonitor, numbers: Mapping[str, float], name: str) -> str | None:
    information = numbers.get(f"information_{name}")
    if information is None:
        return None
    if _uniform(monitor, numbers, name):
        return ""
    most = math.log(min(monitor.num_views, monitor.num_classes))
    if information >= CONSTANT * most:
        return ""
    return (
        f"the teacher's outputs for {name} tokens are nearly the same whatever it sees "
        f"(information {max(0.0, information):.2f} of at most {most:.2f} nats): one answer "
        "takes all; lower optim.lr, or loss.center_momentum, so that the centre follows"
    )


def _low_rank(monitor: CollapseMonitor, numbers: Mapping[str, float]) -> str | None:
    rank = numbers.get("rank_patch")
    if rank is None or rank >= max(1.5, LOW_RANK * monitor.width):
        return None if rank is None else ""
    return (
        f"features lie along few directions (effective rank {rank:.1f} of {monitor.width}): they "
        "will not tell one thing from another; lower optim.lr, or start anew with another run.seed"
    )


_KINDS: dict[str, Callable[[CollapseMonitor, Mapping[str, float]], str | None]] = {
    "uniform class": lambda monitor, numbers: _uniform(monitor, numbers, "class"),
    "uniform patch": lambda monitor, numbers: _uniform(monitor, numbers, "patch"),
    "constant class": lambda monitor, numbers: _constant(monitor, numbers, "class"),
    "constant patch": lambda monitor, numbers: _constant(monitor, numbers, "patch"),
    "low rank": _low_rank,
}


# What the networks see, as a picture: crops with their masks, for people to check.


FOLDER = "pictures"
MAX_CLIPS = 4
MIN_SIDE = 160
GAP = 4
_PAPER, _MASKED = 255, 128


def contact_sheet(
    global_crops: Float[Tensor, "time batch 3 height width"],
    local_crops: Float[Tensor, "time crop batch 3 local_height local_width"] | None,
    masked: Int[Tensor, "batch masked"] | None,
    *,
    patch_size: int,
) -> UInt8[np.ndarray, "rows columns 3"]:
    """A sheet of the first clips of a batch: a block a clip, a column a frame.

    A column holds the global crop, its masked patches grey, and below it the frame's local crops.
    Small crops are enlarged pixel by pixel.

    Args:
        global_crops: normalised.
        local_crops: normalised; None where there are none.
        masked: patches that the student does not see, counted row by row; None where it sees all.
        patch_size: pixels a side of a patch.
    """
    num_frames, num_clips, _, height, width = global_crops.shape
    scale = max(1, round(MIN_SIDE / height))
    blocks = []
    for clip in range(min(num_clips, MAX_CLIPS)):
        columns = []
        for frame in range(num_frames):
            crop = _pixels(global_crops[frame, clip])
            if masked is not None:
                hidden = np.zeros((height // patch_size, width // patch_size), dtype=bool)
                hidden.flat[masked[clip].cpu().numpy()] = True
                crop[_enlarged(hidden, patch_size)] = _MASKED
            parts = [_enlarged(crop, scale)]
            if local_crops is not None:
                small = [_enlarged(_pixels(one), scale) for one in local_crops[frame, :, clip]]
                parts.append(_grid(small, width=parts[0].shape[1]))
            columns.append(_joined(parts, axis=0))
        blocks.append(_joined(columns, axis=1))
    sheet = _joined(blocks, axis=0, gap=4 * GAP)
    return np.pad(sheet, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=_PAPER)


def write_sheet(sheet: UInt8[np.ndarray, "rows columns 3"], *, out: Path, step: int) -> Path:
    """Writes the sheet of a step into the folder of a run.

    Raises:
        OutputError: it cannot be written.
    """
    path = out / FOLDER / f"step_{step:08d}.png"
    with contextlib.suppress(OSError):  # what is wrong shows when the file is written
        path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary)
    return path


def _pixels(crop: Float[Tensor, "3 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    mean, std = (crop.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    levels = ((crop * std + mean) * 255).round().clamp(0, 255)
    return np.ascontiguousarray(levels.to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _grid(crops: list[np.ndarray], *, width: int) -> np.ndarray:
    """Crops in rows of about `width` pixels."""
    columns = max(1, round((width + GAP) / (crops[0].shape[1] + GAP)))
    rows = [crops[start : start + columns] for start in range(0, len(crops), columns)]
    return _joined([_joined(row, axis=1) for row in rows], axis=0)


def _joined(images: list[np.ndarray], *, axis: int, gap: int = GAP) -> np.ndarray:
    """Images beside or below each other on white, with a gap."""
    across = 1 - axis
    size = max(image.shape[across] for image in images)
    parts: list[np.ndarray] = []
    for index, image in enumerate(images):
        padding = [(0, 0), (0, 0), (0, 0)]
        padding[across] = (0, size - image.shape[across])
        padding[axis] = (gap if index else 0, 0)
        parts.append(np.pad(image, padding, constant_values=_PAPER))
    return np.concatenate(parts, axis=axis)


# What is looked at beside the training: targets, features, pictures, masks on labelled sequences.
#
# None of it changes the parameters. What costs is done on some steps only.


_LOG = logging.getLogger("ino")

Evaluate = Callable[[Mapping[str, Tensor], int], Mapping[str, float]]
"""Scores of the student's backbone: its parameters and the steps done to numbers by name. The
checkpoint of the highest `eval_jf` is kept."""


class Watch:
    """Looks at a run; called in each step."""

    def __init__(self, run: Run, *, out: Path, log: RunLog, evaluate: Evaluate | None) -> None:
        """Args:
        run: that is looked at.
        out: its folder.
        log: tells which steps are due, and shows pictures.
        evaluate: scores the student every `run.eval_every` steps; None for never.
        """
        self._run, self._out, self._log, self._evaluate = run, out, log, evaluate
        optim = run.config.optim
        self._collapse = CollapseMonitor(
            num_classes=run.config.model.out_dim,
            num_views=run.config.data.batch_size * run.config.data.clip_length,
            width=run.state.model.teacher.backbone.embed_dim,
            # Before it has learnt anything a network looks collapsed.
            first_step=int(optim.warmup_epochs * run.steps_per_epoch),
        )

    @torch.no_grad()
    def look(self, step: int, views: Views, targets: Targets) -> dict[str, Tensor]:
        """Numbers of targets and features, on the device, where the step is due; else nothing.

        Args:
            step: counted from 0.
            views: of the step.
            targets: of the step.
        """
        run, every = self._run, self._run.config.run.pictures_every
        if every and step % every == 0 and run.fabric.is_global_zero:
            self._picture(step, views)
        if not self._log.is_due(step):
            return {}
        found = target_numbers(targets.class_pairs, name="class")
        if targets.patch is not None:
            found |= target_numbers(targets.patch, name="patch")
        backbone = run.state.model.teacher.backbone
        if not isinstance(next(backbone.parameters()), DTensor):  # cut over devices: no part runs
            assert views.global_crops is not None
            with run.fabric.autocast():
                found |= feature_numbers(backbone, views.global_crops)
        return found

    def score(self, step: int) -> dict[str, float]:
        """Scores of the student after a step, where they are due; else nothing.

        All processes must call it; the first one scores, and its best state is kept.
        """
        run = self._run
        settings, done = run.config.run, step + 1
        is_last = done == run.num_steps
        is_due = settings.eval_every > 0 and done % settings.eval_every == 0
        if self._evaluate is None or not (is_last or is_due):
            return {}
        weights = gather(run.state.model.student.backbone.state_dict())
        writes = run.fabric.is_global_zero
        scores: dict[str, float] = {}
        if writes:
            with _losing_only("scores"):
                scores |= self._evaluate(weights, done)
        score = scores.get("eval_jf", float("-inf"))
        is_best = False
        with _losing_only("best.pt"):
            is_best = save_best(
                run.config, run.state, out=self._out, step=done, score=score, writes=writes
            )
        self._log.scored(scores, done=done, is_best=is_best)
        return scores

    def judge(self, step: int, numbers: Mapping[str, float]) -> dict[str, float]:
        """The numbers of a step with what follows from them; warns of a collapse."""
        device = self._run.fabric.device
        found = {**numbers, **divergences(numbers)}
        if device.type == "cuda" and self._log.is_due(step):
            found["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        for words in self._collapse.check(step, found):
            if self._run.fabric.is_global_zero:
                _LOG.warning("%s", words)
        return found

    def _picture(self, step: int, views: Views) -> None:
        assert views.global_crops is not None
        sheet = contact_sheet(
            views.global_crops,
            views.local_crops,
            views.masked,
            patch_size=self._run.config.model.patch_size,
        )
        with _losing_only("pictures"):
            path = write_sheet(sheet, out=self._out, step=step)
            self._log.picture(step, "views", sheet, path=path)


@contextlib.contextmanager
def _losing_only(what: str) -> Iterator[None]:
    """Has what cannot be made or written cost itself, and not the run."""
    try:
        yield
    except (InoError, OSError) as error:
        _LOG.warning("%s; the run goes on without %s", error, what)
