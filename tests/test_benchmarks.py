"""The benchmarks: both sides of each compute the same, and what they write is whole."""

import argparse
import copy
import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from time import time as now
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ino.data.shards import read_shard
from ino.demo.synthetic import generate_clip, write_davis_layout, write_videos
from ino.errors import CheckpointError, ConfigError, VideoError
from ino.models.backbone import computes_in_bf16
from ino.models.student_teacher import StudentTeacher, Views
from ino.models.vit import ProjectionHead, VisionTransformer
from ino.models.weights import find_checkpoint, read_checkpoint
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import get_protocol
from ino.train.config import LossConfig, resolve
from ino.train.loop import train
from tiny_run import tiny_config

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

CLAIMS = {
    "pretraining": [
        "step_speedup_fp32",
        "step_speedup_bf16",
        "step_speedup_bf16_both",
        "step_memory_ratio",
    ],
    "propagation": [
        "propagation_speedup_fp32",
        "propagation_speedup",
        "frame_speedup_fp32",
        "frame_speedup_bf16",
        "propagation_peak_gib",
    ],
    "tracking": ["frames_a_second", "share_of_bf16_peak"],
    "propagation_sweep": ["gib_160x240_3_8_2", "speedup_160x240_3_8_2"],
    "scoring": [
        "scoring_speedup",
        "scoring_speedup_alone",
        "scoring_speedup_many",
        "scoring_memory_ratio",
    ],
    "scaling": [
        "clip_teraoperations",
        "cpu_clips_a_second",
        "decode_clips_a_second_and_core",
        "crop_clips_a_second_and_core",
    ],
    "network": [
        f"{name}_{precision}"
        for precision in ("fp32", "bf16")
        for name in ("channels_last", "two_at_once", "four_at_once", "compiled", "torch_attention")
    ],
    "kernels": [
        "products_bf16",
        "attention_frames",
        "attention_frames_with_gradients",
        "attention_crops",
        "attention_crops_with_gradients",
        "attention_large_frame",
    ],
    "reading": ["access_speedup_short", "access_speedup_long", "one_thread_speedup"],
    "indexing": ["index_speedup"],
    "data": [
        "data_speedup",
        "data_speedup_single",
        "decode_speedup",
        "decode_speedup_single",
        "views_speedup",
        "views_speedup_uint8",
        "data_speedup_uint8",
    ],
    "quality": ["fast_speedup", "best_cost", "fast_minus_default", "best_minus_default"],
    "judge": [
        f"{kind}_{name}"
        for kind in ("result", "mask", "none")
        for name in ("rank", "regret", "error")
    ],
    "learning": ["learned_minus_color_240", "learned_minus_untrained_240"],
}


COMPUTES_IN_BF16 = computes_in_bf16(torch.device("cpu"))


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of the benchmarks, whose folder is no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name):
        earlier = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and (earlier is None or Path(earlier).parent != BENCHMARKS):
            monkeypatch.delitem(sys.modules, name)  # the folder tests/data
        return importlib.import_module(name)

    return load


@pytest.fixture
def model() -> StudentTeacher:
    """Two blocks; the teacher is not the student."""
    model = StudentTeacher(
        VisionTransformer(embed_dim=48, depth=2, num_heads=3),
        ProjectionHead(48, out_dim=32, hidden_dim=24, bottleneck_dim=16),
    )
    for parameter in model.teacher.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture
def views() -> Views:
    """Two clips of four frames with different masks of nine positions."""
    masked = torch.stack([torch.arange(9), torch.arange(5, 14)])
    return Views(torch.randn(4, 2, 3, 48, 48), torch.randn(4, 3, 2, 3, 16, 16), masked)


RELEASED = LossConfig(center_update="group", out_mean="joint", affinity_on="logits")


def test_reference_trains_as_ours_does(benchmark, model, views):
    """Loss, gradients, centers and, after two steps, both networks."""
    sides = benchmark("training_sides")
    plain_model = copy.deepcopy(model)
    ours = sides.OurStep(model, RELEASED, num_local=3)
    plain = sides.PlainStep(plain_model, RELEASED, num_local=3)
    for _ in range(2):
        found = sides.require_equal_gradients(ours, plain, views)
        assert set(found) == {"loss", "gradients", "class_center", "patch_center"}
        for side in (ours, plain):
            side.update(sides.StageTimes())
    assert ours.centers.class_center.abs().max() > 0
    for own, other in zip(model.parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


def test_reference_attends_without_fusion(benchmark, model, views, monkeypatch):
    """Both ways of attention are really there to be compared."""
    sides = benchmark("training_sides")
    fused = Mock(wraps=F.scaled_dot_product_attention)
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    sides.PlainStep(copy.deepcopy(model), RELEASED, num_local=3).to_gradients(
        views, sides.StageTimes()
    )
    assert fused.call_count == 0
    sides.OurStep(model, RELEASED, num_local=3).to_gradients(views, sides.StageTimes())
    assert fused.call_count == 2 * 3  # blocks times teacher, local and global crops


@pytest.mark.parametrize(
    "changed",
    [{"center_update": "step"}, {"out_mean": "each"}, {"affinity_on": "distributions"}],
    ids=lambda changed: next(iter(changed)),
)
def test_comparison_finds_another_objective(benchmark, model, views, changed):
    sides = benchmark("training_sides")
    ours = sides.OurStep(model, LossConfig(**{**vars(RELEASED), **changed}), num_local=3)
    plain = sides.PlainStep(copy.deepcopy(model), RELEASED, num_local=3)
    with pytest.raises(benchmark("report").DifferentResultsError, match="differ by"):
        sides.require_equal_gradients(ours, plain, views)


def test_reference_propagates_as_ours_does(benchmark):
    reference = benchmark("reference")
    protocol = get_protocol("ino-davis", num_context=2, radius=3)
    features = F.normalize(torch.randn(5, 6, 9, 8, dtype=torch.float64), dim=-1)
    first = torch.randn(6, 9, 3, dtype=torch.float64).softmax(dim=-1)
    propagator = Propagator(protocol)
    soft = [propagator.step(features[0], first)]
    window = reference.square_window(6, 9, radius=3)
    for time in range(1, 5):
        soft.append(propagator.step(features[time]))
        context = [0, *range(max(1, time - 2), time)]
        expected = reference.plain_propagation(
            features[time],
            [features[index] for index in context],
            [soft[index] for index in context],
            window,
            topk=5,
            temperature=0.1,
        )
        torch.testing.assert_close(soft[time], expected, rtol=0, atol=1e-12)


def test_both_trackers_write_the_same_masks(benchmark, tmp_path, monkeypatch):
    """The whole comparison of frames, with a small network and small frames."""
    propagation = benchmark("propagation")
    monkeypatch.setattr(propagation, "BACKBONE", "random:vit_nano/8")
    size = propagation.Size(48, 72, num_context=2, repeats=1)
    clip = generate_clip(0, num_frames=4, height=48, width=72, num_objects=2)
    found = propagation.compare(size, clip)
    assert 0 < found["features"] < 1e-5
    seconds, share = propagation.measure_times(size, clip)
    assert share <= propagation.LARGEST_SHARE
    for side in seconds.values():
        assert side["total"] == pytest.approx(sum(side.values()) - side["total"])


def test_both_sides_score_the_same(benchmark, tmp_path):
    scoring = benchmark("scoring")
    case = scoring.Case(48, 72, 5, num_plain=4, num_ours=6)
    scoring.write_case(case, tmp_path)
    assert 0 < scoring.score_ours(tmp_path, "long", workers=1).jf_mean < 1
    assert scoring.compare(tmp_path, case) <= scoring.TOLERANCE


def test_other_scores_are_found(benchmark, tmp_path, monkeypatch):
    scoring = benchmark("scoring")
    case = scoring.Case(48, 72, 2, num_plain=4, num_ours=6)
    scoring.write_case(case, tmp_path)
    monkeypatch.setattr(benchmark("scoring_plain"), "plain_j", lambda *_: 0.5)
    with pytest.raises(benchmark("report").DifferentResultsError, match="differs"):
        scoring.compare(tmp_path, case)


@pytest.fixture
def clip_job(benchmark, tmp_path):
    """A clip of a small H.264 video."""
    sides = benchmark("data_sides")
    clip = generate_clip(0, num_frames=40, height=96, width=128)
    sides.write_h264(clip.frames, tmp_path / "0.mp4", fps=30, keyframes=250)
    return sides.draw_jobs([tmp_path / "0.mp4"], clips_per_video=1)[0]


def test_all_sides_make_the_same_crops(benchmark, clip_job):
    data = benchmark("data")
    found = data.compare(clip_job)
    assert found.keys() == data.LARGEST_DIFFERENCES.keys()
    times = data.measure([clip_job], clips_per_visit=1)
    for stages in times.values():
        assert stages["total"] == pytest.approx(sum(stages.values()) - stages["total"])


@pytest.mark.parametrize("what", ["decode", "change_colors"])
def test_other_crops_are_found(benchmark, clip_job, monkeypatch, what):
    """Frames in another order, or colours left as they are."""
    side = benchmark("data_sides").PlainSide
    original = side.decode
    wrong = {
        "decode": lambda self, job: original(self, job)[::-1],
        "change_colors": lambda self, image, *_: image,
    }
    monkeypatch.setattr(side, what, wrong[what])
    with pytest.raises(benchmark("report").DifferentResultsError, match="levels"):
        benchmark("data").compare(clip_job)


def test_stage_times_are_medians(benchmark, monkeypatch):
    report = benchmark("report")
    clock = iter([0.0, 1.0, 1.0, 3.0, 10.0, 15.0, 15.0, 16.0, 20.0, 22.0, 22.0, 31.0])
    monkeypatch.setattr(report.time, "perf_counter", lambda: next(clock))
    times = report.StageTimes()
    for _ in range(3):
        for stage in ("one", "two"):
            with times.stage(stage):
                pass
    assert times.medians() == {"one": 2.0, "two": 2.0, "total": 6.0}


@pytest.mark.slow
def test_peak_of_a_child_is_its_own(benchmark, tmp_path):
    """It grows with what the child takes, although this process holds more."""
    report = benchmark("report")
    script = tmp_path / "child.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from report import peak_bytes\n"
        "before = peak_bytes()\n"
        "block = bytearray(int(sys.argv[1]) << 20)\n"
        "print('something else')\n"
        "print(peak_bytes() - before)\n"
    )
    held = bytearray(256 << 20)
    grown = report.peak_bytes_of_child(str(script), "64")
    assert len(held) > grown
    assert grown == pytest.approx(64 << 20, abs=4 << 20)


def test_json_holds_ratios_and_machine(benchmark, tmp_path, capsys):
    report = benchmark("report")
    path = tmp_path / "result.json"
    report.conclude(
        "example",
        ratios={"speedup": 2.5},
        machine=report.describe_machine(precision="fp32"),
        measured={"seconds": {"ino": {"total": 2.0}}},
        path=path,
    )
    content = json.loads(path.read_text())
    assert content["ratios"] == {"speedup": 2.5}
    assert content["measured"] == {"seconds": {"ino": {"total": 2.0}}}
    machine = content["machine"]
    assert machine["threads"] == torch.get_num_threads()
    assert machine["torch"] == torch.__version__
    assert "cores" in machine["cpu"]
    assert "speedup 2.5" in capsys.readouterr().out


@pytest.mark.parametrize("name", CLAIMS)
def test_options_of_every_script(benchmark, name, capsys):
    main = benchmark(name).main
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--quick", "--json", "--threads"))
    with pytest.raises(SystemExit) as stopped:
        main(["--threads", "0"])
    assert stopped.value.code == 2
    assert "must be 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --davis ROOT and --out DIR"),
        (["--davis", "a", "--out", "b"], "either --data VIDEOS"),
        (["--davis", "a", "--out", "b", "--data", "c", "--weights", "d"], "either --data VIDEOS"),
        (["--davis", "a", "--out", "b", "--weights", "d", "--variants"], "give --data, not"),
        (["--davis", "a", "--out", "b", "--data", "d", "--variants"], "needs --steps"),
        (["--quick", "--data", "d"], "leave out --data"),
        (["--quick", "--out", str(BENCHMARKS)], "is not empty"),
    ],
)
def test_options_of_learning(benchmark, arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark("learning").parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_recipe_of_a_given_length(benchmark, tmp_path, variant):
    """The schedules end with the run, and the warm-up keeps its share of it."""
    learning = benchmark("learning")
    clip = generate_clip(0, num_frames=4, height=48, width=64)
    write_videos({f"{number}": clip for number in range(13)}, tmp_path)
    whole = learning.tiny_recipe(tmp_path, variant=variant, steps=None)
    assert (whole.variant, whole.model.arch, whole.run.max_steps) == (variant, "vit_tiny", 0)
    short = learning.tiny_recipe(tmp_path, variant=variant, steps=41)
    num_clips = 13 * resolve(short).data.clips_per_video
    steps_per_epoch = num_clips // short.data.batch_size
    assert short.run.max_steps == 41
    assert (short.optim.epochs - 1) * steps_per_epoch < 41 <= short.optim.epochs * steps_per_epoch
    share = whole.optim.warmup_epochs / whole.optim.epochs
    assert short.optim.warmup_epochs / short.optim.epochs == pytest.approx(share)


def test_differences_are_in_points(benchmark):
    learning = benchmark("learning")

    class Fake:
        def __init__(self, jf_mean):
            self.jf_mean = jf_mean

    by_row = {"color": Fake(0.25), "untrained": Fake(0.5), "paper": Fake(0.75)}
    assert learning.differences({240: by_row}, ["paper"]) == {
        "paper_minus_color_240": 50.0,
        "paper_minus_untrained_240": 25.0,
    }
    by_row["released"] = Fake(0.5)
    both = learning.differences({480: by_row}, ["paper", "released"])
    assert both["paper_minus_released_480"] == 25.0
    assert both["released_minus_untrained_480"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_quick(name, tmp_path):
    path = tmp_path / f"{name}.json"
    if name == "kernels" and not COMPUTES_IN_BF16:
        pytest.skip("needs a processor with arithmetic in bf16")
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json", path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    content = json.loads(path.read_text())
    expected = [
        one for one in CLAIMS[name] if COMPUTES_IN_BF16 or not re.search("speedup_bf16|_bf16$", one)
    ]
    assert sorted(content["ratios"]) == sorted(expected)
    for claim, value in content["ratios"].items():
        assert math.isfinite(value)
        if "regret" in claim:  # 0 where the best one was chosen
            assert value >= 0, claim
        elif name != "learning" and "_minus_" not in claim:
            assert value > 0, claim
        assert claim in result.stdout
    assert content["machine"]["threads"] == (1 if name == "data" else 2)


# A GPU used to the minute


def gpu_options(**values):
    defaults = {"device": "cpu", "quick": True, "minutes": 1.0, "only": None}
    return argparse.Namespace(**(defaults | values))


def test_a_pack_is_what_training_reads(benchmark, tmp_path):
    gpu_train = benchmark("gpu_train")
    frames = generate_clip(0, num_frames=4, height=48, width=64).frames
    pieces = [(f"{number:03d}", frames) for number in range(40)]
    size = {"quality": 90, "num_shards": 3}
    count, num_bytes = gpu_train.write_pack(pieces, tmp_path / "all", max_bytes=10**9, **size)
    shards = sorted((tmp_path / "all").glob("*.tar"))
    videos = [video for shard in shards for video in read_shard(str(shard))]
    assert (count, len(videos), len(shards)) == (40, 40, 3)
    found = videos[0].read_chosen(lambda num_frames, fps: range(num_frames))
    assert found.shape == frames.shape
    assert np.abs(found.astype(float) - frames).mean() < 8  # of 255, what JPEG loses
    limit = num_bytes // 2
    count, num_bytes = gpu_train.write_pack(pieces, tmp_path / "half", max_bytes=limit, **size)
    assert 10 < count < 30
    assert num_bytes <= limit
    assert gpu_train.root_of(tmp_path / "half").endswith("half/*.tar")
    assert gpu_train.root_of(tmp_path) == str(tmp_path)  # a folder of videos
    with pytest.raises(VideoError, match="nothing was packed"):
        gpu_train.write_pack(pieces, tmp_path / "none", max_bytes=100, **size)
    assert not (tmp_path / "none").exists()


def test_pieces_are_taken_from_all_videos_in_turn(benchmark, tmp_path):
    lengths = {"long": 24, "short": 8}
    clips = {
        name: generate_clip(0, num_frames=n, height=48, width=64) for name, n in lengths.items()
    }
    write_videos(clips, tmp_path)
    names = sorted(str(path) for path in tmp_path.iterdir())
    found = [
        (name, frames.shape)
        for name, frames in benchmark("gpu_train").take_pieces(
            names, num_frames=4, fps=1000.0, short_side=24, seed=0
        )
    ]
    videos = [name.split("_")[0] for name, _ in found]
    assert sorted(videos[:4]) == ["00000", "00000", "00001", "00001"]
    assert videos[4:] == ["00000"] * 4
    assert len({name for name, _ in found}) == 8
    assert {shape for _, shape in found} == {(4, 24, 32, 3)}


@pytest.fixture
def trained(tmp_path):
    """A run of two steps of eight, and its configuration."""
    clips = {f"{n}": generate_clip(n, num_frames=8, height=48, width=64) for n in range(4)}
    write_videos(clips, tmp_path / "videos")
    config = tiny_config(tmp_path / "videos")
    train(config.with_values({"run.max_steps": 2}), out=tmp_path / "run")
    return tmp_path / "run", config


def test_what_is_carried_home_goes_on(benchmark, trained, tmp_path, monkeypatch, capsys):
    gpu_train = benchmark("gpu_train")
    monkeypatch.setattr(gpu_train, "PART_BYTES", 20_000)
    run, config = trained
    out, back = tmp_path / "out", tmp_path / "back"
    out.mkdir()
    assert gpu_train.carry(run, out, max_bytes=10**9)["optimizer"]
    num_parts = len(list(out.iterdir()))
    assert num_parts > 3
    assert all(path.stat().st_size < 20_100 for path in out.iterdir())
    gpu_train.unpack(argparse.Namespace(results=out, run=back))
    before, after = (read_checkpoint(find_checkpoint(folder)) for folder in (run, back))
    for network in ("student", "teacher"):
        for name, value in before[network].items():
            torch.testing.assert_close(after[network][name], value, rtol=1e-3, atol=1e-6)
    for number, moments in before["optimizer"]["state"].items():
        for name, value in moments.items():
            found = after["optimizer"]["state"][number][name]
            torch.testing.assert_close(found, value, rtol=1e-2, atol=1e-12)
    last = train(config, out=back, resume=True)
    assert read_checkpoint(last)["step"] == 8


def test_only_what_fits_is_carried_home(benchmark, trained, tmp_path):
    gpu_train = benchmark("gpu_train")
    run, config = trained
    whole = len(gpu_train._as_bytes({"x": read_checkpoint(find_checkpoint(run))["student"]}))
    out, back = tmp_path / "out", tmp_path / "back"
    out.mkdir()
    kept = gpu_train.carry(run, out, max_bytes=int(0.8 * whole))
    assert (kept["teacher"], kept["optimizer"]) == (None, None)
    assert "with student is in" in gpu_train.afterwards(kept, out)
    gpu_train.unpack(argparse.Namespace(results=out, run=back))
    after = read_checkpoint(find_checkpoint(back))
    assert all(torch.equal(one, after["teacher"][name]) for name, one in after["student"].items())
    assert read_checkpoint(train(config, out=back, resume=True))["step"] == 8
    with pytest.raises(CheckpointError, match="the student alone takes"):
        gpu_train.carry(run, out, max_bytes=1000)
    (out / "carried.0").write_bytes(b"0000000009 002\n")
    with pytest.raises(CheckpointError, match="does not hold all parts of one checkpoint"):
        gpu_train.read_carried(out)


def test_a_measurement_that_fails_does_not_stop_the_rest(benchmark, tmp_path, monkeypatch):
    gpu, measures = benchmark("gpu"), benchmark("gpu_measures")

    def short_of_memory(place, limit):
        raise torch.OutOfMemoryError("out of memory\nmore")

    def late(place, limit):
        sleep(30)

    found = [
        measures.Measure("first", 5, lambda place, limit: {"x": 1.5}),
        measures.Measure("large", 5, short_of_memory),
        measures.Measure("late", 0.25, late),
        measures.Measure("last", 5, lambda place, limit: {"y": "text"}),
    ]
    monkeypatch.setattr(measures, "MEASURES", found)
    gpu.measure_here(gpu_options(out=tmp_path))
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert list(results["measured"]) == ["first", "last"]
    assert results["failed"] == {
        "large": "OutOfMemoryError: out of memory",
        "late": "TimeUpError: took longer than 1 seconds",
    }
    assert results["running"] is None
    table = (tmp_path / "gpu.md").read_text()
    assert "| first | x | 1.5 |\n| last | y | text |\n| large | not measured |" in table
    found[1] = found[1]._replace(run=lambda place, limit: pytest.fail("was taken again"))
    gpu.measure_here(gpu_options(out=tmp_path))


def test_a_lost_device_is_left_to_another_process(benchmark, tmp_path, monkeypatch):
    gpu, measures = benchmark("gpu"), benchmark("gpu_measures")

    def broken(place, limit):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(measures, "MEASURES", [measures.Measure("broken", 5, broken)])
    monkeypatch.setattr(measures.Place, "is_lost", lambda self: True)
    ended = []
    monkeypatch.setattr(gpu.os, "_exit", ended.append)
    gpu.measure_here(gpu_options(out=tmp_path))
    assert ended == [gpu.LOST]
    assert "illegal memory access" in gpu.read_results(tmp_path)["failed"]["broken"]
    results = gpu.read_results(tmp_path) | {"machine": {"device": "another"}}
    gpu.write_results(tmp_path, results)
    with pytest.raises(SystemExit, match="has what another does, which is not here"):
        gpu.measure_here(gpu_options(out=tmp_path))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import time; time.sleep(60)", "took too long"),
        ("exit(3)", "the process ended with status 3"),
    ],
)
def test_a_process_that_hangs_or_dies_is_noted(benchmark, tmp_path, monkeypatch, code, why):
    gpu = benchmark("gpu")
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    running = {"name": "hangs", "since": now() - 9, "limit": 8.0}
    results = {"machine": {}, "measured": {}, "failed": {}, "running": running}
    gpu.write_results(tmp_path, results)
    child = subprocess.Popen([sys.executable, "-c", code])
    if why.endswith("3"):
        child.wait()
    assert gpu._watch(child, tmp_path, monotonic() + 50) == why
    assert child.returncode is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["measure", "--minutes", "nan"], "nan is not above 0"),
        (["measure", "--minutes", "soon"], "invalid number value"),
        (["pack", "clip.mp4", "--frames", "0"], "0 is not above 0"),
        (["pack", "clip.mp4", "--jpeg", "1000"], "invalid choice"),
    ],
)
def test_gpu_refuses_wrong_arguments(benchmark, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        benchmark("gpu").main([*arguments, "--out", str(tmp_path)])
    assert words in capsys.readouterr().err


def test_gpu_refuses_unknown_measurements_and_too_little_time(benchmark, tmp_path):
    gpu = benchmark("gpu")
    with pytest.raises(ConfigError, match="no measurement 'nope'; there are "):
        gpu.measure_here(gpu_options(out=tmp_path, only=["nope"]))
    with pytest.raises(ConfigError, match="more --minutes"):
        gpu.measure(gpu_options(out=tmp_path, minutes=0.01))


@pytest.mark.slow
def test_make_gpu_on_a_cpu(tmp_path):
    """From the pack to a run at home, with tiny sizes; what takes too long here may be missing."""
    clips = {f"{n}": generate_clip(n, num_frames=24, height=64, width=96) for n in range(4)}
    write_videos(clips, tmp_path / "videos")
    script = [sys.executable, BENCHMARKS / "gpu.py"]
    pack = ["pack", tmp_path / "videos", "--out", tmp_path / "pack", "--frames", "6"]
    subprocess.run([*script, *pack], check=True)
    variables = {
        "PYTHON": sys.executable,
        "DEVICE": "cpu",
        "QUICK": "1",
        "PACK": tmp_path / "pack",
        "OUT": tmp_path / "out",
        "RUN_OUT": tmp_path / "run",
        "MINUTES": "2",
    }
    command = ["make", "gpu", *(f"{name}={value}" for name, value in variables.items())]
    result = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "at home:" in result.stdout
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    names = ("peaks", "ViT-S/8, 480x854, ino-davis", "equal masks", "training, ViT-S/8")
    assert set(names) <= results["measured"].keys(), results
    assert set(results["measured"]["equal masks"].values()) >= {0.0}
    unpack = ["unpack", tmp_path / "out", "--run", tmp_path / "back"]
    subprocess.run([*script, *unpack], check=True)
    student = read_checkpoint(find_checkpoint(tmp_path / "back"))["student"]
    assert all(bool(value.isfinite().all()) for value in student.values())
    sequences = {"s": generate_clip(9, num_frames=4, height=64, width=96)}
    write_davis_layout(sequences, tmp_path / "davis")
    score = ["score", tmp_path / "back", "--davis", tmp_path / "davis", "--year", "2017"]
    score += ["--short-side", "64", "--judge", tmp_path / "videos" / "0.mp4"]
    subprocess.run([*script, *score, "--out", tmp_path / "scores"], check=True)
    rows = json.loads((tmp_path / "scores" / "table.json").read_text())["rows"]
    names = ["color", "untrained", "ino_vitt8", "carried"]
    assert [row["label"] for row in rows] == [
        f"{name},{protocol}" for protocol in ("ino-near", "ino-davis") for name in names
    ]
    for row in rows:
        assert {"J&F", "predicted J&F"} <= row["scores"].keys()
        assert all(0 <= one["measured"] <= 100 for one in row["scores"].values())
