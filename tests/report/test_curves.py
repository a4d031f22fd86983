"""`ino plot`: curves of what the logs hold, and a clear word where they hold nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from ino import cli
from ino.report.curves import plot_curves, read_history, smooth


def write_log(folder, num_steps, **numbers):
    folder.mkdir(parents=True)
    with (folder / "log.jsonl").open("w") as log:
        for step in range(num_steps):
            line = {"step": step, "loss": 5.0 - step / num_steps, "lr": 0.1, "affinity": 0.0}
            log.write(json.dumps(line | {k: v(step) for k, v in numbers.items()}) + "\n")
    return folder


def test_curves_of_two_runs_are_drawn_with_a_torn_last_line(tmp_path, capsys):
    first = write_log(tmp_path / "a/run", 100, grad_norm=lambda s: 1 + s % 7)
    second = write_log(tmp_path / "b/run", 5, eval_jf=lambda s: 40.0 + s)
    with (second / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')
    out = tmp_path / "curves.png"
    assert cli.main(["plot", str(first), str(second), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert pixels.std() > 10 and min(pixels.shape[:2]) > 300


def test_panels_are_those_that_there_are_numbers_for(tmp_path):
    run = write_log(tmp_path / "run", 60, eval_jf=lambda s: 40.0, rank_patch=lambda s: float("nan"))
    figure = plot_curves([read_history(run, label="run")])
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    # A term that is off is 0 in each step, and what is not finite cannot be drawn.
    assert titles == {"loss", "J&F on labelled sequences", "learning rate"}
    raw, smoothed = figure.axes[0].get_lines()[:2]
    assert raw.get_alpha() == pytest.approx(0.25)
    np.testing.assert_allclose(raw.get_ydata(), 5.0 - np.arange(60) / 60)
    np.testing.assert_allclose(raw.get_xdata(), 1 + np.arange(60))  # as checkpoints are named
    assert smoothed.get_linewidth() > raw.get_linewidth()


def test_the_labels_of_the_axes_say_it_all(tmp_path):
    """No factor or offset above a panel, no powers, no parts of steps."""
    numbers = {
        "lr": lambda s: 1.5e-6 * s,
        "teacher_momentum": lambda s: 0.996 + 1e-8 * s,
        "grad_norm": lambda s: 4.0 + 5 * s,
        "eval_jf": lambda s: 40.0 if s == 1 else None,
    }
    figure = plot_curves([read_history(write_log(tmp_path / "run", 3, **numbers), label="run")])
    figure.draw_without_rendering()
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    for axes in panels.values():
        assert axes.yaxis.get_offset_text().get_text() == ""
        steps = [float(label.get_text()) for label in axes.get_xticklabels()]
        assert steps and set(steps) <= {0.0, 1.0, 2.0, 3.0, 4.0}
        shown = axes.get_yticklabels(which="both")
        assert not any("times" in label.get_text() for label in shown)
        assert {label.get_fontsize() for label in shown} == {8}
    rates = {label.get_text() for label in panels["learning rate"].get_yticklabels()}
    assert {"0", "5e−07", "2.5e−06"} <= rates
    norms = panels["gradient norm"].get_yticklabels(which="both")
    assert {"4", "10"} <= {label.get_text() for label in norms}


def test_smoothing_is_a_mean_over_the_neighbours():
    values = np.array([1.0, 5.0, 3.0, 9.0, 2.0])
    np.testing.assert_allclose(smooth(values, 3), [3, 3, 17 / 3, 14 / 3, 5.5])
    np.testing.assert_allclose(smooth(np.full(9, 2.0), 4), 2.0)


def test_names_of_runs_are_no_formulas(tmp_path):
    run = write_log(tmp_path / "run", 3)
    figure = plot_curves([read_history(run, label=r"<b>$\frac[red]$")])
    figure.savefig(tmp_path / "curves.svg")  # fails where text is read as a formula
    assert figure.legends[0].get_texts()[0].get_text() == r"<b>$\frac[red]$"


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "lo', "[1]\n3\n"])
def test_what_is_no_run_or_has_no_step_is_refused(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    assert cli.main(["plot", str(tmp_path), "--out", str(tmp_path / "curves.png")]) == 2
    line = capsys.readouterr().err.strip()
    assert ("is no run" if content is None else "holds no step yet") in line
    assert len(line.splitlines()) == 1


def test_an_unknown_kind_of_picture_is_refused(tmp_path, capsys):
    run = write_log(tmp_path / "run", 3)
    assert cli.main(["plot", str(run), "--out", str(tmp_path / "curves.doc")]) == 2
    assert "must end in .png" in capsys.readouterr().err
