"""`ino sweep`: one table from one file, each cell once, whatever happens in between."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev

import pytest
import yaml

from command import refused, run
from ino.demo.synthetic import generate_clip, write_davis_layout, write_videos
from ino.errors import ConfigError
from ino.experiments import sweep as sweeping
from ino.experiments.rows import with_steps
from ino.experiments.sweep_file import FOLDER, read_sweep, sweep_names
from ino.experiments.sweep_plan import plan_sweep
from ino.models.weights import list_checkpoints
from ino.train.config import load_recipe, resolve, to_dict
from processes import held_elsewhere

SMALL = {
    "model": {"arch": "vit_nano", "out_dim": 32, "hidden_dim": 24, "bottleneck_dim": 16},
    "data": {"frame_step": 1, "clips_per_video": 1, "batch_size": 2, "num_workers": 0},
    "views": {"global_size": 32, "local_size": 16, "num_local": 2},
    "optim": {"epochs": 8, "lr": 0.05, "warmup_epochs": 2.0},
    "run": {"accelerator": "cpu", "precision": "32-true", "save_every": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Videos, a data set of one sequence, a recipe."""
    folder = tmp_path_factory.mktemp("data")
    clips = {f"{seed}": generate_clip(seed, num_frames=6, height=48, width=64) for seed in range(4)}
    write_videos(clips, folder / "videos")
    write_davis_layout({"one": clips["0"]}, folder / "davis")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


def content(data: Path, **changes) -> dict:
    """A sweep of two rows and two seeds, four steps a run."""
    return {
        "base": str(data / "recipe.yaml"),
        "set": {"data.root": str(data / "videos")},
        "rows": {"g2g": {"loss.l2g": 0, "views.num_local": 0}, "all": {}},
        "seeds": [0, 1],
        "steps": 4,
        "evaluation": {"root": str(data / "davis"), "short_side": 48},
        "published": {"all": 67.0},
    } | changes


@pytest.fixture
def file(tmp_path, data):
    def write(**changes) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content(data, **changes), sort_keys=False))
        return path

    return write


def test_one_table_of_all_rows_and_a_second_run_does_nothing_again(
    tmp_path, file, capsys, monkeypatch
):
    out = tmp_path / "out"
    assert run("sweep", file(), "--out", out) == 0
    printed = capsys.readouterr().out
    table = json.loads((out / "table.json").read_text())["rows"]
    assert [row["label"] for row in table] == ["color", "untrained", "g2g", "all"]
    assert [row["seeds"] for row in table] == [[0], [0, 1], [0, 1], [0, 1]]
    assert [row["published"] for row in table] == [None, None, None, 67.0]
    values = [
        100
        * json.loads((out / f"all/seed_{seed}/davis_48_student/scores.json").read_text())["global"][
            "J&F-Mean"
        ]
        for seed in (0, 1)
    ]
    found = table[3]["J&F"]
    assert found["values"] == values
    assert (found["mean"], found["std"]) == (fmean(values), stdev(values))
    line = f"{fmean(values):.1f} ± {stdev(values):.1f}"
    assert line in printed and line in (out / "table.md").read_text()
    assert table[0]["J&F"]["std"] is None
    remark = "measured by ino-davis with short_side 48 in place of 480"
    assert remark in printed and remark in (out / "table.md").read_text()
    assert [len(row["remarks"]) for row in table] == [0, 0, 0, 1]
    configs = {
        row: yaml.safe_load((out / row / "seed_1/config.yaml").read_text())
        for row in ("g2g", "all")
    }
    assert (configs["g2g"]["loss"]["l2g"], configs["all"]["loss"]["l2g"]) == (0, 1)
    assert {one["run"]["seed"] for one in configs.values()} == {1}
    # 4 steps of 2 clips are two epochs of 4 videos; the warm-up keeps its quarter.
    assert configs["all"]["optim"]["epochs"] == 2
    assert configs["all"]["optim"]["warmup_epochs"] == 0.5

    monkeypatch.setattr(sweeping, "pretrain", None)
    monkeypatch.setattr(sweeping, "evaluate_davis", None)
    assert run("sweep", file(), "--out", out) == 0
    assert capsys.readouterr().out == printed


def test_a_sweep_that_was_stopped_does_nothing_twice(tmp_path, file, monkeypatch):
    out = tmp_path / "out"
    sweep = file(seeds=[0], baselines=[])
    original, trained = sweeping.pretrain, []

    def stopped(config, **options):
        if trained:
            raise KeyboardInterrupt
        trained.append(config.loss.l2g)
        return original(config, **options)

    monkeypatch.setattr(sweeping, "pretrain", stopped)
    assert run("sweep", sweep, "--out", out) == 130
    scores = out / "g2g/seed_0/davis_48_student/scores.json"
    written = scores.stat().st_mtime_ns
    monkeypatch.setattr(sweeping, "pretrain", lambda c, **o: trained.append(1) or original(c, **o))
    assert run("sweep", sweep, "--out", out) == 0
    assert trained == [0, 1]
    assert scores.stat().st_mtime_ns == written

    whole = scores.read_text()
    scores.write_text(whole[:20])  # a damaged file is made again, its run is not
    assert run("sweep", sweep, "--out", out, "--list") == 0
    assert run("sweep", sweep, "--out", out) == 0
    assert scores.read_text() == whole
    assert trained == [0, 1, 1]


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_and_ends_as_one_that_was_not(tmp_path, file):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = {"seeds": [0], "steps": 8, "baselines": []}
    assert run("sweep", file(**changes), "--out", whole) == 0
    command = [sys.executable, "-m", "ino", "sweep", str(file(**changes)), "--out", str(killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list_checkpoints(killed / "all/seed_0") and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint of the second row appeared"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = killed / "g2g/seed_0/davis_48_student/scores.json"
    finished = first.stat().st_mtime_ns
    assert run("sweep", file(**changes), "--out", killed) == 0
    assert first.stat().st_mtime_ns == finished
    assert (killed / "table.json").read_text() == (whole / "table.json").read_text()


def test_a_cell_that_fails_is_named_and_the_others_go_on(tmp_path, file, capsys, monkeypatch):
    out = tmp_path / "out"
    original = sweeping.pretrain

    def broken(config, **options):
        if config.loss.l2g == 0 and config.run.seed == 1:
            raise RuntimeError("no luck today")
        return original(config, **options)

    monkeypatch.setattr(sweeping, "pretrain", broken)
    sweep = file(baselines=[])
    assert run("sweep", sweep, "--out", out) == 1
    printed = capsys.readouterr().out
    assert "g2g/seed_1: failed: RuntimeError: no luck today" in printed
    assert "1 of 2" in printed
    monkeypatch.setattr(sweeping, "pretrain", original)
    assert run("sweep", sweep, "--out", out) == 0
    assert not list(out.rglob("*.error.txt"))


def test_list_tells_how_far_each_cell_is(tmp_path, file, capsys):
    out = tmp_path / "out"
    sweep = file(seeds=[0], baselines=["color"])
    assert run("sweep", sweep, "--out", out, "--list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "color/seed_0: not started",
        "g2g/seed_0: not started",
        "all/seed_0: not started",
    ]
    assert not out.exists()
    assert run("sweep", sweep, "--out", out) == 0
    (out / "all/seed_0/davis_48_student/scores.json").unlink()
    capsys.readouterr()
    run("sweep", sweep, "--out", out, "--list")
    first, second, third = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"color/seed_0: done, J&F [\d.]+", first)
    assert re.fullmatch(r"g2g/seed_0: done, J&F [\d.]+", second)
    assert third == "all/seed_0: saved at step 4"


@pytest.mark.slow
def test_cells_at_once_give_the_same_table(tmp_path, file):
    tables = []
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        assert run("sweep", file(seeds=[0]), "--out", out, "--jobs", jobs) == 0
        tables.append((out / "table.json").read_text())
    assert tables[0] == tables[1]


def test_options_replace_what_the_file_says(tmp_path, file, data):
    changes = {"seeds": [5], "evaluation.short_side": [48, 96], "evaluation.network": "teacher"}
    plan = plan_sweep(read_sweep(str(file()), changes), {"optim.lr": "0.25"})
    assert {cell.config.optim.lr for cell in plan.cells if cell.config} == {0.25}
    assert {cell.seed for cell in plan.cells if cell.weights != "color"} == {5}
    assert [one.name for one in plan.passes] == ["davis_48_teacher", "davis_96_teacher"]
    # The radius of 40 positions at a short side of 480 covers the same part of a smaller frame.
    assert [one.protocol.radius for one in plan.passes] == [4, 8]


def test_a_grid_is_crossed_with_rows(file):
    grid = {"loss.teacher_temperature": [0.02, 0.04], "data.clip_length": [2, 4]}
    plan = plan_sweep(read_sweep(str(file(grid=grid, seeds=[0], baselines=[], published={}))))
    assert [cell.label for cell in plan.cells] == [
        f"{row},teacher_temperature={temperature},clip_length={length}"
        for row in ("g2g", "all")
        for temperature in (0.02, 0.04)
        for length in (2, 4)
    ]
    assert plan.cells[1].config.data.clip_length == 4
    assert plan.cells[1].config.loss.l2g == 0


@pytest.mark.parametrize("name", sweep_names())
@pytest.mark.parametrize("base", [None, "tiny"])
def test_named_sweeps_work_with_any_base(name, base, data):
    changes = {"base": base, "steps": 10, "evaluation.root": str(data / "davis")}
    overrides = {"data.root": str(data / "videos"), "data.batch_size": 2, "data.frame_step": 1}
    plan = plan_sweep(read_sweep(name, changes), overrides)
    runs = [cell for cell in plan.cells if cell.config]
    assert len({cell.name for cell in runs}) == len(runs)
    plain = [json.dumps(to_dict(cell.config)) for cell in runs]
    assert len(set(plain)) == len(plain), "two rows are the same run"
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")


def test_table_4_adds_one_term_a_row(data):
    changes = {"seeds": [0], "evaluation.root": str(data / "davis")}
    overrides = {"data.root": str(data / "videos"), "data.frame_step": 1}
    plan = plan_sweep(read_sweep("table4", changes), overrides)
    rows = [cell.config for cell in plan.cells if cell.config]
    terms = [(c.loss.g2g, c.loss.l2g, c.loss.masked, c.loss.affinity) for c in rows]
    assert terms == [(1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1)]
    assert [c.views.num_local for c in rows] == [0, 8, 8, 8]
    base = resolve(load_recipe("ino_vits8_charades", overrides))
    assert rows[-1] == base
    assert plan.published == {"g2g": 45.6, "+l2g": 54.2, "+mim": 65.4, "+aff": 67.0}


def test_a_short_run_still_trains_the_last_layer(data):
    config = load_recipe(str(data / "recipe.yaml"), {"data.root": str(data / "videos")})
    assert with_steps(config, 1).optim.freeze_last_layer_epochs == 0
    assert with_steps(config, 3).optim.freeze_last_layer_epochs == 1
    with pytest.raises(ConfigError, match="steps is 0"):
        with_steps(config, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rowz": {}}, "unknown key rowz"),
        ({"evaluation": {"side": 3}}, r"unknown key evaluation\.side"),
        ({"evaluation": []}, "under evaluation"),
        ({"evaluation": {}}, "--davis ROOT"),
        ({"evaluation": {"root": "nowhere"}}, "nowhere"),
        (
            {"evaluation": {"root": "x", "radius": 5, "set": {"radius": 9}}},
            "radius is given twice",
        ),
        ({"evaluation": {"root": "x", "set": {"name": "x"}}}, "no 'name'"),
        ({"seeds": []}, "give one or more"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": "many"}, "seeds"),
        ({"seeds": [-1]}, r"run\.seed is -1"),
        ({"seeds": list(range(600))}, "1200 runs"),
        ({"steps": 0}, "steps is 0"),
        ({"base": None}, "--base RECIPE"),
        ({"base": "teeny"}, "no recipe 'teeny'"),
        ({"set": {}}, r"--data\.root"),
        ({"set": {"data.rot": "x"}}, r"unknown field data\.rot"),
        ({"rows": {"a": {"loss.l2g": -1}}}, r"row a: loss\.l2g is -1"),
        ({"rows": {"a": {"data.clip_length": 8}}}, r"row a: 4 of the 4 videos cannot be used"),
        ({"rows": {"a": {"loss.l2g": "much"}}}, r"row a: .*loss\.l2g"),
        ({"rows": {"a/b": {}}}, "cannot name a folder"),
        ({"rows": {"color": {}}}, "label of the baseline color"),
        ({"rows": {"Color": {}}}, "labels Color and color name one folder on some disks"),
        ({"rows": {"a": {}, "A": {}}}, "labels a and A name one folder on some disks"),
        (
            {"rows": {"random-vit_nano-8": {}}, "baselines": ["random:vit_nano/8"]},
            "label of the baseline random-vit_nano-8",
        ),
        ({"rows": {"a": {"run.seed": 1}}}, "list seeds"),
        ({"rows": {"a": {"optim.epochs": 1}}}, r"optim\.epochs follows from steps"),
        ({"rows": {}, "grid": {"loss.l2g": []}}, r"no values for loss\.l2g"),
        ({"rows": {}, "grid": {"loss.l2g": [1, 1]}}, "label l2g=1"),
        ({"grid": {"loss.l2g": [1, 2]}}, "by the row g2g and by the grid"),
        ({"baselines": ["colour"]}, "no baseline colour"),
        ({"published": {"al": 1.0}}, "published names al"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_the_first_run(
    tmp_path, file, capsys, changes, words
):
    out = tmp_path / "out"
    assert re.search(words, refused(capsys, "sweep", file(**changes), "--out", out))
    assert not out.exists()


def test_the_file_in_the_manual_can_be_used(tmp_path, data):
    manual = Path(__file__).parent.parent / "docs" / "training.md"
    (text,) = re.findall(r"```yaml\n(.*?)```", manual.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(text)
    changes = {"evaluation.root": str(data / "davis"), "evaluation.sequences": ["one"]}
    sweep = read_sweep(str(tmp_path / "sweep.yaml"), changes)
    plan = plan_sweep(sweep, {"data.root": str(data / "videos"), "data.batch_size": 2})
    assert len(plan.cells) == 1 + 3 + 2 * 2 * 3
    assert len(plan.passes) == 4


def test_other_bad_input_is_refused_in_one_line(tmp_path, file, capsys):
    assert "no sweep 'tabel4'" in refused(capsys, "sweep", "tabel4")
    assert "for --jobs. Must be > 0" in refused(capsys, "sweep", file(), "--jobs", 0)
    assert "0,1,2" in refused(capsys, "sweep", file(), "--seeds", "one")
    assert "row g2g sets" in refused(capsys, "sweep", file(), "--loss.l2g", 1)
    broken = tmp_path / "broken.yaml"
    broken.write_text("rows: {a: {}, a: {loss.l2g: 0}}\n")
    assert "has 'a' twice" in refused(capsys, "sweep", broken)
    broken.write_text("rows: [")
    assert "not YAML" in refused(capsys, "sweep", broken)
    broken.write_text("- 1")
    assert "must hold keys" in refused(capsys, "sweep", broken)


def test_two_sweeps_do_not_write_into_one_folder(tmp_path, file, capsys):
    out = tmp_path / "out"
    with held_elsewhere(out):
        assert "another ino sweep is writing" in refused(capsys, "sweep", file(), "--out", out)
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_changed_file_does_not_go_on_in_the_same_folder(tmp_path, file, data, capsys):
    out = tmp_path / "out"
    small = {"seeds": [0], "baselines": [], "rows": {"all": {}}, "steps": 2}
    assert run("sweep", file(**small), "--out", out) == 0
    line = refused(capsys, "sweep", file(**small), "--out", out, "--optim.lr", 0.5)
    assert "all/seed_0 was run with optim.lr 0.05, now the sweep has 0.5" in line
    line = refused(capsys, "sweep", file(**small), "--out", out, "--steps", 1)
    assert "max_steps 2, now the sweep has 1" in line
    other = {"root": str(data / "davis"), "short_side": 48, "set": {"topk": 3}}
    line = refused(capsys, "sweep", file(**small, evaluation=other), "--out", out)
    assert "topk was 5, but now it is 3" in line
    more = small | {"rows": {"all": {}, "g2g": {"loss.l2g": 0}}}
    assert run("sweep", file(**more), "--out", out) == 0
