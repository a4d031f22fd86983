"""Whether a network learns: statistics of targets and features, warnings, pictures, scores.

Two collapses keep a loss finite, even low, and teach nothing: targets that are uniform and targets
that are the same for every view. Both show in the information of the targets about their view,
which is then 0. Features that lie along few directions show in their deviation and rank.

Nothing here changes the parameters. What costs time is done on some steps only.
"""

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.distributed.tensor import DTensor

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.errors import InoError
from ino.losses import Targets
from ino.models.masked_timm import MaskedTimm
from ino.models.student_teacher import Views
from ino.models.vit import VisionTransformer
from ino.system import atomic_path
from ino.train.data import patch_size_of
from ino.train.distributed import gather
from ino.train.log import RunLog
from ino.train.run import Run, save_best

MAX_IMAGES = 16
"""Global crops whose features are measured."""

MAX_TOKENS = 2048
"""Patch tokens whose rank is measured."""

PATIENCE = 3
"""Measurements in a row that must show the same collapse before a warning."""

UNIFORM = 0.98
"""Targets count as uniform if their entropy is at least this fraction of its maximum."""

CONSTANT = 0.02
"""Information, as a share of its maximum, below which all tokens have the same target."""

LOW_RANK = 0.03
"""Share of the width below which features count as collapsed."""

_LOG = logging.getLogger("ino")

Evaluate = Callable[[Mapping[str, Tensor], int], Mapping[str, float]]
"""A function (parameters of the student's backbone, number of steps done) -> scores by name. The
checkpoint with the highest `eval_jf` is kept, or `judge_jf` where there is no `eval_jf`."""


@torch.no_grad()
def target_statistics(
    targets: Float[Tensor, "*tokens classes"], *, name: str
) -> dict[str, Float[Tensor, ""]]:
    """Entropy and information of target distributions, in nats.

    `entropy_NAME` is the mean entropy H(t) of a target: log of the number of classes where it is
    uniform, 0 where it is one class. `information_NAME` is the entropy of the mean target minus
    `entropy_NAME`, the mutual information of token and class: 0 where all tokens have the same
    target, at most the log of the number of tokens.

    Args:
        targets: the teacher's distributions, each of sum 1, one for each token.
        name: `class` or `patch`.
    """
    flat = targets.flatten(0, -2).float()
    entropy = _entropy(flat).mean()
    return {f"entropy_{name}": entropy, f"information_{name}": _entropy(flat.mean(0)) - entropy}


def divergences(numbers: Mapping[str, float]) -> dict[str, float]:
    """Kullback-Leibler divergences of the student from its targets, in nats.

    A term of the loss is a cross-entropy, the entropy of the targets, which the student cannot
    change, plus the divergence, which it can: KL = term - entropy. Terms that are off have none.

    Args:
        numbers: terms of the loss and entropies, by name.
    """
    return {
        f"kl_{term}": numbers[term] - numbers[f"entropy_{name}"]
        for term, name in (("g2g", "class"), ("l2g", "class"), ("masked", "patch"))
        if numbers.get(term) and f"entropy_{name}" in numbers
    }


@torch.no_grad()
def feature_statistics(
    backbone: VisionTransformer | MaskedTimm, crops: Float[Tensor, "time batch 3 height width"]
) -> dict[str, Float[Tensor, ""]]:
    """Deviation and effective rank of a backbone's tokens.

    `std_class` and `std_patch` are the deviations of L2-normalised tokens, averaged over dimensions
    and multiplied by the root of their number: 1 where tokens point everywhere, 0 where all are the
    same (as in SimSiam, arXiv:2011.10566). `rank_patch` is the effective rank of patch tokens, 1 to
    the width.

    Args:
        backbone: in evaluation mode.
        crops: normalised; the first of them are used.
    """

    def deviation(tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1).std(dim=0, correction=0).mean() * tokens.shape[-1] ** 0.5

    images = crops.transpose(0, 1).flatten(0, 1)[:MAX_IMAGES]
    tokens = backbone(images).float()
    patches = tokens[:, 1:].flatten(0, 1)
    step = math.ceil(len(patches) / MAX_TOKENS)
    return {
        "std_class": deviation(tokens[:, 0]),
        "std_patch": deviation(patches),
        "rank_patch": effective_rank(patches[::step]),
    }


def effective_rank(features: Float[Tensor, "sample dim"]) -> Float[Tensor, ""]:
    """The exponential of the entropy of the singular values, which are normalized to sum to 1.

    This is RankMe (arXiv:2210.02885), 1 to the smaller side of the matrix; NaN if a feature is not
    finite.
    """
    # By the Gram matrix of the smaller side, in fp64, which not every device has.
    matrix = features.cpu().double()
    if not matrix.isfinite().all():
        return matrix.new_tensor(math.nan)
    gram = matrix.T @ matrix if len(matrix) > matrix.shape[1] else matrix @ matrix.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return _entropy(singular / singular.sum().clamp(min=1e-12)).exp()


def _entropy(probabilities: Float[Tensor, "*rows classes"]) -> Float[Tensor, "*rows"]:
    return torch.special.entr(probabilities).sum(dim=-1)


@dataclass
class CollapseMonitor:
    """Detects collapse and warns of each kind once, and again if it recurs.

    Attributes:
        num_classes: classes of the head.
        num_views: global crops in a step of this process, each with one class token.
        num_patch_tokens: patch tokens of a step that have targets, at most.
        width: dimension of the backbone's tokens.
        first_step: no warnings before this step, as an untrained network looks collapsed.
    """

    num_classes: int
    num_views: int
    num_patch_tokens: int
    width: int
    first_step: int
    _in_a_row: Counter[str] = field(default_factory=Counter)

    def check(self, step: int, numbers: Mapping[str, float]) -> list[str]:
        """The warnings for the statistics of a step; usually none.

        Args:
            step: counted from 0.
            numbers: statistics of this module, by name; what is missing or not finite is not
                judged (a step that is not finite is skipped and reported as such).
        """
        if step < self.first_step:
            return []
        warnings = []
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        for kind, words in self._judge(finite):
            self._in_a_row[kind] = self._in_a_row[kind] + 1 if words else 0
            if self._in_a_row[kind] == PATIENCE:
                warnings.append(f"at step {step} {words}")
        return warnings

    def _judge(self, numbers: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """Each kind of collapse that can be judged: what is seen and what to do, or nothing."""
        for name, num_tokens in (("class", self.num_views), ("patch", self.num_patch_tokens)):
            is_uniform = False
            if (entropy := numbers.get(f"entropy_{name}")) is not None:
                most = math.log(self.num_classes)
                is_uniform = entropy >= UNIFORM * most
                words = (
                    f"the teacher's outputs for {name} tokens are nearly uniform (entropy "
                    f"{entropy:.2f} of at most {most:.2f} nats): the network learns nothing from "
                    "them; lower loss.teacher_temperature, or optim.lr"
                )
                yield f"uniform {name}", words if is_uniform else ""
            if (information := numbers.get(f"information_{name}")) is not None:
                most = math.log(min(num_tokens, self.num_classes))
                is_constant = not is_uniform and information < CONSTANT * most
                words = (
                    f"the teacher's outputs for {name} tokens are nearly the same whatever it sees "
                    f"(information {max(0.0, information):.2f} of at most {most:.2f} nats): one "
                    "class takes all; lower optim.lr, or loss.center_momentum, so that the center "
                    "follows"
                )
                yield f"constant {name}", words if is_constant else ""
        if (rank := numbers.get("rank_patch")) is not None:
            words = (
                f"features lie along few directions (effective rank {rank:.1f} of {self.width}): "
                "they cannot tell one thing from another; lower optim.lr, or start again with "
                "another run.seed"
            )
            yield "low rank", words if rank < max(1.5, LOW_RANK * self.width) else ""


MAX_CLIPS = 4
MIN_SIDE = 160
GAP = 4
_WHITE, _GRAY = 255, 128


def contact_sheet(views: Views, *, patch_size: int) -> UInt8[np.ndarray, "rows columns 3"]:
    """A picture of the first clips of a batch: one row per clip, one column per frame.

    A column holds the global crop, its masked patches gray, and below it the frame's local crops.
    Small crops are enlarged pixel by pixel.
    """
    assert views.global_crops is not None
    crops = _pixels(views.global_crops[:, :MAX_CLIPS])  # (t, b, h, w, 3)
    num_frames, num_clips, side = crops.shape[:3]
    if views.masked is not None:
        hidden = np.zeros((num_clips, (side // patch_size) ** 2), bool)
        np.put_along_axis(hidden, views.masked[:MAX_CLIPS].cpu().numpy(), True, axis=1)
        hidden = hidden.reshape(num_clips, side // patch_size, side // patch_size)
        crops[:, hidden.repeat(patch_size, axis=1).repeat(patch_size, axis=2)] = _GRAY
    scale = max(1, round(MIN_SIDE / side))
    large = scale * side + GAP
    if views.local_crops is None:
        local, small, per_row, num_rows = np.empty((num_frames, 0)), 0, 0, 0
    else:
        local = _pixels(views.local_crops[:, :, :MAX_CLIPS])  # (t, m, b, h, w, 3)
        small = scale * local.shape[3] + GAP
        per_row = max(1, round(large / small))
        num_rows = math.ceil(local.shape[1] / per_row)
    height, width = large + num_rows * small + 3 * GAP, max(large, per_row * small)
    sheet = np.full((GAP + num_clips * height, GAP + num_frames * width, 3), _WHITE, np.uint8)

    def show(crop: np.ndarray, top: int, left: int) -> None:
        pixels = crop.repeat(scale, axis=0).repeat(scale, axis=1)
        sheet[top : top + len(pixels), left : left + len(pixels)] = pixels

    for frame, clip in np.ndindex(num_frames, num_clips):
        top, left = GAP + clip * height, GAP + frame * width
        show(crops[frame, clip], top, left)
        for number, one in enumerate(local[frame]):
            row, column = divmod(number, per_row)
            show(one[clip], top + large + row * small, left + column * small)
    return sheet


def _pixels(
    crops: Float[Tensor, "*crops 3 height width"],
) -> UInt8[np.ndarray, "*crops height width 3"]:
    mean, std = (crops.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    levels = ((crops * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().cpu().numpy()


class Monitor:
    """Statistics, pictures and scores of a run. Call it in each step; it acts when they are due."""

    def __init__(
        self, run: Run, *, log: RunLog, evaluate: Evaluate | None, judge: Evaluate | None
    ) -> None:
        self._run, self._log = run, log
        self._best_by = "eval_jf" if evaluate else "judge_jf"
        settings = run.config.run
        scorers = ((evaluate, settings.eval_every), (judge, settings.judge_every))
        self._scorers = [(scorer, every) for scorer, every in scorers if scorer is not None]
        config = run.config
        num_views = config.data.batch_size * config.data.clip_length
        num_patches = (config.views.global_size // patch_size_of(config.model)) ** 2
        self._collapse = CollapseMonitor(
            num_classes=config.model.out_dim,
            num_views=num_views,
            num_patch_tokens=num_views * max(1, int(num_patches * config.masking.ratio[1])),
            width=run.model.teacher.backbone.embed_dim,
            first_step=int(config.optim.warmup_epochs * run.steps_per_epoch),
        )

    @torch.no_grad()
    def measure(self, step: int, views: Views, targets: Targets) -> dict[str, Tensor]:
        """Statistics of targets and features, on the device, where the step is due; else nothing.

        A picture of the views is written every `run.pictures_every` steps.
        """
        run, every = self._run, self._run.config.run.pictures_every
        if every and step % every == 0 and run.fabric.is_global_zero:
            self._write_picture(step, views)
        if not self._log.is_due(step):
            return {}
        found = target_statistics(targets.class_pairs, name="class")
        if targets.patch is not None:
            found |= target_statistics(targets.patch, name="patch")
        backbone = run.model.teacher.backbone
        # A sharded backbone cannot be run by itself.
        if not isinstance(next(backbone.parameters()), DTensor):
            assert views.global_crops is not None
            with run.fabric.autocast():
                found |= feature_statistics(backbone, views.global_crops)
        return found

    def score(self, step: int) -> dict[str, float]:
        """Evaluates and judges the student where it is due after this step.

        All processes must call it. The first one evaluates, and saves best.pt if the score is the
        highest so far.
        """
        run, done = self._run, step + 1
        due = [
            scorer
            for scorer, every in self._scorers
            if done == run.num_steps or (every > 0 and done % every == 0)
        ]
        if not due:
            return {}
        weights = gather(run.model.student.backbone.state_dict())
        scores: dict[str, float] = {}
        if run.fabric.is_global_zero:
            for scorer in due:
                with _going_on_without("scores"):
                    scores |= scorer(weights, done)
        is_best = False
        with _going_on_without("best.pt"):
            is_best = save_best(run, step=done, score=scores.get(self._best_by, -math.inf))
        self._log.write_scores(scores, done=done, is_best=is_best)
        return scores

    def complete(self, step: int, numbers: Mapping[str, float]) -> dict[str, float]:
        """Adds derived metrics (KL divergences, GPU memory in GiB) and warns of a collapse."""
        device = self._run.fabric.device
        found = {**numbers, **divergences(numbers)}
        if device.type == "cuda" and self._log.is_due(step):
            found["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        for words in self._collapse.check(step, found):
            if self._run.fabric.is_global_zero:
                _LOG.warning("%s", words)
        return found

    def _write_picture(self, step: int, views: Views) -> None:
        sheet = contact_sheet(views, patch_size=patch_size_of(self._run.config.model))
        path = self._run.out / "pictures" / f"step_{step:08d}.png"
        with _going_on_without("pictures"):
            with contextlib.suppress(OSError):  # what is wrong shows when the file is written
                path.parent.mkdir(exist_ok=True)
            with atomic_path(path) as temporary:
                Image.fromarray(sheet).save(temporary)
            self._log.write_picture(step, "views", sheet, path=path)


@contextlib.contextmanager
def _going_on_without(what: str) -> Iterator[None]:
    """Has what cannot be made or written cost itself, and not the run."""
    try:
        yield
    except (InoError, OSError) as error:
        _LOG.warning("%s; the run goes on without %s", error, what)
