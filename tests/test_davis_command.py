"""`ino evaluate davis` that is stopped and goes on, and never mixes two settings."""

import json
import shutil
from pathlib import Path

import pytest

from command import refused, run
from ino import Tracker, evaluate_davis, load_backbone
from ino.demo.synthetic import generate_clip, write_davis_layout
from ino.propagate.protocols import get_protocol
from ino.tasks import davis as pipeline
from processes import held_elsewhere

FAST = ["--weights", "color", "--device", "cpu", "--set", "short_side=none", "radius=4"]


@pytest.fixture(scope="module")
def davis(tmp_path_factory) -> Path:
    """Two sequences of four frames."""
    root = tmp_path_factory.mktemp("davis") / "davis"
    sizes = {"height": 48, "width": 64, "num_frames": 4}
    write_davis_layout({f"s{seed}": generate_clip(seed, **sizes) for seed in range(2)}, root)
    return root


@pytest.fixture(scope="module")
def done(davis, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    assert run("evaluate", "davis", "--root", davis, "--out", out, *FAST) == 0
    return out


def results(out: Path) -> dict[str, bytes]:
    """All files but hidden ones."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("[!.]*")
        if path.is_file()
    }


@pytest.fixture
def carried(monkeypatch) -> list[str]:
    """The sequences that were carried."""
    names, original = [], pipeline.propagate_sequences

    def propagate(sequences, **options):
        names.extend(one.name for one in sequences)
        original(sequences, **options)

    monkeypatch.setattr(pipeline, "propagate_sequences", propagate)
    return names


def test_a_stopped_run_goes_on_to_the_same_bytes(davis, done, tmp_path, capsys, monkeypatch):
    out, frames = tmp_path / "out", []
    arguments = ["evaluate", "davis", "--root", davis, "--out", out, *FAST]
    original = pipeline.propagate_sequences

    def propagate(sequences, *, on_frame, **options):
        def stop():
            frames.append(sequences[0].name)
            if len(frames) == 6:
                raise KeyboardInterrupt
            on_frame()

        original(sequences, on_frame=stop, **options)

    monkeypatch.setattr(pipeline, "propagate_sequences", propagate)
    assert run(*arguments) == 130
    assert "ino: stopped; what is done is kept: continue with --resume\n" in capsys.readouterr().err
    assert (out / "finished.txt").read_text() == "s0\n"
    assert not (out / "scores.json").exists()
    frames[:] = ["s0"] * 6
    assert run(*arguments, "--resume") == 0
    assert frames[6:] == ["s1"] * 4
    assert results(out) == results(done)


def test_masks_that_broke_after_they_were_done_are_made_again(davis, done, tmp_path, carried):
    out = shutil.copytree(done, tmp_path / "out")
    torn = out / "predictions/s1/00002.png"
    torn.write_bytes(torn.read_bytes()[:-20])
    assert run("evaluate", "davis", "--root", davis, "--out", out, *FAST, "--resume") == 0
    assert carried == ["s1"]
    assert results(out) == results(done)


def test_a_layer_that_does_not_exist_leaves_nothing(davis, tmp_path, capsys):
    network = ["--weights", "random:vit_nano/8", "--set", "layer=13"]
    out = tmp_path / "out"
    assert "no layer 13" in refused(
        capsys, "evaluate", "davis", "--root", davis, "--out", out, *network
    )
    assert not out.exists()


def test_two_settings_are_never_mixed(davis, done, tmp_path, capsys):
    out = shutil.copytree(done, tmp_path / "out")
    arguments = ["evaluate", "davis", "--root", davis, "--out", out]
    assert "or pass --resume to go on" in refused(capsys, *arguments, *FAST)
    message = refused(capsys, *arguments, *FAST[:-1], "radius=5", "--resume")
    assert "says that protocol field radius was 4, but now it is 5: resume with" in message
    shutil.copytree(davis / "ImageSets/2017", davis / "ImageSets/2016", dirs_exist_ok=True)
    message = refused(capsys, *arguments, "--year", 2016, *FAST, "--resume")
    assert "says that year was 2017, but now it is 2016" in message
    assert "give one" in refused(capsys, *arguments, *FAST, "--resume", "--overwrite")
    with held_elsewhere(out):
        line = refused(capsys, *arguments, *FAST, "--overwrite")
        assert "another ino evaluate davis is writing into" in line
    assert results(out) == results(done)


def test_after_overwriting_nothing_old_counts_as_done(davis, done, tmp_path, carried):
    """Masks of other settings lie there whole, and the new run stops before it comes to them."""
    out = shutil.copytree(done, tmp_path / "out")
    protocol = get_protocol("ino-davis", short_side=None, radius=1)
    tracker = Tracker(load_backbone("color"), protocol=protocol)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_davis(davis, out=out, tracker=tracker, overwrite=True, on_frame=stop)
    carried.clear()
    evaluate_davis(davis, out=out, tracker=tracker, resume=True)
    assert carried == ["s0", "s1"]


def test_settings_name_the_data_set(davis, done):
    settings = json.loads((done / "settings.json").read_text())
    names = ("root", "year", "split", "resolution")
    assert [settings[name] for name in names] == [str(davis), 2017, "val", "480p"]
