"""A trial: a row of an experiment with one seed, and how far it is, told from its folder alone.

So the same command resumes an experiment that was stopped, and several processes share its work.

    DIR/LABEL/[seed_N/]              of given weights: results as `ino evaluate` leaves them
    DIR/LABEL/seed_N/                of a row that trains: a run as `ino train` leaves it,
    DIR/LABEL/seed_N/davis_480_.../  and its results
    DIR/LABEL/seed_N/weights/        of the run after the steps of the curve
    .../done.json                    beside the results once they are scored
    .../judged.json                  beside them: J&F predicted on each video without labels
    DIR/LABEL[/seed_N].error.txt     while the row is worked on, and why it failed
    DIR/.locks/LABEL[/seed_N]/       held by the process that works on the row
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from ino.errors import OutputError
from ino.experiments.rows import Row
from ino.models.weights import NetworkName, list_checkpoints
from ino.propagate.protocols import Protocol
from ino.schema import read_json
from ino.system import folder_lock
from ino.tasks.results import fingerprint, read_finished, settings_text
from ino.train.config import TrainConfig

PREDICTED = "predicted J&F"
"""Name of the mean over the videos of `Trial.judge` among the scores."""


@dataclass(frozen=True)
class Evaluation:
    """One way in which a network is evaluated.

    Attributes:
        folder: of the results, within that of the trial; empty for the latter itself.
        network: student or teacher; None for the usual one.
        protocol: with all that the row replaces.
        remarks: where it is not what the published numbers were measured with.
        step: of the run after which it is done; None: at its end, or nothing is trained.
    """

    folder: str
    network: NetworkName | None
    protocol: Protocol
    remarks: tuple[str, ...]
    step: int | None = None


@dataclass(frozen=True)
class Trial:
    """A row with one seed: what one process works on.

    Attributes:
        label: of the row.
        row: with its fields.
        seed: of the run or of random weights; None where nothing is random.
        evaluations: of its network.
        out: folder of the experiment.
        weights: that are evaluated; None where they are trained or not at hand.
        config: of the run that makes them.
        judge: videos without labels on which J&F is predicted.
        absent: why the row cannot be done, which is no failure; empty where it can.
    """

    label: str
    row: Row
    seed: int | None
    evaluations: tuple[Evaluation, ...]
    out: Path
    weights: str | None = None
    config: TrainConfig | None = None
    judge: frozenset[str] = frozenset()
    absent: str = ""

    @property
    def name(self) -> str:
        """Its folder within that of the experiment."""
        return self.label if self.seed is None else f"{self.label}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        return self.out / self.name

    @property
    def error_file(self) -> Path:
        """Says why the trial failed. It also exists while the trial runs, so that a killed process
        leaves a message."""
        return self.out / f"{self.name}.error.txt"

    @cached_property
    def _made_of(self) -> dict[str, Any]:
        weights = {"weights": self.name}
        if self.weights is not None:
            weights = {"weights": self.weights, **fingerprint(self.weights)}
        row = {"precision": self.row.precision, "data": self.row.data, "root": self.row.root}
        return {**weights, "seed": self.seed, **row, **self.row.choices}

    def settings(self, one: Evaluation) -> str:
        """What is stored beside results; two were made alike where these are equal."""
        step = {} if one.step is None else {"step": one.step}
        return settings_text(one.protocol, {**self._made_of, "network": one.network, **step})

    def weights_file(self, one: Evaluation) -> Path:
        """Export of the network of a run after the step of an evaluation."""
        return self.folder / "weights" / f"step_{one.step:08d}_{one.network or 'student'}"

    def read_judged(self, one: Evaluation) -> dict[str, float]:
        """J&F in percent that was predicted on videos, by their paths."""
        try:
            judged = read_json(self.folder / one.folder / "judged.json")["videos"]
            return {video: float(value) for video, value in judged.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def read_scores(self, one: Evaluation) -> dict[str, float] | None:
        """Scores in percent, by their names in the table; None until all are there. A damaged
        file is made again."""
        try:
            scores = read_json(self.folder / one.folder / "done.json")["scores"]
            scores = {name: float(value) for name, value in scores.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        judged = self.read_judged(one)
        if not self.judge <= judged.keys():
            return None
        if self.judge:
            scores[PREDICTED] = fmean(judged[video] for video in self.judge)
        return scores

    def read_state(self) -> "State":
        """How far it is."""
        found = [self.read_scores(one) for one in self.evaluations]
        scores = [one for one in found if one is not None]
        if len(scores) == len(found):
            return State("done", f"done, {self._shown(scores)}")
        if self.absent:
            return State("absent", self.absent)
        kind: Literal["waiting", "running"] = "waiting"
        if self.error_file.is_file():
            with self.hold() as is_free:
                if is_free:
                    text = self.error_file.read_text(encoding="utf-8", errors="replace")
                    return State("failed", "failed: " + text.partition("\n")[0])
            kind = "running"
        parts = [kind]
        if saved := list_checkpoints(self.folder) if self.weights is None else []:
            parts.append(f"saved at step {int(saved[-1].stem.split('_')[1])}")
        if num := sum(len(read_finished(self.folder / one.folder)) for one in self.evaluations):
            parts.append(f"{num} video{'s' * (num > 1)} done")
        return State(kind, ", ".join(parts))

    def _shown(self, scores: list[dict[str, float]]) -> str:
        """The main score of each evaluation, or else all that there are."""
        main = next(iter(self.row.scores))
        if shown := " ".join(f"{one[main]:.1f}" for one in scores if main in one):
            return f"{main} {shown}"
        others = ", ".join(f"{name} {value:.1f}" for one in scores for name, value in one.items())
        return others or f"its server scores {self.folder / 'submission.zip'}"

    @contextmanager
    def hold(self) -> Iterator[bool]:
        """Whether no other process works on it; while the block runs, none can begin."""
        with ExitStack() as lock:
            try:
                lock.enter_context(folder_lock(self.out / ".locks" / self.name, command="ino"))
                is_free = True
            except OutputError:
                is_free = False
            yield is_free


class State(NamedTuple):
    """The progress of a trial, and the same with details, in a few words."""

    kind: Literal["waiting", "running", "done", "failed", "absent"]
    words: str
