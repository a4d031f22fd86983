"""The command as a user meets it: options, results on disk, one line and status 2 for bad input."""

import csv
import dataclasses
import io
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ino.progress
from command import refused, run
from data.video_files import cut, write_sound, write_video
from ino import cli
from ino.data.label_maps import read_labels, write_labels
from ino.data.video import VideoWriter, read_frames, read_info, video_name
from ino.demo.synthetic import generate_clip, write_davis_layout
from ino.models.load import DEFAULT
from ino.progress import progress
from ino.propagate.protocols import PROTOCOLS
from processes import command_apart, held_elsewhere
from synthetic_ytvos import write_ytvos_layout

OPTIONS = Path(__file__).parent / "cli_options.txt"
FAST = ["--weights", "color", "--device", "cpu", "--set", "short_side=none"]


@pytest.fixture(scope="module")
def clip():
    return generate_clip(5, num_frames=6, height=48, width=64, num_objects=2)


@pytest.fixture
def video(tmp_path, clip):
    path = tmp_path / "video.mp4"
    with VideoWriter(path, fps=8.0) as writer:
        for frame in clip.frames:
            writer.write(frame)
    return path


@pytest.fixture
def mask(tmp_path, clip):
    path = tmp_path / "mask.png"
    write_labels(path, clip.labels[0])
    return path


@pytest.fixture
def davis(tmp_path, clip):
    write_davis_layout({"one": clip}, tmp_path / "davis")
    return tmp_path / "davis"


def test_segment_in_a_quality(tmp_path, video, mask, capsys):
    options = {"none": [], "default": ["--quality", "default"], "fast": ["--quality", "fast"]}
    for name, chosen in options.items():
        small = ["--set", "short_side=64", "--no-overlay", "--out", tmp_path / name]
        assert run("segment", video, "--mask", mask, *small, *chosen) == 0
    none, default, fast = (
        json.loads((tmp_path / name / "settings.json").read_text()) for name in options
    )
    assert none == default and default["quality"] == "default"
    assert default["protocol"]["name"] == "ino-default"
    assert (fast["protocol"]["name"], fast["quality"]) == ("ino-fast", "fast")
    for path in (tmp_path / "none" / "masks").iterdir():
        assert path.read_bytes() == (tmp_path / "default" / "masks" / path.name).read_bytes()
    both = ["--quality", "fast", "--protocol", "ino-near", "--out", tmp_path / "both"]
    message = refused(capsys, "segment", video, "--mask", mask, *both)
    assert "both --protocol ino-near and --quality fast are given" in message
    assert not (tmp_path / "both").exists()


def test_segment_writes_masks_overlay_and_settings(tmp_path, video, mask, clip):
    out = tmp_path / "out"
    assert run("segment", video, "--mask", mask, "--out", out, *FAST) == 0
    written = sorted((out / "masks").iterdir())
    assert [path.name for path in written] == [f"{index:05d}.png" for index in range(6)]
    np.testing.assert_array_equal(read_labels(written[0]), clip.labels[0])
    assert set(np.unique(read_labels(written[5]))) <= {0, 1, 2}
    assert len(list(read_frames(out / "overlay.mp4"))) == 6
    settings = json.loads((out / "settings.json").read_text())
    assert settings["weights"] == "color"
    assert settings["protocol"]["name"] == "ino-davis"
    assert settings["protocol"]["short_side"] is None
    assert settings["masks"] == {"0": str(mask)}
    given = ("resize_mask", "correct", "both_ways", "check_every")
    assert [settings[name] for name in given] == [False, False, False, 0]


def test_settings_say_which_masks_were_given_and_how_they_were_used(tmp_path, video, clip):
    for number in (0, 3):
        write_labels(tmp_path / f"{number}.png", clip.labels[number][::2])
    masks = ["--mask", tmp_path / "0.png", f"3={tmp_path / '3.png'}", "--resize-mask", *FAST]

    def settings(name, *options):
        assert run("segment", video, *masks, "--out", tmp_path / name, *options) == 0
        return json.loads((tmp_path / name / "settings.json").read_text())

    one = settings("one", "--correct", "--check-every", 2)
    assert one["masks"] == {"0": str(tmp_path / "0.png"), "3": str(tmp_path / "3.png")}
    given = ("resize_mask", "correct", "both_ways", "check_every")
    assert [one[name] for name in given] == [True, True, False, 2]
    other = settings("other", "--both-ways")
    assert [other[name] for name in given] == [True, False, True, 0]


def test_an_object_enters_later(tmp_path, video, clip):
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    write_labels(first, np.where(clip.labels[0] == 1, 1, 0).astype(np.uint8))
    write_labels(second, np.where(clip.labels[3] == 2, 2, 0).astype(np.uint8))
    out = tmp_path / "out"
    assert run("segment", video, "--mask", first, f"3={second}", "--out", out, *FAST) == 0
    seen = [set(np.unique(read_labels(out / f"masks/{index:05d}.png"))) for index in range(6)]
    assert all(2 not in ids for ids in seen[:3])
    assert all(2 in ids for ids in seen[3:])


def test_masks_may_be_a_folder_named_by_frames(tmp_path, video, clip):
    folder = tmp_path / "given"
    folder.mkdir()
    write_labels(folder / "00002.png", clip.labels[2])
    out = tmp_path / "out"
    assert run("segment", video, "--mask", folder, "--out", out, *FAST, "--no_overlay") == 0
    np.testing.assert_array_equal(read_labels(out / "masks/00002.png"), clip.labels[2])
    assert not (out / "overlay.mp4").exists()


def test_a_pattern_of_images_is_called_as_its_folder(tmp_path, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_davis_layout({"one": clip, "two": clip}, tmp_path / "davis")
    images, masks = Path("davis/JPEGImages/480p"), Path("davis/Annotations/480p")
    for name in ("one", "two"):
        mask = ["--mask", masks / name / "00000.png", *FAST, "--no_overlay"]
        assert run("segment", images / name / "%05d.jpg", *mask) == 0
    assert sorted(path.name for path in Path("segments").iterdir()) == ["one", "two"]
    monkeypatch.chdir(images / "one")
    assert video_name(Path("%05d.jpg")) == video_name(Path()) == "one"


@pytest.mark.parametrize(("field", "option"), [([], []), (["data_size=[40,72]"], ["40x72"])])
def test_evaluate_and_score_agree(field, option, tmp_path, davis, capsys):
    out = tmp_path / "out"
    assert run("evaluate", "davis", "--root", davis, "--out", out, *FAST, *field) == 0
    assert "ino-davis" in capsys.readouterr().out
    again = tmp_path / "again"
    size = ["--data-size", *option] if option else []
    assert run("score", out / "predictions", "--root", davis, "--out", again, *size) == 0
    assert (out / "global_results-val.csv").read_text() == (
        again / "global_results-val.csv"
    ).read_text()
    scores = json.loads((out / "scores.json").read_text())
    assert 0 < scores["global"]["J&F-Mean"] < 1
    assert scores["protocol"]["topk"] == 5


def test_train_by_a_recipe_file_with_overrides(tmp_path, video, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {
        "model": {"arch": "vit_nano", "out_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8},
        "data": {"frame_step": 1, "clips_per_video": 2, "batch_size": 2, "num_workers": 0},
        "views": {"global_size": 32, "local_size": 16, "num_local": 1},
        "run": {"accelerator": "cpu"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    overrides = ["--data.root", video, "--optim.epochs", 1, "--variant", "released"]
    assert run("train", "mine.yaml", *overrides) == 0
    written = yaml.safe_load((tmp_path / "runs/mine/config.yaml").read_text())
    assert written["optim"]["epochs"] == 1
    assert written["model"]["arch"] == "vit_nano"
    assert written["loss"]["affinity_on"] == "logits"
    backbone = ["--weights", tmp_path / "runs/mine", "--set", "short_side=none"]
    png = tmp_path / "m.png"
    write_labels(png, np.eye(48, 64, dtype=np.uint8))
    assert run("segment", video, "--mask", png, "--out", tmp_path / "o", *backbone) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such|not exist|missing|there is no"),
        (b"", "empty|zero|0 bytes"),
        (b"not a video at all" * 100, "not a video|cannot be read|no video"),
        ("audio", "no video|audio|holds no"),
    ],
)
def test_videos_that_are_none(tmp_path, capsys, mask, content, words):
    path = tmp_path / "broken.mp4"
    if content == "audio":
        write_sound(path)
    elif content is not None:
        path.write_bytes(content)
    out = tmp_path / "out"
    message = refused(capsys, "segment", path, "--mask", mask, "--out", out, *FAST)
    assert re.search(words, message), message
    assert not out.exists()


def test_a_video_cut_in_half_keeps_what_was_done(tmp_path, capsys, clip):
    whole = write_video(tmp_path / "whole.mkv", list(np.repeat(clip.frames, 8, axis=0)))
    path = cut(tmp_path / "cut.mkv", whole)
    png, out = tmp_path / "m.png", tmp_path / "out"
    write_labels(png, clip.labels[0])
    message = refused(capsys, "segment", path, "--mask", png, "--out", out, *FAST)
    written = sorted(p.name for p in (out / "masks").iterdir())
    assert f"the masks of {len(written)} frames are in" in message
    assert 0 < len(written) < 48
    assert len(list(read_frames(out / "overlay.mp4"))) == len(written)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.ones((24, 32), np.uint8), "24x32 but the frames are 48x64.*--resize-mask"),
        (np.zeros((48, 64), np.uint8), "no object"),
        (np.full((48, 64, 3), (7, 99, 200), np.uint8), "no black or transparent background"),
        (np.arange(48 * 64, dtype=np.uint16).reshape(48, 64), "254"),
    ],
    ids=["size", "empty", "rgb", "many"],
)
def test_masks_that_do_not_fit(tmp_path, capsys, video, pixels, words):
    path, out = tmp_path / "bad.png", tmp_path / "out"
    if pixels.ndim == 2 and pixels.dtype == np.uint8:
        write_labels(path, pixels)
    else:
        cv2.imwrite(str(path), pixels)
    segment = ["segment", video, "--mask", path, "--out", out, *FAST]
    message = refused(capsys, *segment)
    assert re.search(words, message), message
    assert not out.exists()
    if pixels.shape == (24, 32):
        assert run(*segment, "--resize-mask") == 0
        assert read_labels(out / "masks/00000.png").shape == (48, 64)


def test_what_is_refused_before_the_first_frame_leaves_no_bar(tmp_path, capsys, video, mask, clip):
    write_labels(tmp_path / "small.png", clip.labels[0][:20, :20])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/keep").touch()
    ytvos = tmp_path / "ytvos"
    write_ytvos_layout({"a": clip}, ytvos)
    for arguments in (
        ["segment", video, "--mask", tmp_path / "small.png", "--out", tmp_path / "o", *FAST],
        ["segment", video, "--mask", f"99={mask}", "--out", tmp_path / "o", *FAST],
        ["segment", video, "--mask", mask, "--out", tmp_path / "out", *FAST],
        ["check", tmp_path / "nothere.zip", "--root", ytvos],
    ):
        assert run(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("ino: ")
    assert not (tmp_path / "o").exists()
    mask = ["--mask", mask, "--out", tmp_path / "good", *FAST]
    assert run("segment", video, *mask) == 0
    shown = capsys.readouterr()
    assert f"6 masks in {tmp_path / 'good' / 'masks'}\n" in shown.out
    assert not shown.err  # quicker than the first line of progress


def test_two_masks_for_one_frame(tmp_path, capsys, video, mask):
    masks = ["--mask", mask, f"0={mask}", "--out", tmp_path / "out"]
    assert "both for frame 0" in refused(capsys, "segment", video, *masks, *FAST)


def test_an_output_folder_that_holds_something(tmp_path, capsys, video, mask):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    message = refused(capsys, "segment", video, "--mask", mask, "--out", out, *FAST)
    assert "--overwrite" in message
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert run("segment", video, "--mask", mask, "--out", out, "--overwrite", *FAST) == 0
    assert (out / "mine.txt").read_text() == "keep"


def test_two_segmentations_into_one_folder(tmp_path, capsys, video, mask):
    out = tmp_path / "out"
    with held_elsewhere(out):
        for options in ((), ("--overwrite",)):
            message = refused(
                capsys, "segment", video, "--mask", mask, "--out", out, *FAST, *options
            )
            assert "another ino segment is writing into" in message
        assert [path.name for path in out.iterdir()] == [".lock"]
    assert run("segment", video, "--mask", mask, "--out", out, *FAST) == 0


def test_a_disk_that_fills(tmp_path, capsys, video, mask, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr(os, "fsync", no_space)
    message = refused(capsys, "segment", video, "--mask", mask, "--out", out, *FAST)
    assert "No space left on device" in message
    assert [p.name for p in out.rglob("*") if p.is_file()] == [".lock"]


@pytest.mark.parametrize("fault", ["frames", "size", "ids", "sequence"])
def test_predictions_that_do_not_fit(tmp_path, capsys, davis, clip, fault):
    folder = tmp_path / "predictions" / "one"
    folder.mkdir(parents=True)
    for index, labels in enumerate(clip.labels):
        write_labels(folder / f"{index:05d}.png", labels)
    if fault == "frames":
        (folder / "00003.png").unlink()
    elif fault == "size":
        write_labels(folder / "00003.png", clip.labels[0][:24])
    elif fault == "ids":
        write_labels(folder / "00003.png", clip.labels[3] + 5)
    else:
        folder.rename(tmp_path / "predictions" / "other")
    out = tmp_path / "scores"
    message = refused(capsys, "score", tmp_path / "predictions", "--root", davis, "--out", out)
    assert "one" in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("optim:\n  lrr: 1", r"unknown key optim\.lrr"),
        ("optim:\n  lr: high", r"optim\.lr"),
        ("optim:\n  epochs: -1", r"optim\.epochs must be greater than 0, but is -1"),
        ("variant: best", "variant"),
        ("- a list", "must hold sections"),
        ("a: [", "cannot be used"),
    ],
)
def test_recipes_that_are_wrong(tmp_path, capsys, recipe, words):
    path = tmp_path / "wrong.yaml"
    path.write_text(recipe)
    message = refused(capsys, "train", path, "--data.root", tmp_path, "--out", tmp_path / "run")
    assert re.search(words, message), message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", "--data.root", "x", "tiny"],
            "parameter RECIPE requires an argument (ino train --",
        ),
        (["train", "nothing"], "there is no recipe 'nothing'; give one of adapt, demo, "),
        (["train", "tiny"], "--data.root"),
        (["train", "tiny", "--optim.lrr", "3"], "Unknown option: --optim.lrr. Did you mean --opt"),
        (["train", "tiny", "--optim", "{lrr: 3}"], "unknown key optim.lrr; did you mean optim.lr?"),
        (["train", "tiny", "--optim", "{"], "optim must be keys and values, but is '{'"),
        (["train", "tiny", "--data.root", "nowhere"], "nowhere"),
        (["evaluate", "davis", "--root", "nowhere", "--weights", "color"], "nowhere"),
        (["evaluate", "davis", "--root", ".", "--weights", "nothing.pt"], "nothing.pt"),
        (
            ["evaluate", "davis", "--root", ".", "--weights", "color", "--protocol", "x"],
            "ino-davis",
        ),
        (["evaluate", "davis", "--root", ".", "--weights", "color", "--set", "topk=0"], "topk"),
        (
            ["evaluate", "davis", "--root", ".", "--weights", "color", "--set", "topk"],
            "FIELD=VALUE",
        ),
        (
            ["evaluate", "davis", "--root", ".", "--weights", "color", "--device", "x"],
            "--device cpu",
        ),
        (["score", "nowhere", "--root", "."], "ImageSets"),
        (
            ["frobnicate"],
            "there is no command 'frobnicate'; give one of adapt, check, compare,",
        ),
        (["trian"], "there is no command 'trian'; did you mean train (ino --help shows more)"),
        ([], ", sweep, train, web, weights (ino --help shows more)"),
        (
            ["evaluate"],
            "a command is missing; give one of davis, jhmdb, suite, vip, ytvos (ino evaluate -",
        ),
        (["evaluate", "--suite", "table2"], "ino evaluate"),
        (["evaluate", "suite"], "FILE requires an argument (ino evaluate suite --help"),
        (["evaluate", "davis", "--root", "."], "--weights requires an argument (ino eval"),
        (["export", "--out", "x"], "RUN requires an argument (ino export --help shows more)"),
        (["export", "x", "y", "--out", "z"], "ino export does not take 'y' (ino export --help"),
        (["train", "tiny", "--optim.lr", "abc"], "optim.lr must be a number, but is 'abc'"),
        (["train", "tiny", "--optim.lr", "-1"], "optim.lr must be at least 0, but is -1"),
        (["train", "tiny", "--variant", "x"], "variant must be 'paper' or 'released', but is 'x'"),
        (
            ["train", "tiny", "--data.num_workers", "x"],
            "data.num_workers must be a whole number or 'auto'",
        ),
        (["score", "x", "--root"], "--root requires an argument (ino score --help shows"),
        (["score", "x", "--roott", "y"], "an argument. Did you mean --root instead of --roott?"),
        (["segment", "x", "--mask"], "--mask requires at least 1 element. Got 0 (ino seg"),
        (
            ["segment", "x", "--mask", "x", "--check-every", "x"],
            '--check-every: unable to convert "x" into int (',
        ),
        (
            ["segment", "x", "--mask", "x", "--precision", "x"],
            '--precision. Choose from: "fp32", "bf16" (',
        ),
    ],
)
def test_arguments_that_are_wrong(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, *arguments)
    assert words in message, message
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_is_printed_with_what_options_change(tmp_path, capsys, monkeypatch):
    """Values of lists, pairs, switches and sections, by every spelling of an option's name."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("data: {root: [first]}\nviews: {num_local: 3}\n")

    def printed(*options):
        assert run("train", "mine.yaml", *options, "--print-config") == 0
        return yaml.safe_load(capsys.readouterr().out)

    plain = printed()
    assert (plain["data"]["root"], plain["views"]["num_local"]) == (["first"], 3)
    assert (plain["data"]["frame_step"], plain["loss"]["affinity_on"]) == (8, "distributions")
    changed = printed(
        *("--data.root+", "second", "--data.clips-per-video", 7, "--data.visits", "true"),
        *("--views.global_scale", 0.3, 0.9, "--views.local-scale", "[0.1, 0.4]"),
        *("--optim", "{lr: 0.5, epochs: 3}", "--optim.epochs", 4, "--optim.epochs", 5),
    )
    assert changed["data"] == plain["data"] | {
        "root": ["first", "second"],
        "clips_per_video": 7,
        "visits": True,
    }
    assert changed["views"]["global_scale"] == [0.3, 0.9]
    assert changed["views"]["local_scale"] == [0.1, 0.4]
    assert changed["optim"] == plain["optim"] | {"lr": 0.5, "epochs": 5}
    for given in (["a", "[b].mp4"], ["2024"]):
        assert printed("--data.root", *given)["data"]["root"] == given
    assert printed("--data.root", "[a, b]")["data"]["root"] == ["a", "b"]
    old = "--views.colour_on_global"
    assert printed(old, "false")["views"]["color_on_global"] is False
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.yaml"]


def test_the_help_of_a_recipe_shows_its_own_values(capsys):
    def shown(*recipe):
        assert run("train", *recipe, "--help") == 0
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    assert "Classes of the head. [default: 1024]" in shown("tiny")
    assert "Classes of the head. [default: 4096]" in shown()


def test_training_looks_at_its_folder_and_weights_before_the_videos(tmp_path, capsys):
    held = tmp_path / "held"
    held.mkdir()
    (held / "notes.txt").touch()
    (tmp_path / "broken.pt").write_bytes(b"junk")
    broken = ["--init", tmp_path / "broken.pt"]
    fixed = ["train", "tiny", "--run.accelerator", "cpu", "--data.root", tmp_path / "nowhere"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no video")
    assert "held is not empty" in refused(capsys, *fixed, "--out", held, *broken)
    assert "broken.pt" in refused(capsys, *fixed, "--out", tmp_path / "run", *broken)
    assert "nowhere" in refused(capsys, *fixed, "--out", tmp_path / "run")
    fixed[-1] = tmp_path / "notes"
    assert "no video was found" in refused(capsys, *fixed, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_that_does_not_begin_says_only_why(tmp_path):
    command = [sys.executable, "-m", "ino", "train", "tiny", "--run.precision", "bf16-mixed"]
    given = ["--run.accelerator", "cpu", "--data.root", "nowhere", "--out", "run"]
    done = subprocess.run([*command, *given], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout + done.stderr == (
        "ino: nowhere does not exist: give a folder, a video, or a list of videos\n"
    )


def test_a_hostile_checkpoint_is_refused(tmp_path, capsys, video, mask):
    path = tmp_path / "weights.pt"
    torch.save({"format": os.system}, path)
    message = refused(capsys, "segment", video, "--mask", mask, "--weights", path)
    assert "could run code" in message


def test_segment_needs_no_weights(tmp_path, video, mask):
    out = tmp_path / "out"
    assert run("segment", video, "--mask", mask, "--out", out, "--set", "short_side=48") == 0
    assert len(list((out / "masks").iterdir())) == 6
    assert json.loads((out / "settings.json").read_text())["weights"] == "ino_vitt8"


def test_segment_corrects_and_checks(tmp_path, video, clip, capsys):
    masks = {0: clip.labels[0], 3: clip.labels[3]}
    for index, labels in masks.items():
        write_labels(tmp_path / f"{index}.png", labels)
    given = [f"{index}={tmp_path / f'{index}.png'}" for index in masks]
    out = tmp_path / "out"
    options = ["--mask", *given, "--out", out, "--correct", "--check-every", "2", *FAST]
    assert run("segment", video, *options) == 0
    found = [read_labels(out / "masks" / f"{index:05d}.png") for index in range(6)]
    np.testing.assert_array_equal(found[3], clip.labels[3])
    assert (found[2] == 2)[clip.labels[2] == 2].mean() > 0.5
    assert (found[4] == 2)[clip.labels[4] == 2].mean() > 0.5
    survival = json.loads((out / "survival.json").read_text())
    assert sorted(survival) == ["1", "2", "5"]  # between both masks, and every second one later
    assert sorted(survival["5"]) == ["1", "2"]
    assert (out / "overlay.mp4").is_file()


@pytest.mark.parametrize("stated", [6, 5], ids=["true header", "wrong header"])
def test_segment_both_ways(tmp_path, video, clip, monkeypatch, stated):
    write_labels(tmp_path / "mask.png", clip.labels[4])
    info = dataclasses.replace(read_info(video), num_frames=stated)
    monkeypatch.setattr("ino.tasks.segment.read_info", lambda _: info)
    out = tmp_path / "out"
    mask = f"4={tmp_path / 'mask.png'}"
    assert run("segment", video, "--mask", mask, "--both-ways", "--out", out, *FAST) == 0
    names = sorted(path.name for path in (out / "masks").iterdir())
    assert names == [f"{index:05d}.png" for index in range(6)]
    assert read_labels(out / "masks" / "00000.png").any()  # before the mask
    assert len(list(read_frames(out / "overlay.mp4"))) == 6


def test_masks_of_a_video_that_breaks_off_are_kept(tmp_path, clip, mask, capsys):
    (tmp_path / "frames").mkdir()
    for index, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{index}.png")
    (tmp_path / "frames" / "3.png").write_bytes(b"no image")
    out = tmp_path / "out"
    message = refused(capsys, "segment", tmp_path / "frames", "--mask", mask, "--out", out, *FAST)
    assert "3.png cannot be read" in message
    assert f"the masks of 3 frames are in {out / 'masks'}" in message
    assert len(list((out / "masks").iterdir())) == 3
    assert len(list(read_frames(out / "overlay.mp4"))) == 3


def test_all_masks_are_references_whatever_the_older_options_say(tmp_path, video, clip, capsys):
    for index in (0, 4):
        write_labels(tmp_path / f"{index}.png", clip.labels[index])
    masks = ["--mask", tmp_path / "0.png", f"4={tmp_path / '4.png'}"]
    tables = []
    for number, options in enumerate([[], ["--correct"], ["--both-ways"]]):
        out = tmp_path / f"out{number}"
        assert run("segment", video, *masks, "--out", out, *options, *FAST) == 0
        tables.append((out / "frames.csv").read_text())
    assert tables[0] == tables[1] == tables[2]
    rows = list(csv.DictReader(io.StringIO(tables[0])))
    assert [(row["frame"], row["object"]) for row in rows] == [
        (str(frame), str(label)) for frame in range(6) for label in (1, 2)
    ]
    drawn = rows[8]
    assert int(drawn["area"]) == (clip.labels[4] == 1).sum()
    assert (drawn["confidence"], drawn["survival"]) == ("1.0000", "")
    assert all(0 <= float(row["survival"]) <= 1 for row in rows[2:8])
    found = sorted((out / "annotations").iterdir())
    assert [path.name for path in found] == ["00000.png", "00004.png"]
    np.testing.assert_array_equal(read_labels(found[1]), clip.labels[4])
    first = json.loads((out / "next.json").read_text())[0]
    assert first["frame"] in (1, 2, 3, 5)
    shown = capsys.readouterr().out
    assert f"draw one of these frames next: frame {first['frame']} (object " in shown


def test_what_is_lost_is_told(tmp_path, capsys, caplog):
    """The object leaves; propagating back what is left does not recover the reference."""
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "video.mp4", fps=8.0) as writer:
        for index in range(5):
            frame = np.full((64, 96, 3), 60, dtype=np.uint8)
            if index == 0:
                frame[16:48, 16:48] = rng.integers(150, 256, (32, 32, 3))
            writer.write(frame)
    labels = np.zeros((64, 96), dtype=np.uint8)
    labels[16:48, 16:48] = 1
    write_labels(tmp_path / "mask.png", labels)
    options = ["--mask", tmp_path / "mask.png", "--out", tmp_path / "out", "--check-every", "4"]
    assert run("segment", tmp_path / "video.mp4", *options, *FAST) == 0
    assert "object 1 back does not recover its reference mask from 1 of 1 frames" in caplog.text


def test_options_are_frozen():
    """A change of public options shows in the diff of cli_options.txt; write it anew on purpose."""
    assert describe_options() == OPTIONS.read_text(encoding="utf-8")


def describe_options() -> str:
    """Each command with its arguments and the names of each option."""
    lines = ["ino --help -h", "ino --version"]
    for command in commands():
        for argument in arguments_of(command):
            names = argument.names if argument.index is None else [f"<{argument.name}>"]
            lines.append(" ".join(["ino", *command, *names]))
    return "\n".join(sorted(lines)) + "\n"


def arguments_of(command: list[str]) -> list:
    _, apps, _ = cli.build_app(command).parse_commands(command)
    with apps[-1].app_stack(apps):
        return [
            one
            for one in apps[-1].assemble_argument_collection(parse_docstring=True)
            if not one.children
        ]


def commands() -> list[list[str]]:
    """The words of each command: ["train"], ["evaluate", "davis"]."""
    app = cli.build_app()
    first = [name for name in app if not name.startswith("-") and name != "evaluate"]
    second = [name for name in app["evaluate"] if not name.startswith("-")]
    return [*([name] for name in first), *(["evaluate", name] for name in second)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Where Python keeps what it compiles."""
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "tiny", "--help"]], ids=" ".join)
def test_help_is_quick(arguments, compiled):
    """About half a second of processor time; twice as much where all cores are busy."""
    command = [sys.executable, "-m", "ino", *arguments]
    variables = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    seconds = []
    for _ in range(3):  # the first compiles
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "Usage: ino" in done.stdout
    assert min(seconds[1:]) < 1.5


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ino.cli import main\n"
        "assert not main(['segment', '--help']) and not main(['evaluate', 'davis', '--help'])\n"
        "assert not {'numpy', 'torch', 'pydantic'} & set(sys.modules)\n"
        "assert not main(['train', 'tiny', '--help']) and not main(['sweep', '--help'])\n"
        "assert not {'numpy', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_option_is_explained(command, capsys):
    shown = [argument for argument in arguments_of(command) if argument.show]
    assert [argument.name for argument in shown if not argument.parameter.help] == []
    assert run(*command, "--help") == 0
    text = capsys.readouterr().out
    assert not shown or shown[0].parameter.help.split()[0] in text


def test_names_of_the_help_agree_with_the_code(capsys):
    assert run("segment", "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"[default: {DEFAULT}]" in shown
    assert all(name in shown for name in PROTOCOLS)


def test_output_that_nobody_reads_ends_quietly():
    done = subprocess.run(
        f"{sys.executable} -m ino train --help | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_public_names_are_there_and_come_late():
    import ino

    names = [name for name in dir(ino) if not name.startswith("_")]
    assert len(names) == 27
    assert {"InoError", "pretrain", "load_recipe", "list_protocols", "list_weights"} <= {*names}
    assert all(getattr(ino, name).__module__.startswith("ino.") for name in names)
    assert "ino_vitt8" in ino.list_weights() and "ino-near" in ino.list_protocols()
    with pytest.raises(ino.InoError, match="no recipe"):
        ino.load_recipe("nothing")
    assert (Path(ino.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError):
        _ = ino.nothing
    code = "import sys, ino; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_told(capsys):
    assert run("--version") == 0
    assert re.search(r"\d+\.\d+\.\d+", capsys.readouterr().out)


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    now = iter([0.0, 4.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(ino.progress.time, "monotonic", lambda: next(now))
    with progress("frames", 30) as advance:
        for _ in range(4):
            advance()
    assert capsys.readouterr().err == "frames: 2 of 30\nframes: 4 of 30\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of files are bytes there")
@pytest.mark.parametrize(
    "encoding",
    ["ascii", "utf-8:strict", "latin-1"],
)
def test_names_that_no_screen_shows(tmp_path, video, mask, encoding):
    folder = tmp_path / "v"
    folder.mkdir()
    for name in ("été \N{CJK UNIFIED IDEOGRAPH-65E5}.mp4", os.fsdecode(b"caf\xe9\x1b[31m.mp4")):
        (folder / name).write_bytes(video.read_bytes())
    (folder / os.fsdecode(b"br\xe9k.mp4")).write_bytes(bytes(100))
    out = tmp_path / os.fsdecode(b"o\xe9")
    commands = [["index", folder, "--index", tmp_path / "index"]]
    for number, path in enumerate(sorted(folder.iterdir())):
        commands.append(["segment", path, "--mask", mask, "--out", out / str(number), *FAST])
    status, shown, told = command_apart(*commands, encoding=encoding)
    assert status == [0, 2, 0, 0], told
    assert r"br\xe9k.mp4 cannot be read" in shown
    assert r"br\xe9k.mp4 cannot be read" in told
    assert r"o\xe9/2" in shown
    assert "\x1b" not in shown + told
    assert sorted(path.name for path in out.iterdir()) == ["1", "2"]


def test_programs_may_give_paths_as_text(tmp_path, video, mask, davis):
    import ino

    write_labels(str(tmp_path / "copy.png"), torch.from_numpy(read_labels(mask).copy()).long())
    labels = ino.read_labels(str(tmp_path / "copy.png"))
    np.testing.assert_array_equal(labels, read_labels(mask))
    assert len(list(ino.read_frames(str(video)))) == 6
    with ino.VideoWriter(str(tmp_path / "copy.mp4"), fps=5.0) as writer:
        writer.write(next(ino.read_frames(str(video))))
    tracker = ino.Tracker("color", protocol=ino.get_protocol("ino-davis", short_side=None))
    out = str(tmp_path / "out")
    assert ino.segment_video(str(video), {0: labels > 0}, out=out, tracker=tracker) == 6
    scores = ino.evaluate_davis(str(davis), out=str(tmp_path / "davis_out"), tracker=tracker)
    assert ino.score_davis(str(tmp_path / "davis_out" / "predictions"), str(davis)) == scores
    write_ytvos_layout({"a": generate_clip(1, num_frames=4)}, tmp_path / "ytvos")
    split = ino.read_ytvos_split(str(tmp_path / "ytvos"))
    assert ino.check_submission(str(tmp_path), split).num_faults
    assert ino.load_recipe(str(Path(ino.__file__).parent / "recipes" / "tiny.yaml"))
