"""`ino evaluate suite`: one table from one file, each video once, whatever happens in between."""

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from command import refused, run
from dense_layouts import write_official_list, write_part_video, write_pose_video
from ino.cli import _devices
from ino.data.label_maps import read_labels
from ino.demo.synthetic import generate_clip, write_davis_layout, write_videos
from ino.errors import ConfigError, InoError
from ino.experiments import suite as suites
from ino.experiments.rows import remarks_on
from ino.experiments.suite_file import FOLDER, read_suite, suite_names
from ino.experiments.suite_plan import plan_suite
from ino.models import backbone as devices
from ino.models.load import load_backbone
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Tracker
from ino.tasks.davis import evaluate_davis
from ino.tasks.results import sized_protocol
from ino.train.loop import train
from processes import held_elsewhere
from synthetic_ytvos import write_ytvos_layout
from tiny_run import tiny_config

NANO = "random:vit_nano/8"


@pytest.fixture(scope="module")
def davis(tmp_path_factory) -> Path:
    """Three sequences of five frames."""
    root = tmp_path_factory.mktemp("suite") / "davis"
    sizes = {"height": 48, "width": 64, "num_frames": 5}
    write_davis_layout({f"s{seed}": generate_clip(seed, **sizes) for seed in range(3)}, root)
    return root


def write_run(videos: Path, *, out: Path) -> None:
    clips = {f"{seed}": generate_clip(seed, num_frames=6, height=48, width=64) for seed in range(4)}
    write_videos(clips, videos)
    train(tiny_config(videos), out=out)


def content(davis: Path, **changes) -> dict:
    """Two rows that run and one whose file is not there."""
    return {
        "title": "three rows",
        "roots": {"davis": str(davis)},
        "defaults": {"short_side": 48, "layer": 1},
        "rows": {
            "color": {"weights": "color", "about": "raw colour", "published": {"J&F": 30.0}},
            "nano": {"weights": NANO, "seed": 3, "set": {"topk": 3}},
            "peer": {"file": "crw", "protocol": "crw", "published": {"J&F": 67.6, "F": 70.2}},
        },
    } | changes


@pytest.fixture
def file(tmp_path, davis):
    def write(**changes) -> Path:
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(content(davis, **changes), sort_keys=False))
        return path

    return write


@pytest.fixture
def performed(monkeypatch):
    """The tasks that were done, as (row, video or "scores")."""
    done, original = [], suites.Worker.perform

    def perform(self, task):
        done.append((task.row.label, task.what))
        return original(self, task)

    monkeypatch.setattr(suites.Worker, "perform", perform)
    return done


ALL = [(row, what) for row in ("color", "nano") for what in ("s0", "s1", "s2", "scores")]


def test_one_table_of_all_rows_and_a_second_run_does_nothing_again(
    tmp_path, file, davis, capsys, performed
):
    out = tmp_path / "out"
    assert run("evaluate", "suite", file(), "--out", out) == 0
    printed = capsys.readouterr().out
    assert performed == ALL
    color, nano, peer = json.loads((out / "table.json").read_text())["rows"]
    protocol = sized_protocol("ino-davis", short_side=48, layer=1, overrides={"topk": 3})
    tracker = Tracker(load_backbone(NANO, seed=3), protocol=protocol)
    alone = evaluate_davis(davis, out=tmp_path / "alone", tracker=tracker)
    assert nano["scores"]["J&F"]["measured"] == 100 * alone.jf_mean
    assert nano["scores"]["J recall"]["measured"] == 100 * alone.j_recall
    for name in ("s0", "s1", "s2"):
        for path in (tmp_path / "alone/predictions" / name).iterdir():
            ours = read_labels(out / "nano/predictions" / name / path.name)
            np.testing.assert_array_equal(ours, read_labels(path))
    found = color["scores"]["J&F"]
    assert found["difference"] == found["measured"] - 30
    cell = f"{found['measured']:.1f} (30.0, {found['difference']:+.1f})"
    assert cell in printed and cell in (out / "table.md").read_text()
    assert peer["scores"]["F"] == {"measured": None, "published": 70.2, "difference": None}
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
    table = {
        row["label"]: row["remarks"] for row in json.loads((out / "table.json").read_text())["rows"]
    }
    assert [len(table[label]) for label in "abcd"] == [0, 2, 3, 0]


def test_remarks_name_what_is_not_as_named():
    assert remarks_on(get_protocol("crw"), sequences=None) == ()
    (remark,) = remarks_on(get_protocol("crw"), sequences=list("abcde"))
    assert remark == "measured on 5 sequences only (a, b, c and 2 more)"
    protocol = get_protocol("ino-davis", short_side=None)
    (remark,) = remarks_on(protocol, sequences=None)
    assert remark == "measured by ino-davis with short_side none in place of 480"


def test_labels_stay_whole_and_endings_are_told_once(tmp_path, davis, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["--davis", davis, "--weights-dir", tmp_path, "--out", tmp_path / "out"]
    assert run("evaluate", "suite", "table2", *arguments) == 0
    shown = capsys.readouterr().out
    assert " contcorr-trackingnet " in shown and " timecycle-rn18 " in shown
    assert shown.count(" TrackingNet ") == 2 and shown.count(" (89.0) ") == 1
    assert all(len(line) <= 80 for line in shown.split("\ntimecycle-rn18: ")[0].splitlines())
    assert shown.count(".safetensors") == 1
    assert f"crw-kinetics: absent: crw_kinetics.pth is expected in {tmp_path}\n" in shown
    assert (tmp_path / "out/table.md").read_text().count(".safetensors") == 1
    assert run("evaluate", "suite", "table2", *arguments, "--list") == 0
    assert capsys.readouterr().out.count(".safetensors") == 1


def test_a_suite_that_was_stopped_goes_on_with_the_next_video(
    tmp_path, file, monkeypatch, performed
):
    out = tmp_path / "out"
    kept = suites.Worker.perform

    def stopped(self, task):
        if len(performed) == 5:
            raise KeyboardInterrupt
        return kept(self, task)

    monkeypatch.setattr(suites.Worker, "perform", stopped)
    assert run("evaluate", "suite", file(), "--out", out) == 130
    assert json.loads((out / "table.json").read_text())["rows"][0]["state"].startswith("done")
    monkeypatch.setattr(suites.Worker, "perform", kept)
    assert run("evaluate", "suite", file(), "--out", out) == 0
    assert performed == ALL


def test_a_video_that_lost_masks_is_carried_again(tmp_path, file, performed):
    out = tmp_path / "out"
    assert run("evaluate", "suite", file(), "--out", out, "--rows", "color") == 0
    before = (out / "color/scores.json").read_text()
    (out / "color/done.json").write_text('{"scores": {')
    (out / "color/predictions/s1/00002.png").unlink()
    performed.clear()
    assert run("evaluate", "suite", file(), "--out", out, "--rows", "color") == 0
    assert performed == [("color", "s1"), ("color", "scores")]
    assert (out / "color/scores.json").read_text() == before


def test_a_row_that_fails_is_named_and_the_others_go_on(tmp_path, file, davis, capsys, monkeypatch):
    out = tmp_path / "out"
    original = suites.make_tracker

    def broken(row, protocol, *, device):
        if row.weights == "color":
            raise RuntimeError("no luck today")
        return original(row, protocol, device=device)

    monkeypatch.setattr(suites, "make_tracker", broken)
    assert run("evaluate", "suite", file(), "--out", out) == 1
    printed = capsys.readouterr().out
    assert "color: failed: s0: RuntimeError: no luck today" in printed
    assert "Traceback" in (out / "color.error.txt").read_text()
    _, nano, _ = json.loads((out / "table.json").read_text())["rows"]
    assert nano["state"].startswith("done, J&F")
    monkeypatch.setattr(suites, "make_tracker", original)
    assert run("evaluate", "suite", file(), "--out", out) == 0
    assert not list(out.glob("*.error.txt"))


def test_a_broken_frame_fails_its_rows_only(tmp_path, davis, file, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(davis, copy)
    (copy / "JPEGImages/480p/s1/00003.jpg").write_bytes(b"no image")
    rows = {
        "whole": {"weights": "color", "sequences": ["s0", "s2"]},
        "broken": {"weights": "color"},
    }
    suite = file(rows=rows, roots={"davis": str(copy)})
    assert run("evaluate", "suite", suite, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert re.search(r"broken: failed: s1: .*00003\.jpg", " ".join(printed.split()))
    assert "whole: failed" not in printed


def test_some_rows_leave_the_others_in_the_table(tmp_path, file, davis, capsys, performed):
    out, weights = tmp_path / "out", tmp_path / "weights"
    weights.mkdir()
    (weights / "gone").mkdir()
    rows = content(davis)["rows"] | {"gone": {"weights": str(weights / "gone")}}
    suite = file(rows=rows)
    assert run("evaluate", "suite", suite, "--out", out, "--rows", "color", "nano") == 0
    (weights / "gone").rmdir()  # other rows need neither their weights nor their data sets
    rows["pose"] = {"weights": "color", "data": "jhmdb", "short_side": None}
    suite = file(rows=rows)
    (out / "nano/done.json").unlink()
    (out / "nano/finished.txt").write_text("s0\ns2\n")
    performed.clear()
    capsys.readouterr()
    assert run("evaluate", "suite", suite, "--out", out, "--rows", "color") == 0
    assert performed == []
    assert "nano" not in capsys.readouterr().out
    table = json.loads((out / "table.json").read_text())["rows"]
    states = {row["label"]: row["state"] for row in table}
    assert list(states) == ["color", "nano", "peer", "gone", "pose"]
    assert states["color"].startswith("done, J&F")
    assert states["nano"] == "2 of 3 videos carried"
    assert states["gone"].startswith("absent: ") and "gone is neither a file" in states["gone"]
    assert states["pose"] == "not started (color)"
    assert "gone is neither" in refused(capsys, "evaluate", "suite", suite, "--out", out)


def test_list_refuses_other_settings_but_needs_no_data_set(tmp_path, file, capsys):
    out = tmp_path / "out"
    assert run("evaluate", "suite", file(), "--out", out, "--rows", "color") == 0
    line = refused(capsys, "evaluate", "suite", file(), "--out", out, "--list", "--short-side", 64)
    assert "radius was 4, but now it is 5" in line
    assert run("evaluate", "suite", file(roots={}), "--out", out, "--list") == 0
    assert "color: done, J&F" in capsys.readouterr().out


def test_list_tells_how_far_each_row_is(tmp_path, file, capsys):
    out = tmp_path / "out"
    assert run("evaluate", "suite", file(), "--out", out, "--list") == 0
    color, nano, peer, endings = capsys.readouterr().out.splitlines()
    assert (color, nano) == ("color: not started (color)", f"nano: not started ({NANO})")
    assert peer.startswith("peer: absent: crw.pth is expected in the folder given by --weights-dir")
    assert "may end with .pt" in endings
    assert not out.exists()
    assert run("evaluate", "suite", file(), "--out", out) == 0
    (out / "nano/done.json").unlink()
    (out / "nano/finished.txt").write_text("s0\ns2\n")
    capsys.readouterr()
    run("evaluate", "suite", file(), "--out", out, "--list")
    color, nano, *_ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"color: done, J&F [\d.]+", color)
    assert nano == "nano: 2 of 3 videos carried"


@pytest.mark.parametrize("name", ["crw.pth", "crw.pth.tar", "crw.safetensors", "crw"])
def test_files_are_found_by_their_name(tmp_path, file, name):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / name).write_bytes(b"weights")
    plan = plan_suite(read_suite(str(file()), {"weights_dir": str(weights)}))
    assert (plan.rows[2].config.weights, plan.rows[2].absent) == (str(weights / name), "")


def test_a_file_that_changed_is_not_taken_for_the_same(tmp_path, file, davis, capsys):
    videos = tmp_path / "videos"
    write_run(videos, out=tmp_path / "weights/ours")
    suite = file(rows={"ours": {"file": "ours", "weights": "color"}})
    options = ["--out", tmp_path / "out", "--weights-dir", tmp_path / "weights"]
    assert run("evaluate", "suite", suite, *options) == 0
    settings = json.loads((tmp_path / "out/ours/settings.json").read_text())
    assert settings["weights"] == str(tmp_path / "weights/ours")
    newest = Path(settings["checkpoint"])
    newest.write_bytes(newest.read_bytes() + b"\0")
    assert "sha256 was" in refused(capsys, "evaluate", "suite", suite, *options)


def test_other_settings_do_not_go_on_in_the_same_folder(tmp_path, file, capsys):
    out = tmp_path / "out"
    assert run("evaluate", "suite", file(), "--out", out, "--rows", "color") == 0
    options = ["--out", out, "--short-side", 64]
    line = refused(capsys, "evaluate", "suite", file(), *options)
    assert "radius was 4, but now it is 5" in line
    line = refused(capsys, "evaluate", "suite", file(), "--out", out, "--sequences", "s0")
    assert "sequences was None, but now it is ['s0']" in line
    assert not (out / "nano").exists()


def test_every_data_set_gives_the_scores_of_its_own_command(tmp_path, davis, file):
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
    small = ["--set", "short_side=48", "radius=4"]
    for label, command, options in (
        ("mine", "ytvos", ["--split", "mine", *small]),
        ("pose", "jhmdb", ["--input-size", 64, "--joint-topk", 3]),
        ("parts", "vip", ["--input-size", 64]),
    ):
        alone = tmp_path / f"alone_{label}"
        root = roots[command]
        assert run("evaluate", command, "--root", root, "--out", alone, *options, *common) == 0
        ours = json.loads((out / label / "scores.json").read_text())
        assert ours == json.loads((alone / "scores.json").read_text())
    rows = {row["label"]: row for row in json.loads((out / "table.json").read_text())["rows"]}
    assert "submission.zip" in rows["valid"]["state"]
    assert (out / "valid/submission.zip").is_file()
    assert list(rows["pose"]["scores"]) == ["PCK@0.1", "PCK@0.2"]
    assert list(rows["parts"]["scores"]) == ["mIoU"]


# ---- the suites that come with ino


@pytest.mark.parametrize("name", suite_names())
def test_named_suites_can_be_listed_and_planned(name, davis, tmp_path, capsys):
    assert run("evaluate", "suite", name, "--list") == 0
    labels = [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    rows = read_suite(name).rows
    assert labels[: len(rows)] == list(rows) and len(labels) <= len(rows) + 1
    write_ytvos_layout({"a": generate_clip(0, num_frames=6, height=48, width=64)}, tmp_path / "y")
    weights = tmp_path / "weights"
    for row in read_suite(name).rows.values():
        if row.file is not None:
            (weights / row.file).mkdir(parents=True)
    roots = {"roots.davis": str(davis), "roots.ytvos": str(tmp_path / "y")}
    plan = plan_suite(read_suite(name, {"weights_dir": str(weights), **roots}), look=True)
    assert not [row.label for row in plan.rows if row.absent and row.config.file]
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# ") and "Published:" in text


def test_published_numbers_are_those_of_the_paper():
    """The mean over J and F of each row of Table 2 and 4, and over four numbers in Table 3."""
    table2, table4 = (read_suite(name).rows for name in ("table2", "table4"))
    assert len(table2) == 16 and len(table4) == 4
    for row in [*table2.values(), *table4.values()]:
        numbers = row.published
        if "J&F" in numbers:
            assert abs(numbers["J&F"] - (numbers["J"] + numbers["F"]) / 2) < 0.11
    assert table2["ino-kinetics"].published == {
        "J&F": 72.5,
        "J": 68.7,
        "J recall": 82.0,
        "F": 76.3,
        "F recall": 89.0,
    }
    assert table4["+aff"].published == table2["ino-charades"].published
    for row in read_suite("table3").rows.values():
        mean, *four = row.published.values()
        assert len(four) == 4 and abs(mean - sum(four) / 4) < 0.18  # MAST's differ by 0.175


def test_a_short_side_under_set_leaves_the_radius_as_it_is(file):
    rows = {
        "by-itself": {"weights": "color", "short_side": 240},
        "under-set": {"weights": "color", "set": {"short_side": 240}},
    }
    plan = plan_suite(read_suite(str(file(rows=rows, defaults={}))))
    found = [(row.protocol.short_side, row.protocol.radius) for row in plan.rows]
    assert found == [(240, 20), (240, 40)]


def test_the_short_side_of_the_command_leaves_square_inputs_alone(tmp_path, file):
    rows = {
        "masks": {},
        "parts": {"data": "vip"},
        "pose": {"data": "jhmdb", "input_size": 64},
        "by-protocol": {"data": "vip", "input_size": 0},
    }
    suite = file(rows=rows, defaults={"weights": "color"})
    plan = plan_suite(read_suite(str(suite), {"rows.short_side": 240}), look=True)
    found = {row.label: (row.protocol.short_side, row.protocol.radius) for row in plan.rows}
    assert found["masks"] == found["by-protocol"] == (240, 20)
    assert found["parts"] == found["pose"] == (480, 40)


def test_the_file_in_the_manual_can_be_used(tmp_path, davis):
    manual = Path(__file__).parent.parent / "docs" / "suites.md"
    (text,) = re.findall(r"```yaml\n(.*?)```", manual.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "run").mkdir()
    (tmp_path / "suite.yaml").write_text(text.replace("runs/mine", str(tmp_path / "run")))
    changes = {"roots.davis": str(davis), "weights_dir": str(tmp_path), "rows.sequences": ["s0"]}
    plan = plan_suite(read_suite(str(tmp_path / "suite.yaml"), changes))
    assert [len(row.videos) for row in plan.rows] == [1, 1, 1, 1, 0]
    radii = {row.label: row.protocol.radius for row in plan.rows}
    assert (radii["mine"], radii["mine-240"], plan.row("mine-240").protocol.topk) == (40, 20, 10)


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rowz": {}}, "unknown key rowz"),
        ({"rows": {}}, "has no rows"),
        ({"rows": {"a": {"weight": "color"}}}, r"unknown key rows\.a\.weight"),
        ({"defaults": {"layr": 3}}, r"unknown key defaults\.layr"),
        ({"defaults": {"published": {"J&F": 1}}}, "under defaults"),
        ({"rows": {"a": {"weights": "color", "protocol": "inno"}}}, "row a: unknown protocol"),
        ({"rows": {"a": {"weights": "color", "set": {"topkk": 3}}}}, "row a: .*'topkk'"),
        ({"rows": {"a": {"weights": "color", "set": {"layer": 3}}}}, "layer is given twice"),
        ({"rows": {"a": {"weights": "color", "data": "davos"}}}, "row a of .*data"),
        ({"rows": {"a": {"weights": "color", "seed": "many"}}}, "row a of .*seed"),
        ({"rows": {"a": {"weights": "color", "year": 2018}}}, "DAVIS has 2016 and 2017"),
        ({"rows": {"a": {"weights": "color", "input_size": 9}}}, "no meaning for davis"),
        ({"rows": {"a": {"weights": "color", "published": {"JF": 1}}}}, "published names JF"),
        ({"rows": {"a": {"weights": "color", "published": {"J": "x"}}}}, "row a of .*published"),
        ({"rows": {"a": {"weights": "colour"}}}, "row a: colour is neither"),
        ({"rows": {"a": {"weights": "timm:resnet50@no.pth"}}}, r"row a: no\.pth is neither"),
        ({"rows": {"a": {}}}, "row a: it names no weights"),
        ({"rows": {"a/b": {"weights": "color"}}}, "cannot name a folder"),
        ({"rows": {"a": {"weights": "color"}, "A": {"weights": "color"}}}, "name one folder"),
        (
            {"rows": {"a": {"weights": "color", "data": "vip", "short_side": None}}},
            "row a: no root of vip is given; pass --vip ROOT",
        ),
        ({"rows": {"a": {"weights": "color", "data": "vip"}}}, "row a: short_side has no meaning"),
        (
            {"rows": {"a": {"weights": "color", "set": {"short_side": 64}}}},
            "row a: short_side is given twice",
        ),
        ({"rows": {"a": {"weights": "color", "set": {"name": "x"}}}}, "row a: .*no 'name'"),
        (
            {"rows": {"a": {"weights": "color", "set": {1: 2}}}},
            "row a .*has the key 1, which is no name",
        ),
        ({"rows": {"a": {"weights": "color", "joint_topk": 3}}}, "joint_topk has no meaning"),
        (
            {"rows": {"a": {"weights": "color", "data": "ytvos", "year": 2016}}},
            "year has no meaning for ytvos",
        ),
        (
            {"rows": {"a": {"weights": "color", "data": "ytvos", "resolution": "1080p"}}},
            "resolution has no meaning for ytvos",
        ),
        ({"roots": {}}, "row color: no root of davis is given; pass --davis ROOT"),
        ({"roots": {"davis": "nowhere"}}, "nowhere"),
        ({"roots": {"davos": "x"}}, "a root for davos"),
        ({"roots": 3}, "roots"),
        ({"weights_dir": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_the_first_row(
    tmp_path, file, capsys, changes, words
):
    out = tmp_path / "out"
    assert re.search(words, refused(capsys, "evaluate", "suite", file(**changes), "--out", out))
    assert not out.exists()


def test_other_bad_input_is_refused_in_one_line(tmp_path, file, capsys):
    def line(*arguments):
        return refused(capsys, "evaluate", "suite", *arguments)

    assert "no suite 'tabel2'" in line("tabel2")
    assert "for --jobs. Must be > 0" in line(file(), "--jobs", 0)
    assert "--device cpu" in line(file(), "--devices", "cpu,gpux", "--out", tmp_path / "out")
    assert "no row colour; it has color, nano, peer" in line(file(), "--rows", "colour")
    broken = tmp_path / "broken.yaml"
    broken.write_text("rows: {a: {weights: color}, a: {weights: color}}\n")
    assert "has 'a' twice: give each label" in line(broken)
    broken.write_text("rows: [")
    assert "not YAML" in line(broken)
    broken.write_text("- 1")
    assert "must hold keys" in line(broken)
    assert "suite" in refused(capsys, "evaluate", "--suite")


# ---- processes


def test_two_suites_do_not_write_into_one_folder(tmp_path, file, capsys):
    out = tmp_path / "out"
    with held_elsewhere(out):
        line = refused(capsys, "evaluate", "suite", file(), "--out", out)
        assert "another ino evaluate suite is writing into" in line
        assert run("evaluate", "suite", file(), "--out", out, "--list") == 0
    assert not (out / "color").exists()


def test_gpus_of_other_processes_are_counted_and_not_touched(monkeypatch, caplog):
    """A tensor on each would keep memory there, and no process could take one that is exclusive."""
    tried = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "choose_device", tried.append)
    monkeypatch.setattr(logging.getLogger("ino"), "propagate", True)
    assert _devices("cuda:0,cuda:1,cuda", 3) == ["cuda:0", "cuda:1", "cuda"]
    assert _devices(None, 2) == ["cuda:0", "cuda:1"]
    assert tried == []
    with pytest.raises(ConfigError, match="'cuda:2' cannot be used here, which has 2 CUDA"):
        _devices("cuda:1,cuda:2", 2)
    _devices("cpu,mps", 2)
    assert tried == ["cpu", "mps"]
    assert not caplog.records
    assert _devices("cuda:0,cuda:1", 1) == ["cuda:0", "cuda:1"]
    assert tried[2:] == ["cuda:0", "cuda:1"]
    assert "names 2, but --jobs is 1: only cuda:0 is used" in caplog.text


@pytest.mark.slow
def test_videos_shared_by_processes_give_the_same_table(tmp_path, file):
    tables = []
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        options = ["--out", out, "--jobs", jobs, "--devices", "cpu"]
        assert run("evaluate", "suite", file(), *options) == 0
        tables.append((out / "table.json").read_text())
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_process_that_is_killed_fails_its_row_only(tmp_path, file, capsys):
    out = tmp_path / "out"
    rows = {f"r{number}": {"weights": "color"} for number in range(4)}
    killed = []

    def kill_one() -> None:
        while not killed:
            children = multiprocessing.active_children()
            if len(children) == 2 and any(path.read_text() for path in out.glob("r*/finished.txt")):
                killed.append(children[0].pid)
                os.kill(children[0].pid, signal.SIGKILL)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    options = ["--out", out, "--jobs", 2, "--devices", "cpu"]
    assert run("evaluate", "suite", file(rows=rows), *options) == 1
    thread.join()
    shown = " ".join(capsys.readouterr().out.split())
    failed = re.findall(r"(r\d): failed: \S+: its process ended with status -9; see \S+log", shown)
    assert len(failed) == 1
    states = [row["state"] for row in json.loads((out / "table.json").read_text())["rows"]]
    assert sum(state.startswith("done") for state in states) == 3
    assert run("evaluate", "suite", file(rows=rows), *options) == 0


@pytest.mark.slow
def test_six_backbones_go_on_after_a_kill_and_end_as_if_nothing_had_been(tmp_path, file, davis):
    """Raw colour, an untrained network, a run of ours, and three architectures of timm."""
    names = ["random:resnet18/8", "random:convnext_atto/8", "random:vit_tiny_patch16_224"]
    try:
        load_backbone(names[0])
    except InoError:
        pytest.skip("needs the models of timm behind load_backbone")
    write_run(tmp_path / "videos", out=tmp_path / "run")
    weights = ["color", NANO, str(tmp_path / "run"), *names]
    rows = {f"row{number}": {"weights": one} for number, one in enumerate(weights)}
    suite = file(rows=rows, defaults={"short_side": 48, "set": {"layer": None}})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("evaluate", "suite", suite, "--out", whole, "--devices", "cpu") == 0
    arguments = ["evaluate", "suite", str(suite), "--out", str(killed), "--devices", "cpu"]
    command = [sys.executable, "-m", "ino", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    noted = killed / "row2/finished.txt"
    deadline = time.monotonic() + 240
    while process.poll() is None and not (noted.is_file() and noted.read_text()):
        assert time.monotonic() < deadline, "no video of the third row was finished"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = (killed / "row0/done.json").stat().st_mtime_ns
    mask = killed / "row2/predictions/s0/00003.png"
    written = mask.stat().st_mtime_ns
    assert not (killed / "row5/done.json").exists()
    assert run(*arguments) == 0
    assert (killed / "row0/done.json").stat().st_mtime_ns == first
    assert mask.stat().st_mtime_ns == written
    assert (killed / "table.json").read_text() == (whole / "table.json").read_text()
    table = json.loads((whole / "table.json").read_text())["rows"]
    scores = [row["scores"]["J&F"]["measured"] for row in table]
    assert len(set(scores)) == 6, "two backbones gave the same masks"
