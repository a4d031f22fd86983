"""Experiments: one table from one file, each row once, whatever happens in between."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
import yaml

from command import refused, run
from dense_layouts import write_official_list, write_part_video, write_pose_video
from ino.data.label_maps import read_labels
from ino.demo.synthetic import generate_clip, write_davis_layout, write_videos
from ino.errors import ConfigError
from ino.experiments import run as runner
from ino.experiments.plan import plan_experiment
from ino.experiments.rows import FOLDER, DavisRow, read_experiment
from ino.experiments.run import choose_devices
from ino.models.load import load_backbone
from ino.models.weights import find_checkpoint, list_checkpoints, read_checkpoint
from ino.propagate.tracker import Tracker
from ino.schema import yaml_names
from ino.tasks.davis import evaluate_davis
from ino.tasks.judge import judge
from ino.tasks.results import sized_protocol
from ino.train.config import load_recipe, resolve, to_dict
from ino.train.loop import train
from ino.train.run import read_config
from processes import held_elsewhere
from synthetic_ytvos import write_ytvos_layout
from tiny_run import tiny_config

NANO = "random:vit_nano/8"
DOCS = Path(__file__).parent.parent / "docs"
RECIPE = {
    "model": {
        "arch": "vit_nano",
        "depth": 7,  # which the protocols read
        "out_dim": 32,
        "hidden_dim": 24,
        "bottleneck_dim": 16,
    },
    "data": {"frame_step": 1, "clips_per_video": 1, "batch_size": 2, "num_workers": 0},
    "views": {"global_size": 32, "local_size": 16, "num_local": 2},
    "optim": {"epochs": 8, "lr": 0.05, "warmup_epochs": 2.0},
    "run": {"accelerator": "cpu", "precision": "32-true", "save_every": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set of three sequences of five frames, four videos, a recipe."""
    folder = tmp_path_factory.mktemp("data")
    sizes = {"height": 48, "width": 64}
    sequences = {f"s{seed}": generate_clip(seed, num_frames=5, **sizes) for seed in range(3)}
    write_davis_layout(sequences, folder / "davis")
    clips = {f"{seed}": generate_clip(seed, num_frames=6, **sizes) for seed in range(4)}
    write_videos(clips, folder / "videos")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


@pytest.fixture(scope="module")
def davis(data) -> Path:
    return data / "davis"


def three_rows(davis: Path) -> dict:
    """Two rows that run and one whose file is not there."""
    return {
        "title": "three rows",
        "roots": {"davis": str(davis)},
        "defaults": {"short_side": 48, "layer": 1},
        "rows": {
            "color": {"weights": "color", "about": "raw color", "published": {"J&F": 30.0}},
            "nano": {"weights": NANO, "seeds": 3, "set": {"topk": 3}},
            "peer": {"file": "crw", "protocol": "crw", "published": {"J&F": 67.6, "F": 70.2}},
        },
    }


def runs(data: Path) -> dict:
    """Two rows that train four steps with two seeds."""
    return {
        "base": str(data / "recipe.yaml"),
        "train": {"data.root": str(data / "videos")},
        "seeds": [0, 1],
        "steps": 4,
        "roots": {"davis": str(data / "davis")},
        "defaults": {"short_side": 48, "sequences": ["s0"]},
        "rows": {
            "g2g": {"train": {"loss.l2g": 0, "views.num_local": 0}},
            "all": {"train": {}, "published": {"J&F": 67.0}},
        },
    }


@pytest.fixture
def file(tmp_path, davis):
    def write(**changes) -> Path:
        path = tmp_path / "file.yaml"
        path.write_text(json.dumps(three_rows(davis) | changes))
        return path

    return write


@pytest.fixture
def sweep(tmp_path, data):
    def write(**changes) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(json.dumps(runs(data) | changes))
        return path

    return write


@pytest.fixture
def performed(monkeypatch) -> list[str]:
    """What was done: videos, and "score"."""
    done: list[str] = []
    propagate, score = DavisRow.propagate, DavisRow.score

    def noted_propagate(self, video, predictions, **options):
        propagate(video, predictions, **options)
        done.append(video.name)

    def noted_score(self, *arguments):
        done.append("score")
        score(self, *arguments)

    monkeypatch.setattr(DavisRow, "propagate", noted_propagate)
    monkeypatch.setattr(DavisRow, "score", noted_score)
    return done


ROW = ["s0", "s1", "s2", "score"]


def planned(experiment, **options):
    return plan_experiment(experiment, out=Path("nothing/here"), **options)


def table_of(out: Path) -> list[dict]:
    return json.loads((out / "table.json").read_text())["rows"]


def test_one_table_of_all_rows_and_a_second_run_does_nothing_again(
    tmp_path, file, davis, capsys, performed, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr("ino.progress.SECONDS_PER_LINE", 0.0)
    assert run("evaluate", "suite", file(), "--out", out) == 0
    printed, told = capsys.readouterr()
    assert ", videos: 2 of 3\n" in told
    assert performed == ROW * 2
    color, nano, peer = table_of(out)
    protocol = sized_protocol("ino-davis", short_side=48, layer=1, overrides={"topk": 3})
    tracker = Tracker(load_backbone(NANO, seed=3), protocol=protocol)
    alone = evaluate_davis(davis, out=tmp_path / "alone", tracker=tracker)
    assert nano["scores"]["J&F"]["measured"] == 100 * alone.jf_mean
    assert nano["scores"]["J recall"]["measured"] == 100 * alone.means()["J-Recall"]
    for path in (tmp_path / "alone/predictions").glob("*/*.png"):
        ours = out / "nano/seed_3/predictions" / path.parent.name / path.name
        np.testing.assert_array_equal(read_labels(ours), read_labels(path))
    found = color["scores"]["J&F"]
    assert found["difference"] == found["measured"] - 30
    cell = f"{found['measured']:.1f} (30.0, {found['difference']:+.1f})"
    assert cell in printed and cell in (out / "table.md").read_text()
    assert (
        f"color,raw color,davis,ino-davis,48,,,1,{found['measured']},,30.0,"
        in (out / "table.csv").read_text()
    )
    assert peer["scores"]["F"]["published"] == 70.2 and peer["scores"]["F"]["measured"] is None
    assert "- (67.6)" in printed
    assert "peer: absent: crw.pth" in printed

    performed.clear()
    assert run("evaluate", "suite", file(), "--out", out) == 0
    assert performed == []
    assert capsys.readouterr().out == printed


def test_what_is_not_as_published_is_told_below_the_table(tmp_path, file, capsys):
    out, published = tmp_path / "out", {"published": {"J&F": 60.0}}
    rows = {
        "a": {"weights": "color", **published, "short_side": 480, "set": {"layer": 7}},
        "b": {"weights": "color", **published, "sequences": ["s0"]},
        "c": {"weights": "color", **published, "sequences": ["s0"], "precision": "bf16"},
        "d": {"weights": "color", "sequences": ["s0"]},
    }
    suite = file(rows=rows, defaults={"short_side": 24})
    assert run("evaluate", "suite", suite, "--out", out, "--rows", "b", "c", "d") == 0
    lines = [
        "measured on 1 sequence only (s0): b, c",
        "measured by ino-davis with short_side 24 in place of 480, radius 2 in place of 40: b, c",
        "measured in bf16: c",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("measured ")] == lines
    text = (out / "table.md").read_text()
    assert [line[2:] for line in text.splitlines() if line.startswith("- measured")] == lines
    assert [len(row["remarks"]) for row in table_of(out)] == [0, 2, 3, 0]


def test_windows_cover_the_same_part_of_a_smaller_frame():
    """Whatever size a method is published with; and its own settings are not told as a change."""

    def evaluation(short_side=None, **fields):
        changes = {"overrides": {"short_side": short_side}}
        experiment = read_experiment("table2", **changes)
        experiment.rows["row"] = {"weights": "color", **fields}
        (trial,) = planned(experiment, only=["row"], is_list=True).chosen
        return trial.evaluations[0]

    vfs = {"protocol": "vfs", "published_with": {"radius": 18}}
    assert (found := evaluation(**vfs)).protocol.radius == 18 and found.remarks == ()
    assert evaluation(240, **vfs).protocol.radius == 9
    assert "radius 9 in place of 18" in evaluation(240, **vfs).remarks[0]
    for protocol, radius in (("crw", 6), ("dul", 6), ("mast", 6), ("ino-davis", 20)):
        assert evaluation(240, protocol=protocol).protocol.radius == radius
    assert evaluation(360, data="ytvos").protocol.radius == 25
    assert evaluation(set={"short_side": 240}).protocol.radius == 20
    assert evaluation(set={"short_side": 240, "radius": 40}).protocol.radius == 40
    (remark,) = evaluation(sequences=list("abcde")).remarks
    assert remark == "measured on 5 sequences only (a, b, c and 2 more)"
    (remark,) = evaluation(set={"short_side": None}).remarks
    assert remark == "measured by ino-davis with short_side none in place of 480"


def test_another_list_and_another_training_are_told(tmp_path):
    def remarks(**changes):
        plan = planned(
            read_experiment("table4", **changes), only=["g2g", "untrained"], is_list=True
        )
        return {trial.label: trial.evaluations[0].remarks for trial in plan.chosen}

    assert remarks() == {"untrained": (), "g2g": ()}
    vary = {"data.root": ["a"], "optim.lr": [0.1], "run.seed": [1]}
    found = remarks(base="tiny", steps=9, vary=vary, overrides={"year": 2016})
    year = "measured on year 2016 in place of 2017"
    trained = "trained with base tiny in place of ino_vits8_charades, steps 9, optim.lr 0.1"
    assert found == {"untrained": (year,), "g2g": (year, trained)}
    (tmp_path / "mine.yaml").write_text("base: tiny")  # tables are shared: no folders in them
    (_, trained) = remarks(base=str(tmp_path / "mine.yaml"), overrides={"year": 2016})["g2g"]
    assert trained == "trained with base mine.yaml in place of ino_vits8_charades"


def test_labels_stay_whole_and_endings_are_told_once(tmp_path, davis, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["--davis", davis, "--weights-dir", tmp_path, "--out", tmp_path / "out"]
    assert run("evaluate", "suite", "table2", *arguments) == 0
    shown = capsys.readouterr().out
    assert " contcorr-trackingnet " in shown and " timecycle-rn18 " in shown
    assert shown.count(" TrackingNet ") == 2 and shown.count(" (89.0) ") == 1
    assert all(len(line) <= 80 for line in shown.split("\ntimecycle-rn18: ")[0].splitlines())
    assert shown.count(".safetensors") == 1
    assert "timecycle-rn18: published numbers only\n" in shown
    assert f"crw-kinetics: absent: crw_kinetics.pth is expected in {tmp_path}\n" in shown
    assert (tmp_path / "out/table.md").read_text().count(".safetensors") == 1


def test_what_was_stopped_is_resumed_with_the_next_video(tmp_path, file, monkeypatch, performed):
    out = tmp_path / "out"
    kept = DavisRow.propagate

    def stopped(self, *arguments, **options):
        if len(performed) == 5:
            raise KeyboardInterrupt
        kept(self, *arguments, **options)

    monkeypatch.setattr(DavisRow, "propagate", stopped)
    assert run("evaluate", "suite", file(), "--out", out) == 130
    assert table_of(out)[0]["states"]["color"].startswith("done")
    assert not list(out.rglob("*.error.txt"))
    monkeypatch.setattr(DavisRow, "propagate", kept)
    assert run("evaluate", "suite", file(), "--out", out) == 0
    assert performed == ROW * 2


def test_damaged_files_are_made_again(tmp_path, file, performed, capsys):
    out = tmp_path / "out"
    command = ["evaluate", "suite", file(), "--out", out, "--rows", "color"]
    assert run(*command) == 0
    before = (out / "color/scores.json").read_text()
    (out / "color/predictions/s1/00002.png").unlink()
    for damaged in (b'{"scores": {', b'{"scores": {"J&F": null}}', b"[1]", b"\xff"):
        (out / "color/done.json").write_bytes(damaged)
        (out / "color.error.txt").write_bytes(damaged[:-1])
        assert run(*command, "--list") == 0
    performed.clear()
    assert run(*command) == 0
    assert performed == ["s1", "score"]
    assert (out / "color/scores.json").read_text() == before
    (out / "color/done.json").unlink()
    (out / "color/settings.json").write_text("{")
    assert "settings.json is broken" in refused(capsys, *command)


def test_a_row_that_fails_is_named_and_the_others_go_on(tmp_path, file, data, capsys, monkeypatch):
    shutil.copytree(data / "davis", tmp_path / "copy")
    (tmp_path / "copy/JPEGImages/480p/s1/00003.jpg").write_bytes(b"no image")
    out, load = tmp_path / "out", load_backbone

    def broken(weights, **options):
        if weights == NANO:
            raise RuntimeError("no luck today")
        return load(weights, **options)

    monkeypatch.setattr(runner, "load_backbone", broken)
    rows = {"nano": {"weights": NANO, "sequences": ["s0"]}, "broken": {"weights": "color"}}
    rows |= {"whole": {"weights": "color", "sequences": ["s0", "s2"]}}
    suite = file(rows=rows, roots={"davis": str(tmp_path / "copy")})
    assert run("evaluate", "suite", suite, "--out", out) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "nano/seed_0: failed: RuntimeError: no luck today" in printed
    assert re.search(r"broken: failed: s1: \S*00003\.jpg", printed)
    for name in ("nano/seed_0", "broken"):
        assert "Traceback" in (out / f"{name}.error.txt").read_text()
    states = {name: state for row in table_of(out) for name, state in row["states"].items()}
    assert states["whole"].startswith("done, J&F")
    monkeypatch.setattr(runner, "load_backbone", load)
    assert run("evaluate", "suite", suite, "--out", out, "--rows", "nano") == 0
    assert [path.name for path in out.rglob("*.error.txt")] == ["broken.error.txt"]


def test_some_rows_leave_the_others_in_the_table(tmp_path, file, davis, capsys, performed):
    out, weights = tmp_path / "out", tmp_path / "weights/gone"
    weights.mkdir(parents=True)
    rows = three_rows(davis)["rows"] | {"gone": {"weights": str(weights)}}
    assert run("evaluate", "suite", file(rows=rows), "--out", out, "--rows", "color", "nano") == 0
    weights.rmdir()  # other rows need neither their weights nor their data sets
    suite = file(rows=rows | {"pose": {"weights": "color", "data": "jhmdb"}})
    (out / "nano/seed_3/done.json").unlink()
    (out / "nano/seed_3/finished.txt").write_text("s0\ns2\n")
    performed.clear()
    capsys.readouterr()
    assert run("evaluate", "suite", suite, "--out", out, "--rows", "color") == 0
    assert performed == []
    assert "nano" not in capsys.readouterr().out
    states = {name: state for row in table_of(out) for name, state in row["states"].items()}
    assert list(states) == ["color", "nano/seed_3", "peer", "gone", "pose"]
    assert states["color"].startswith("done, J&F")
    assert states["nano/seed_3"] == "waiting, 2 videos done"
    assert states["gone"].startswith("absent: ") and "gone is neither a file" in states["gone"]
    assert states["pose"] == "waiting"
    assert "gone is neither" in refused(capsys, "evaluate", "suite", suite, "--out", out)


def test_list_shows_published_numbers_and_states_and_needs_no_data_set(tmp_path, file, capsys):
    out, suite = tmp_path / "out", file(roots={})
    assert run("evaluate", "suite", suite, "--out", out, "--list") == 0
    printed = capsys.readouterr().out
    assert "- (67.6)" in printed and "\ncolor: waiting\n" in printed
    assert "peer: absent: crw.pth is expected in the folder given by --weights-dir\n" in printed
    assert "may end with .pt" in printed
    assert not out.exists()
    assert run("evaluate", "suite", file(), "--out", out, "--rows", "color") == 0
    with held_elsewhere(out / ".locks/nano/seed_3"):
        (out / "nano").mkdir()
        (out / "nano/seed_3.error.txt").write_text("what a process that is killed leaves\n")
        capsys.readouterr()
        assert run("evaluate", "suite", file(roots={}), "--out", out, "--list") == 0
        printed = capsys.readouterr().out
        assert re.search(r"\ncolor: done, J&F [\d.]+\nnano/seed_3: running\n", printed)
    line = refused(capsys, "evaluate", "suite", file(), "--out", out, "--list", "--short-side", 64)
    assert "radius was 4, but now it is 5" in line


def test_a_row_that_another_process_has_is_left_to_it(tmp_path, file, capsys, performed):
    out = tmp_path / "out"
    with held_elsewhere(out / ".locks/color"):
        (out / "color.error.txt").write_text("what a process that is killed leaves\n")
        assert run("evaluate", "suite", file(), "--out", out) == 0
        assert "\ncolor: running\n" in capsys.readouterr().out
        assert performed == ROW
    assert run("evaluate", "suite", file(), "--out", out, "--list") == 0
    assert "color: failed: what a process" in capsys.readouterr().out
    assert run("evaluate", "suite", file(), "--out", out) == 0
    assert performed == ROW * 2


@pytest.mark.parametrize("name", ["crw.pth", "crw.pth.tar", "crw.safetensors", "crw"])
def test_files_are_found_by_their_name(tmp_path, file, name):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / name).write_bytes(b"weights")
    plan = planned(read_experiment(str(file()), weights_dir=weights))
    assert (plan.trials[2].weights, plan.trials[2].absent) == (str(weights / name), "")


def test_other_settings_and_other_weights_are_refused(tmp_path, file, data, capsys):
    out = tmp_path / "out"
    train(tiny_config(data / "videos"), out=tmp_path / "weights/ours")
    rows = {"color": {"weights": "color"}, "ours": {"file": "ours", "weights": "color"}}
    options = ["--out", out, "--weights-dir", tmp_path / "weights"]
    command = ["evaluate", "suite", file(rows=rows), *options]
    assert run(*command) == 0
    assert "radius was 4, but now it is 5" in refused(capsys, *command, "--short-side", 64)
    line = refused(capsys, *command, "--sequences", "s0")
    assert "sequences was None, but now it is ['s0']" in line
    settings = json.loads((out / "ours/settings.json").read_text())
    assert settings["weights"] == str(tmp_path / "weights/ours")
    newest = Path(settings["checkpoint"])
    newest.write_bytes(newest.read_bytes() + b"\0")
    assert "sha256 was" in refused(capsys, *command)


def test_every_data_set_gives_the_scores_of_its_own_command(tmp_path, file):
    clip = generate_clip(5, num_frames=17, height=48, width=64, num_objects=2)
    ytvos, jhmdb, vip = (tmp_path / name for name in ("ytvos", "jhmdb", "vip"))
    write_ytvos_layout({"0000000aaa": clip}, ytvos, split="mine", dense=True)
    write_ytvos_layout({"0000000aaa": clip}, ytvos)
    joints = np.repeat(np.random.default_rng(0).uniform(8, 40, (1, 15, 2)), 4, axis=0)
    write_pose_video(jhmdb, "run", "still", clip.frames[:4], joints)
    write_official_list(jhmdb, "run", {"still": 2})
    vip.mkdir()
    write_part_video(vip, "v", clip.frames[:4], {n: clip.labels[n] * np.uint8(7) for n in (0, 3)})
    rows = {
        "mine": {"data": "ytvos", "split": "mine", "short_side": 48, "radius": 4},
        "valid": {"data": "ytvos", "short_side": 48, "radius": 4},
        "pose": {"data": "jhmdb", "input_size": 64, "joint_topk": 3},
        "parts": {"data": "vip", "input_size": 64},
    }
    roots = {"ytvos": str(ytvos), "jhmdb": str(jhmdb), "vip": str(vip)}
    suite, out = file(rows=rows, roots=roots, defaults={"weights": "color"}), tmp_path / "out"
    assert run("evaluate", "suite", suite, "--out", out) == 0
    common = ["--weights", "color", "--device", "cpu"]
    for label, command, options in (
        ("mine", "ytvos", ["--split", "mine", "--set", "short_side=48", "radius=4"]),
        ("pose", "jhmdb", ["--input-size", 64, "--joint-topk", 3]),
        ("parts", "vip", ["--input-size", 64]),
    ):
        alone = tmp_path / f"alone_{label}"
        root = roots[command]
        assert run("evaluate", command, "--root", root, "--out", alone, *options, *common) == 0
        ours = json.loads((out / label / "scores.json").read_text())
        assert ours == json.loads((alone / "scores.json").read_text())
    rows = {row["label"]: row for row in table_of(out)}
    assert "submission.zip" in rows["valid"]["states"]["valid"]
    assert "submission.zip" in (out / "table.md").read_text()
    assert (out / "valid/submission.zip").is_file()
    assert list(rows["pose"]["scores"]) == ["PCK@0.1", "PCK@0.2"]
    assert list(rows["parts"]["scores"]) == ["mIoU"]


# The experiments that come with ino.


@pytest.mark.parametrize("name", yaml_names(FOLDER))
def test_named_experiments_can_be_listed_and_planned(name, data, tmp_path):
    write_ytvos_layout({"a": generate_clip(0, num_frames=6, height=48, width=64)}, tmp_path / "y")
    experiment = read_experiment(name)
    listed = planned(experiment, is_list=True)
    assert list(dict.fromkeys(trial.label for trial in listed.trials)) == list(experiment.rows)
    files = [row["file"] for row in experiment.rows.values() if "file" in row]
    for one in files:
        (tmp_path / "weights" / one).mkdir(parents=True)
    roots = {"davis": data / "davis", "ytvos": tmp_path / "y"}
    if files:
        given = {"weights_dir": tmp_path / "weights", "roots": roots}
        only = [label for label, row in experiment.rows.items() if row.get("weights") is None]
        plan = planned(read_experiment(name, **given), only=only, may_train=False)
        assert not [trial.label for trial in plan.chosen if trial.absent and trial.row.file]
    vary = {"data.root": [str(data / "videos")], "data.batch_size": [2], "data.frame_step": [1]}
    for base in (None, "tiny") if experiment.base else ():
        given = {"base": base, "steps": 10, "roots": roots, "vary": vary}
        plan = planned(read_experiment(name, **given))
        plain = [json.dumps(to_dict(trial.config)) for trial in plan.trials if trial.config]
        assert len(set(plain)) == len(plain) > 1, "two rows are the same run"
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# ") and "Published:" in text


def test_published_numbers_are_those_of_the_paper():
    """The mean over J and F of each row of Table 2 and 4, and over four numbers in Table 3."""
    table2, table3, table4, fig5 = (
        {label: row.get("published", {}) for label, row in read_experiment(name).rows.items()}
        for name in ("table2", "table3", "table4", "fig5")
    )
    assert len(table2) == 16 and len(table3) == 8 and len(table4) == 2 + 4
    for numbers in [*table2.values(), *table4.values()]:
        if "J&F" in numbers:
            assert abs(numbers["J&F"] - (numbers["J"] + numbers["F"]) / 2) < 0.11
    assert list(table2["ino-kinetics"].values()) == [72.5, 68.7, 82.0, 76.3, 89.0]
    assert table4["+aff"] == table2["ino-charades"]
    assert [row["J&F"] for row in table4.values() if row] == [45.6, 54.2, 65.4, 67.0]
    assert (fig5["method"]["J&F"], fig5["M=10"]["J&F"]) == (67.0, 64.9)
    for mean, *four in (row.values() for row in table3.values()):
        assert len(four) == 4 and abs(mean - sum(four) / 4) < 0.18  # MAST's differ by 0.175


def test_table_4_adds_one_term_a_row_and_fig_5_varies_one_parameter(data):
    options = {"data.root": str(data / "videos"), "data.frame_step": 1}
    given = {"seeds": [0], "roots": {"davis": data / "davis"}}
    given["vary"] = {key: [value] for key, value in options.items()}

    def configs(name: str) -> list:
        trials = planned(read_experiment(name, **given)).trials
        return [trial.config for trial in trials if trial.config]

    rows = configs("table4")
    terms = [(c.loss.g2g, c.loss.l2g, c.loss.masked, c.loss.affinity) for c in rows]
    assert terms == [(1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1)]
    assert [c.views.num_local for c in rows] == [0, 8, 8, 8]
    base = resolve(load_recipe("ino_vits8_charades", options))
    assert rows[-1] == base == configs("fig5")[0]
    found = [
        [c.loss.affinity_teacher_temperature, c.data.clip_length, c.views.num_local]
        for c in configs("fig5")
    ]
    expected = [[0.04, 4, 8] for _ in found]
    expected[1][0], expected[2][0] = 0.02, 0.06
    expected[3][1], expected[4][1] = 2, 6
    expected[5][2], expected[6][2] = 6, 10
    assert found == expected
    scales = [(c.views.local_scale, c.views.global_scale) for c in configs("fig5")]
    thresholds = [0.8] * 7 + [0.4, 0.6]
    assert scales == [((0.05, one), (one, 0.95)) for one in thresholds]


def test_square_inputs_have_no_short_side(file):
    rows = {
        "masks": {},
        "parts": {"data": "vip"},
        "pose": {"data": "jhmdb", "input_size": 64},
        "by-protocol": {"data": "vip", "input_size": 0},
    }
    for defaults, overrides in (({}, {"short_side": 240}), ({"short_side": 240}, {})):
        suite = file(rows=rows, defaults={"weights": "color", **defaults})
        plan = planned(read_experiment(str(suite), overrides=overrides), is_list=True)
        found = {one.label: one.evaluations[0].protocol for one in plan.trials}
        sizes = {label: (protocol.short_side, protocol.radius) for label, protocol in found.items()}
        assert sizes["masks"] == sizes["by-protocol"] == (240, 20)
        assert sizes["parts"] == sizes["pose"] == (480, 40)


def test_parts_take_the_protocol_that_its_authors_have_for_them(file):
    rows = {name: {"data": "vip", "protocol": name} for name in ("cropmae", "rvm-vip", "rsp")}
    rows["square"] = {"data": "vip", "protocol": "rvm", "input_size": 560}
    plan = planned(
        read_experiment(str(file(rows=rows, defaults={"weights": "color"}))), is_list=True
    )
    found = [(one.row.input_size, one.evaluations[0].protocol.name) for one in plan.trials]
    assert found == [(0, "cropmae-vip"), (0, "rvm-vip"), (560, "rsp"), (560, "rvm-vip")]


def test_the_files_in_the_manual_can_be_used(tmp_path, data):
    manual = (DOCS / "experiments.md").read_text(encoding="utf-8")
    weights, training = re.findall(r"```yaml\n(.*?)```", manual, re.DOTALL)
    (tmp_path / "run").mkdir()
    (tmp_path / "a.yaml").write_text(weights.replace("runs/mine", str(tmp_path / "run")))
    given = {"roots": {"davis": data / "davis"}, "overrides": {"sequences": ["s0"]}}
    plan = planned(read_experiment(str(tmp_path / "a.yaml"), weights_dir=tmp_path, **given))
    assert [one.name for one in plan.trials] == [
        "color",
        "untrained/seed_1",
        "mine",
        "mine-240",
        "crw",
    ]
    protocols = {one.label: one.evaluations[0].protocol for one in plan.trials}
    assert (protocols["mine"].radius, protocols["mine-240"].radius) == (40, 20)
    assert protocols["mine-240"].topk == 10
    (tmp_path / "b.yaml").write_text(training)
    vary = {"data.root": [str(data / "videos")], "data.batch_size": [2]}
    plan = planned(read_experiment(str(tmp_path / "b.yaml"), vary=vary, **given))
    assert len(plan.trials) == 1 + 3 + 2 * 2 * 3
    assert [len(one.evaluations) for one in plan.trials] == [2] + [2] * 3 + [3 * 4] * 12


# Rows that train.


def test_runs_are_scored_over_seeds_and_plotted(tmp_path, sweep, capsys, monkeypatch):
    out, rows = tmp_path / "out", runs(tmp_path)["rows"]
    rows = {"color": {"weights": "color"}, "untrained": {"weights": "untrained"}, **rows}
    panels = [{"title": "terms", "points": {"g2g": 1, "all": 2}}]
    command = ["sweep", sweep(rows=rows, panels=panels), "--out", out]
    assert run(*command) == 0
    printed = capsys.readouterr().out
    table = table_of(out)
    assert [row["label"] for row in table] == ["color", "untrained", "g2g", "all"]
    assert [row["seeds"] for row in table] == [[None], [0, 1], [0, 1], [0, 1]]
    values = [
        100
        * json.loads((out / f"all/seed_{seed}/davis_48_student/scores.json").read_text())["global"][
            "J&F-Mean"
        ]
        for seed in (0, 1)
    ]
    found = table[3]["scores"]["J&F"]
    assert found["values"] == values
    assert (found["measured"], found["std"]) == (fmean(values), stdev(values))
    cell = f"{fmean(values):.1f} ± {stdev(values):.1f} (67.0, {fmean(values) - 67:+.1f})"
    assert cell in (out / "table.md").read_text()
    assert table[0]["scores"]["J&F"]["std"] is None
    remark = "measured by ino-davis with short_side 48 in place of 480"
    assert remark in printed and remark in (out / "table.md").read_text()
    assert [len(row["remarks"]) for row in table] == [0, 0, 0, 2]
    configs = {
        row: yaml.safe_load((out / row / "seed_1/config.yaml").read_text())
        for row in ("g2g", "all")
    }
    assert (configs["g2g"]["loss"]["l2g"], configs["all"]["loss"]["l2g"]) == (0, 1)
    assert {one["run"]["seed"] for one in configs.values()} == {1}
    # 4 steps of 2 clips are two epochs of 4 videos; the warm-up keeps its quarter.
    assert configs["all"]["optim"]["epochs"] == 2
    assert configs["all"]["optim"]["warmup_epochs"] == 0.5
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(runner, "pretrain", None)
    monkeypatch.setattr(runner, "load_backbone", None)
    assert run(*command) == 0
    assert capsys.readouterr().out == printed
    assert run("evaluate", "suite", command[1], "--out", tmp_path / "none", "--list") == 0
    assert "all/seed_1: absent: ino sweep trains it" in capsys.readouterr().out


def test_a_run_that_was_stopped_or_failed_is_not_done_twice(tmp_path, sweep, monkeypatch, capsys):
    out, command = tmp_path / "out", ["sweep", sweep(seeds=[0]), "--out", tmp_path / "out"]
    original, trained = runner.pretrain, []
    faults = [None, KeyboardInterrupt, RuntimeError("no luck today")]

    def pretrain(config, **options):
        trained.append(config.loss.l2g)
        if (fault := faults.pop(0) if faults else None) is not None:
            raise fault
        return original(config, **options)

    monkeypatch.setattr(runner, "pretrain", pretrain)
    assert run(*command) == 130
    scores = out / "g2g/seed_0/davis_48_student/scores.json"
    written = scores.stat().st_mtime_ns
    assert run(*command) == 1
    assert "all/seed_0: failed: RuntimeError: no luck today" in capsys.readouterr().out
    assert run(*command) == 0
    assert trained == [0, 1, 1, 1]
    assert scores.stat().st_mtime_ns == written
    (scores.parent / "done.json").write_text("{")  # it is scored again, its run is not repeated
    step = list_checkpoints(out / "g2g/seed_0")[-1].stat().st_mtime_ns
    capsys.readouterr()
    assert run(*command, "--list") == 0
    assert "g2g/seed_0: waiting, saved at step 4, 1 video done\n" in capsys.readouterr().out
    assert run(*command) == 0
    assert list_checkpoints(out / "g2g/seed_0")[-1].stat().st_mtime_ns == step


def test_runs_are_scored_and_judged_on_the_way(tmp_path, sweep, data, capsys, monkeypatch):
    out, rows = tmp_path / "out", {"untrained": {"weights": "untrained"}, "all": {"train": {}}}
    rows["all"]["published"] = {"J&F": 67.0}
    small = {"rows": rows, "seeds": [0], "steps": 3}
    video = str(data / "videos/0.mp4")
    command = ["sweep", sweep(**small), "--out", out, "--run.keep", 1]
    curve = ["--curve", "2", "--judge", video]
    score, faults = DavisRow.score, [KeyboardInterrupt]

    def stopped(self, folder, *arguments):
        if folder.name == "davis_48_student_step_2" and faults:
            raise faults.pop()
        score(self, folder, *arguments)

    monkeypatch.setattr(DavisRow, "score", stopped)
    assert run(*command, *curve) == 130
    assert [path.name for path in list_checkpoints(out / "all/seed_0")] == ["step_00000002.pt"]
    assert run(*command, *curve) == 0
    printed = capsys.readouterr().out
    table = table_of(out)
    assert [row["step"] for row in table] == [None, 2, 3]
    assert [row["scores"]["J&F"]["published"] for row in table] == [None, None, 67.0]
    judged = [row["scores"]["predicted J&F"]["measured"] for row in table]
    protocol = sized_protocol("ino-davis", short_side=48)
    weights = out / "all/seed_0/weights/step_00000002_student"
    assert judged[1] == 100 * judge(weights, video, protocol=protocol).score
    assert len(set(judged)) == 3 and all(f"{one:.1f}" in printed for one in judged)
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")

    # The run ends as one that is not scored on the way.
    train(read_config(out / "all/seed_0"), out=tmp_path / "whole")
    ours = read_checkpoint(find_checkpoint(out / "all/seed_0"))["student"]
    for name, value in read_checkpoint(find_checkpoint(tmp_path / "whole"))["student"].items():
        assert torch.equal(ours[name], value), name

    monkeypatch.setattr(runner, "pretrain", None)
    monkeypatch.setattr(runner, "load_backbone", None)
    assert run(*command, *curve) == 0  # nothing is left to do
    line = refused(capsys, *command, "--curve", "1")
    assert "is at step 3, and its weights after step 1 were not kept: choose another" in line


def test_a_changed_file_is_refused_in_the_same_folder(tmp_path, sweep, capsys):
    out = tmp_path / "out"
    small = {"seeds": [0], "rows": {"all": {"train": {}}}, "steps": 2}
    assert run("sweep", sweep(**small), "--out", out) == 0
    line = refused(capsys, "sweep", sweep(**small), "--out", out, "--optim.lr", 0.5)
    assert "all/seed_0 was run with optim.lr 0.05, now it is 0.5" in line
    line = refused(capsys, "sweep", sweep(**small), "--out", out, "--steps", 1)
    assert "max_steps 2, now it is 1" in line
    other = {"short_side": 48, "sequences": ["s0"], "set": {"topk": 3}}
    line = refused(capsys, "sweep", sweep(**small, defaults=other), "--out", out)
    assert "topk was 5, but now it is 3" in line
    (out / "all/seed_0/config.yaml").write_text("{")
    for checkpoint in list_checkpoints(out / "all/seed_0"):
        checkpoint.unlink()
    assert "config.yaml is damaged" in refused(capsys, "sweep", sweep(**small), "--out", out)


def test_options_replace_what_the_file_says(sweep):
    overrides = {"short_side": "48,96", "network": "teacher"}
    experiment = read_experiment(
        str(sweep()), seeds="5", overrides=overrides, vary={"optim.lr": [0.25]}
    )
    plan = planned(experiment)
    assert [one.name for one in plan.trials] == ["g2g/seed_5", "all/seed_5"]
    assert {one.config.optim.lr for one in plan.trials} == {0.25}
    evaluations = plan.trials[0].evaluations
    assert [one.folder for one in evaluations] == ["davis_48_teacher", "davis_96_teacher"]
    # The radius of 40 positions at a short side of 480 covers the same part of a smaller frame.
    assert [one.protocol.radius for one in evaluations] == [4, 8]


def test_a_grid_is_crossed_with_rows_and_has_its_own_plots(sweep):
    vary = {"loss.teacher_temperature": [0.02, 0.04], "data.clip_length": [2, 4]}
    plan = planned(read_experiment(str(sweep(seeds=[0])), vary=vary))
    assert [one.label for one in plan.trials] == [
        f"{row},teacher_temperature={temperature},clip_length={length}"
        for row, temperature, length in itertools.product(("g2g", "all"), (0.02, 0.04), (2, 4))
    ]
    assert plan.trials[1].config.data.clip_length == 4
    assert plan.trials[1].config.loss.l2g == 0
    assert plan.plots == ()
    vary = {"data.clip_length": [2, 4]}
    first, second = planned(read_experiment(str(sweep()), vary=vary)).plots
    assert first.points == {"g2g,clip_length=2": 2, "g2g,clip_length=4": 4}
    assert second.title == "all, data.clip_length"


# Bad input.


def of_row(**fields) -> dict:
    return {"rows": {"a": {"weights": "color", **fields}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rowz": {}}, "unknown key rowz"),
        ({"rows": {}}, "rows must "),
        ({"rows": {"a": {"weight": "color"}}}, r"row a: unknown key weight; did you mean weights"),
        ({"defaults": {"layr": 3}}, r"unknown key defaults\.layr"),
        ({"defaults": {"published": {"J&F": 1}}}, r"unknown key defaults\.published"),
        (of_row(protocol="inno"), "row a: unknown protocol"),
        (of_row(set={"topkk": 3}), "row a: .*topkk"),
        (of_row(set={"layer": 3}), "layer is given twice"),
        (of_row(set={"short_side": 64}), "short_side is given twice"),
        (of_row(set={"name": "x"}), "row a: .*name"),
        (of_row(data="davos"), "row a: data is 'davos'; choose one of davis, ytvos, jhmdb, vip"),
        (of_row(data=["davis"]), r"row a: data is \['davis'\]; choose one of"),
        (of_row(set=5) | {"defaults": {"set": {"topk": 3}}}, "row a: set must be keys and values"),
        (of_row(seeds="many"), r"row a: seeds\[0\] must be .*many"),
        (of_row(seeds=[1, 1], weights=NANO), "seeds are 1, 1; give each once"),
        (of_row(year=2018), "row a: year must be 2016 or 2017"),
        (of_row(input_size=9), "unknown key input_size"),
        (of_row(published={"JF": 1}), "published names JF"),
        (of_row(published={"J": "x"}), r"row a: published\.J must be a number"),
        (of_row(weights="colour"), "row a: colour is neither"),
        (of_row(weights="timm:resnet50@no.pth"), r"row a: no\.pth is neither"),
        (of_row(train={}), "row a: .*weights or train"),
        (of_row(data="vip"), "row a: no root of vip is given; pass --vip ROOT"),
        (of_row(data="vip", short_side=48), "row a: short_side has no meaning"),
        (of_row(data="jhmdb", split=4), "row a: split must be 1, 2 or 3"),
        (of_row(data="ytvos", year=2016), "row a: unknown key year"),
        ({"rows": {"a": {}}}, "row a: it names no weights"),
        ({"rows": {"a": {"train": {}}}}, "row a: the experiment names no base recipe"),
        ({"rows": {"a/b": {"weights": "color"}}}, "cannot name a folder"),
        ({"rows": {"a": {"weights": "color"}, "A": {"weights": "color"}}}, "name one folder"),
        ({"roots": {}}, "row color: no root of davis is given; pass --davis ROOT"),
        ({"roots": {"davis": "nowhere"}}, "nowhere"),
        ({"roots": {"davos": "x"}}, "davos"),
        ({"weights_dir": "nowhere"}, "nowhere does not exist"),
        ({"grid": {"loss.l2g": [1]}}, "a grid is for rows that train"),
        ({"panels": [{"title": "x", "points": {"b": 1}}]}, "there is no row b"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_the_first_row(
    tmp_path, file, capsys, changes, words
):
    out = tmp_path / "out"
    assert re.search(words, refused(capsys, "sweep", file(**changes), "--out", out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"defaults": {"sequences": ["s0"], "radius": 5, "set": {"radius": 9}}}, "given twice"),
        ({"seeds": []}, "seeds must"),
        ({"seeds": [-1]}, r"run\.seed"),
        ({"steps": 0}, "steps must be greater than 0, but is 0"),
        ({"base": "teeny"}, "no recipe 'teeny'"),
        ({"train": {}}, r"--data\.root"),
        ({"train": {"data.rot": "x"}}, r"data\.rot"),
        ({"rows": {"a": {"train": {"loss.l2g": -1}}}}, r"row a: .*loss\.l2g"),
        ({"rows": {"a": {"train": {"data.clip_length": 8}}}}, "row a: 4 of the 4 videos cannot be"),
        ({"rows": {"a": {"train": {"loss.l2g": "much"}}}}, r"row a: .*loss\.l2g"),
        ({"rows": {"a": {"train": {"run.seed": 1}}}}, "list seeds"),
        ({"rows": {"a": {"train": {"optim.epochs": 1}}}}, r"optim\.epochs follows from steps"),
        ({"grid": {"loss.l2g": []}}, r"grid\.loss\.l2g must be a list of at least 1"),
        ({"grid": {"loss.masked": [1, 1]}}, "label g2g,masked=1"),
        ({"grid": {"loss.l2g": [1, 2]}}, "row g2g: .*by the row and by the grid"),
    ],
)
def test_training_that_cannot_be_done_is_refused_before_the_first_run(
    tmp_path, sweep, capsys, changes, words
):
    out = tmp_path / "out"
    assert re.search(words, refused(capsys, "sweep", sweep(**changes), "--out", out))
    assert not out.exists()


def test_other_bad_input_is_refused_in_one_line(tmp_path, file, sweep, capsys):
    def line(*arguments):
        return refused(capsys, *arguments)

    assert "no experiment 'tabel2'" in line("evaluate", "suite", "tabel2")
    assert "jobs is 0" in line("evaluate", "suite", file(), "--jobs", 0)
    out = ["--out", tmp_path / "out"]
    assert "--device cpu" in line("evaluate", "suite", file(), "--devices", "cpu,gpux", *out)
    words = "no row colour; the rows are color, nano, peer"
    assert words in line("evaluate", "suite", file(), "--rows", "colour")
    assert "seeds[0] must be a whole number" in line("sweep", sweep(), "--seeds", "one")
    assert "the row g2g sets" in line("sweep", sweep(), "--loss.l2g", 1)
    rows = {"a": {"train": 3}}
    assert "row a: train must be keys" in line("sweep", sweep(rows=rows), "--loss.l2g", 1)
    broken = tmp_path / "broken.yaml"
    for text, words in (
        ("rows: {a: {weights: color}, a: {weights: color}}", "the key 'a' is there twice"),
        ("rows: [", "cannot be used"),
        ("- 1", "must hold keys"),
        ("base: tiny\ngrid: {[1]: 2}", "is no name"),
    ):
        broken.write_text(text)
        assert words in line("sweep", broken)


# Processes.


def test_gpus_of_other_processes_are_counted_and_not_touched(monkeypatch):
    """A tensor on each would keep memory there, and no process could take one that is exclusive."""
    tried = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(runner, "choose_device", tried.append)
    assert choose_devices("cuda:0,cuda:1,cuda", jobs=3) == ["cuda:0", "cuda:1", "cuda"]
    assert choose_devices(None, jobs=2) == ["cuda:0", "cuda:1"]
    assert tried == []
    with pytest.raises(ConfigError, match="no cuda:2 here, but 2 GPUs"):
        choose_devices("cuda:1,cuda:2", jobs=2)
    choose_devices("cpu,mps", jobs=2)
    choose_devices("cuda:0,cuda:1", jobs=1)
    assert tried == ["cpu", "mps", "cuda:0", "cuda:1"]


@pytest.mark.slow
def test_processes_share_rows_and_one_that_is_killed_costs_its_row_only(tmp_path, data, capsys):
    content = runs(data)
    content["rows"] |= {
        f"r{number}": {"weights": "color", "sequences": None} for number in range(3)
    }
    (tmp_path / "file.yaml").write_text(json.dumps(content))
    command = ["sweep", tmp_path / "file.yaml", "--out"]
    assert run(*command, tmp_path / "one") == 0
    out = tmp_path / "two"

    def kill_one() -> None:
        """The process of the run that begins first."""
        while not (begun := [log for log in out.glob("worker_*") if "step 0" in log.read_text()]):
            time.sleep(0.005)
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        for child in children:
            if os.path.realpath(f"/proc/{child}/fd/1") == os.path.realpath(begun[0]):
                os.kill(int(child), signal.SIGKILL)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    status = run(*command, out, "--jobs", 2)
    thread.join()
    shown = " ".join(capsys.readouterr().out.split())
    assert status == 1
    assert len(re.findall(r"seed_\d: failed: its process ended without a word", shown)) == 1
    assert run(*command, out, "--jobs", 2) == 0
    assert table_of(out) == [
        json.loads(json.dumps(row).replace("/one/", "/two/")) for row in table_of(tmp_path / "one")
    ]


@pytest.mark.slow
def test_what_was_killed_goes_on_and_ends_as_if_nothing_had_been(tmp_path, data):
    content = runs(data) | {"seeds": [0], "steps": 8}
    content["rows"]["last"] = {"weights": NANO, "sequences": None, "layer": 1}
    (tmp_path / "file.yaml").write_text(json.dumps(content))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("sweep", tmp_path / "file.yaml", "--out", whole) == 0
    command = [sys.executable, "-m", "ino", "sweep", tmp_path / "file.yaml", "--out", killed]

    def kill_when(is_time) -> None:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not is_time() and process.poll() is None:
            assert time.monotonic() < deadline, "what should be there did not appear"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()

    kill_when(lambda: list_checkpoints(killed / "all/seed_0"))
    first = killed / "g2g/seed_0/davis_48_student/done.json"
    finished, noted = first.stat().st_mtime_ns, killed / "last/seed_0/finished.txt"
    kill_when(lambda: noted.is_file() and noted.read_text())
    mask = killed / "last/seed_0/predictions/s0/00003.png"
    written = mask.stat().st_mtime_ns
    assert run("sweep", tmp_path / "file.yaml", "--out", killed) == 0
    assert first.stat().st_mtime_ns == finished
    assert mask.stat().st_mtime_ns == written
    assert (killed / "table.json").read_text() == (whole / "table.json").read_text()


def test_an_experiment_file_names_no_command(file):
    pipe = {"data.root": "pipe:touch x"}
    trained = {"about": "trained", "train": pipe}
    for changes in (
        {"train": pipe},
        {"rows": {"a": trained}},
        {"train": {"data": {"root": ["pipe:x"]}}},
    ):
        with pytest.raises(ConfigError, match=r"file\.yaml has a command in data\.root"):
            read_experiment(str(file(**changes)))
    with pytest.raises(ConfigError, match=r"file\.yaml has a module in loss\.extra"):
        read_experiment(str(file(train={"loss": {"extra": "mine:spread"}})))
    rows = {"a": {"about": "trained", "train": {"optim.lr": 0.1}}}
    grid = {"data.root": [["a.mp4"], ["pipe:touch x"]]}
    with pytest.raises(ConfigError, match=r"file\.yaml has a command in data\.root"):
        read_experiment(str(file(rows=rows, grid=grid)))
