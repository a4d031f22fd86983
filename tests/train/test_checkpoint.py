"""The best checkpoint."""

from ino.models.weights import list_checkpoints, read_checkpoint
from ino.train.config import resolve
from ino.train.objective import Objective
from ino.train.optim import build_optimizer
from ino.train.run import Origin, RunState, best_score, build_model, save_best


def test_the_best_is_kept_beside_the_newest(config, tmp_path):
    config = resolve(config)
    model = build_model(config.model)
    objective = Objective(config.loss, num_classes=config.model.out_dim, num_local=2)
    state = RunState(model, objective, build_optimizer(model.student), None, Origin())
    (tmp_path / "checkpoints").mkdir()
    best = tmp_path / "checkpoints" / "best.pt"

    def offer(step, score):
        return save_best(config, state, out=tmp_path, step=step, score=score)

    assert best_score(best) == float("-inf")
    given = [(1, 0.4), (2, 0.3), (3, 0.4), (4, float("nan")), (5, 0.5)]
    assert [offer(*one) for one in given] == [True, False, False, False, True]
    assert best_score(best) == 0.5
    assert read_checkpoint(best)["step"] == 5
    assert list_checkpoints(tmp_path) == []  # no run resumes from it
    best.write_bytes(best.read_bytes()[:100])
    assert offer(6, 0.1)  # a damaged one is replaced
    assert best_score(best) == 0.1
