"""What is looked at beside the training: targets, features, pictures, masks on labelled sequences.

None of it changes the parameters. What costs is done on some steps only.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ino.errors import InoError
from ino.models.student_teacher import Views
from ino.train.checkpoint import save_best
from ino.train.collapse import CollapseMonitor
from ino.train.log import RunLog
from ino.train.monitors import divergences, feature_numbers, target_numbers
from ino.train.objective import Targets
from ino.train.pictures import contact_sheet, write_sheet
from ino.train.setup import Run
from ino.train.sharding import gather

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
