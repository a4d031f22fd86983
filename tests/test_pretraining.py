"""Runs that are scored on labelled sequences on the way, and told to Weights & Biases."""

import json
import sys
import types

import pytest
import yaml

from ino import cli
from ino.demo.synthetic import generate_clip, write_davis_layout, write_videos
from ino.models.weights import read_checkpoint
from ino.report.curves import read_history

RECIPE = {
    "model": {
        "arch": "vit_nano",
        "depth": 7,  # which the protocols read
        "out_dim": 32,
        "hidden_dim": 24,
        "bottleneck_dim": 16,
    },
    "data": {"frame_step": 1, "clips_per_video": 1, "batch_size": 2, "num_workers": 0},
    "views": {"global_size": 32, "local_size": 16, "num_local": 0},
    "loss": {"l2g": 0},
    "optim": {"epochs": 2, "lr": 0.05, "warmup_epochs": 1.0},
    "run": {"accelerator": "cpu", "precision": "32-true", "pictures_every": 0},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    clips = {f"{s}": generate_clip(s, num_frames=6, height=48, width=64) for s in range(4)}
    write_videos(clips, folder / "videos")
    write_davis_layout({"one": clips["0"], "two": clips["1"]}, folder / "davis")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def run(data, out, *options) -> int:
    fixed = ["--data.root", data / "videos", "--out", out]
    return cli.main([str(x) for x in ("train", data / "recipe.yaml", *fixed, *options)])


def scored(data):
    return ["--run.eval_root", data / "davis", "--run.eval_short_side", 48, "--run.eval_every", 3]


def test_scores_stand_beside_the_loss_and_decide_which_checkpoint_is_best(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(data, out, *scored(data), "--run.eval_sequences", '["one"]') == 0
    lines = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    found = {line["step"] + 1: line["eval_jf"] for line in lines if "eval_jf" in line}
    assert list(found) == [3, 4]  # every third step, and after the last
    for step, score in found.items():
        folder = out / f"evaluations/step_{step:08d}"
        stored = json.loads((folder / "scores.json").read_text())["global"]
        assert score == pytest.approx(100 * stored["J&F-Mean"])
        assert [path.name for path in (folder / "predictions").iterdir()] == ["one"]
    best = read_checkpoint(out / "checkpoints/best.pt")
    assert best["score"] == max(found.values())
    assert best["step"] == max(found, key=lambda step: found[step])
    shown = capsys.readouterr().err.splitlines()
    for step, score in found.items():
        (line,) = (line for line in shown if line.startswith(f"step_{step:08d}: J&F {score:.1f}, "))
        is_best = score > max((found[s] for s in found if s < step), default=0)
        assert line.endswith(", kept as best.pt") == is_best
    steps, values = read_history(out, label="run").series["eval_jf"]
    assert dict(zip(steps, values, strict=True)) == found  # drawn where folders are named
    # The score on the way is that of the command on the checkpoint.
    again = tmp_path / "again"
    arguments = ["--root", data / "davis", "--weights", out, "--out", again, "--device", "cpu"]
    more = ["--sequences", "one", "--set", "short_side=48", "radius=4"]
    assert cli.main([str(x) for x in ("evaluate", "davis", *arguments, *more)]) == 0
    stored = json.loads((again / "scores.json").read_text())["global"]
    assert found[4] == pytest.approx(100 * stored["J&F-Mean"])


def test_scoring_changes_nothing_of_what_is_learnt(data, tmp_path):
    assert run(data, tmp_path / "plain") == 0
    assert run(data, tmp_path / "scored", *scored(data)) == 0
    name = "checkpoints/step_00000004.pt"
    plain, other = (read_checkpoint(tmp_path / x / name)["student"] for x in ("plain", "scored"))
    assert all((plain[key] == other[key]).all() for key in plain)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--run.eval_every", 3], "not run.eval_root"),
        (["--run.eval_every", 3, "--run.eval_root", "nowhere"], "nowhere"),
        (["--run.eval_sequences", '["three"]'], "three is not in"),
        (["--run.eval_protocol", "best"], "unknown protocol 'best'"),
        (["--run.eval_every", -1], "run.eval_every must be at least 0, but is -1"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_told_before_the_first_step(
    data, tmp_path, capsys, options, words
):
    given = options if "--run.eval_every" in options else [*scored(data), *options]
    assert run(data, tmp_path / "run", *given) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_judging_without_labels_stands_in_the_log_and_decides_which_checkpoint_is_best(
    data, tmp_path, capsys
):
    videos = json.dumps([str(next(iter(sorted((data / "videos").iterdir()))))])
    options = ["--run.judge_every", 3, "--run.judge_videos", videos]
    assert run(data, tmp_path / "run", *options) == 0
    lines = [json.loads(x) for x in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    found = {line["step"] + 1: line["judge_jf"] for line in lines if "judge_jf" in line}
    assert list(found) == [3, 4]
    assert read_checkpoint(tmp_path / "run/checkpoints/best.pt")["score"] == max(found.values())
    assert f"predicted J&F {found[3]:.1f}" in capsys.readouterr().err
    assert run(data, tmp_path / "plain") == 0
    name = "checkpoints/step_00000004.pt"
    plain, other = (read_checkpoint(tmp_path / x / name)["student"] for x in ("plain", "run"))
    assert all((plain[key] == other[key]).all() for key in plain)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--run.judge_every", 3], "not run.judge_videos"),
        (["--run.judge_every", 3, "--run.judge_videos", '["nowhere.mp4"]'], "nowhere.mp4"),
    ],
)
def test_videos_that_cannot_be_judged_are_told_before_the_first_step(
    data, tmp_path, capsys, options, words
):
    assert run(data, tmp_path / "run", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_data_set_without_sequences_is_refused(data, tmp_path, capsys):
    root = tmp_path / "davis"
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("")
    options = ["--run.eval_every", 1, "--run.eval_root", root]
    assert run(data, tmp_path / "run", *options) == 2
    assert str(root) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_missing_wandb_is_told_before_the_first_step(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ino.train.log.find_spec", lambda name: None)
    assert run(data, tmp_path / "run", "--run.wandb", "ino") == 2
    assert "uv sync --extra wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def wandb(monkeypatch):
    """Puts a logger in the place of the real one, which is an extra."""
    monkeypatch.setattr("ino.train.log.find_spec", lambda name: name)
    errors = types.ModuleType("wandb.errors")
    errors.Error = type("Error", (Exception,), {})
    loggers = types.ModuleType("lightning.pytorch.loggers")
    for module in (loggers, errors):
        parent = module.__name__.rpartition(".")[0]
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def install(logger):
        loggers.WandbLogger = logger
        return errors.Error

    return install


def test_a_run_that_wandb_does_not_take_is_told_in_one_line(data, tmp_path, capsys, wandb):
    class Refusing:
        def __init__(self, **options):
            pass

        @property
        def experiment(self):
            raise error("api_key not configured")

    error = wandb(Refusing)
    assert run(data, tmp_path / "run", "--run.wandb", "ino") == 2
    assert "(api_key not configured): run wandb login" in capsys.readouterr().err


def test_a_run_is_told_to_wandb_and_resumes_as_the_same_one(data, tmp_path, wandb):
    """The logger's calls only."""
    told = []

    class FakeLogger:
        def __init__(self, **options):
            told.append(options)
            self.experiment = types.SimpleNamespace(finish=lambda **_: told.append("finished"))

        def log_metrics(self, numbers, step):
            told.append((step, numbers["loss"]))

        def log_image(self, name, images, step):
            told.append((name, step))

    wandb(FakeLogger)
    out = tmp_path / "run"
    options = ["--run.wandb", "ino", "--run.log_every", 2, "--run.pictures_every", 4]
    assert run(data, out, *options, "--run.max_steps", 3, "--run.save_every", 3) == 0
    assert run(data, out, *options, "--resume") == 0
    first, second = (one for one in told if isinstance(one, dict))
    assert first == second
    assert (first["project"], first["resume"]) == ("ino", "allow")
    assert [one[0] for one in told if isinstance(one, tuple)] == ["views", 0, 2]
    assert told.count("finished") == 2
