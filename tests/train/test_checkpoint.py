"""The best checkpoint."""

from contextlib import ExitStack

from ino.models.weights import list_checkpoints, read_checkpoint
from ino.train.config import resolve
from ino.train.run import best_score, save_best, start


def test_the_best_is_kept_beside_the_newest(config, tmp_path):
    best = tmp_path / "run/checkpoints/best.pt"
    with ExitStack() as held:
        run = start(resolve(config), out=tmp_path / "run", resume=False, held=held)
        assert best_score(best) == float("-inf")
        given = [(1, 0.4), (2, 0.3), (3, 0.4), (4, float("nan")), (5, 0.5)]
        kept = [save_best(run, step=step, score=score) for step, score in given]
        assert kept == [True, False, False, False, True]
        assert best_score(best) == 0.5
        assert read_checkpoint(best)["step"] == 5
        assert list_checkpoints(tmp_path / "run") == []  # no run resumes from it
        best.write_bytes(best.read_bytes()[:100])
        assert save_best(run, step=6, score=0.1)  # a damaged one is replaced
        assert best_score(best) == 0.1
