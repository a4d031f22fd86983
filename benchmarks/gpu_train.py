"""Training on a GPU that is at hand for some minutes: what it is given, and what it gives back.

**Pack.** Frames as JPEG in tar files, a folder for each piece of a video, which `ino train` reads
as shards (see `ino.data.shards`): no video is decoded beside the GPU. Pieces are taken from all
videos in turn until the size is reached, so short and long videos count alike.

**Carried home.** The run itself stays, with everything in fp32, in the folder --run, and the next
part goes on there. What is written to --out is smaller: files of at most 15 MiB, `carried.0` and so
on, with the student in fp16, then, as far as --carry-megabytes allow, the teacher in fp16 and the
moments of AdamW in bf16. Lost are: the last 13 bits of each weight; the teacher, if left out, which
then starts as the student is; and the moments, if left out, which AdamW gathers again in some
hundred steps, its learning rate as in the schedule.
"""

import argparse
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ino.data.video import read_clip, read_info
from ino.data.video_index import find_videos
from ino.errors import CheckpointError, ConfigError, StoppedError, VideoError
from ino.models.weights import find_checkpoint, list_checkpoints, read_checkpoint
from ino.pretraining import with_steps
from ino.schema import checked
from ino.system import atomic_path, check_new_folder, new_folder
from ino.train.config import TrainConfig, from_dict, load_recipe, resolve, untrained_name
from ino.train.loop import train as train_run
from ino.train.run import CONFIG_NAME, read_config

CARRIED = "carried"
PART_BYTES = 15 << 20
ATTEMPT_STEPS = 60
"""Steps by which the speed is found before a run begins."""
MARGIN = 20.0
"""Seconds at the end for saving."""

Piece = tuple[str, np.ndarray]
"""A name and its frames."""


def pack(options: argparse.Namespace) -> None:
    """`gpu.py pack`."""
    check_new_folder(options.out)
    pieces = take_pieces(
        find_videos(options.videos),
        num_frames=options.frames,
        fps=options.fps,
        short_side=options.short_side,
        seed=options.seed,
    )
    num_pieces, num_bytes = write_pack(
        pieces,
        options.out,
        max_bytes=int(options.megabytes * 1e6),
        quality=options.jpeg,
        num_shards=16,
    )
    print(f"{num_pieces} pieces of {options.frames} frames, {num_bytes / 1e6:.1f} MB")


def take_pieces(
    names: Iterable[str], *, num_frames: int, fps: float, short_side: int, seed: int
) -> Iterator[Piece]:
    """A piece of each video in turn, in random order, until no video has another one."""
    rng = np.random.default_rng(seed)
    places: list[tuple[int, str, list[int]]] = []
    for number, name in enumerate(names):
        try:
            info = read_info(Path(name))
        except VideoError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        step = max(1, round(info.fps / fps))
        starts = range(0, info.num_frames - (num_frames - 1) * step, num_frames * step)
        for turn, start in enumerate(rng.permutation(list(starts)).astype(int)):
            places.append((turn, f"{number:05d}_{start:06d}", [number, int(start), step]))
    videos = list(names)
    rng.shuffle(places)
    for _, piece, (number, start, step) in sorted(places, key=lambda place: place[0]):
        chosen = range(start, start + num_frames * step, step)
        try:
            frames = read_clip(Path(videos[number]), chosen)
        except VideoError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        height, width = frames.shape[1:3]
        scale = min(1.0, short_side / min(height, width))
        size = (round(width * scale), round(height * scale))
        yield (
            piece,
            np.stack([cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in frames]),
        )


def write_pack(
    pieces: Iterable[Piece], folder: Path, *, max_bytes: int, quality: int, num_shards: int
) -> tuple[int, int]:
    """Writes pieces in turn to the shards of a new folder, until they would be too large; gives the
    number of pieces and of bytes.

    Raises:
        VideoError: there is no piece.
    """
    shards: list[list[tuple[str, bytes]]] = [[] for _ in range(num_shards)]
    num_pieces = num_bytes = 0
    for name, frames in pieces:
        found = []
        for number, frame in enumerate(frames):
            flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
            _, content = cv2.imencode(".jpg", frame[..., ::-1], flags)
            found.append((f"{name}/{number:03d}.jpg", content.tobytes()))
        grown = sum(512 + -(-len(content) // 512) * 512 for _, content in found)
        if num_bytes + grown > max_bytes - num_shards * 10240:
            break
        shards[num_pieces % num_shards] += found
        num_pieces, num_bytes = num_pieces + 1, num_bytes + grown
    if not num_pieces:
        raise VideoError("nothing was packed: give videos that are longer than a piece")
    new_folder(folder)
    for number, members in enumerate(shards):
        if not members:
            continue
        path = folder / f"{number:02d}.tar"
        with atomic_path(path) as temporary, tarfile.open(temporary, "w") as archive:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return num_pieces, sum(path.stat().st_size for path in folder.glob("*.tar"))


def train(options: argparse.Namespace) -> None:
    """`gpu.py train`: begins or goes on, stops in time, and carries home what there is."""
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    if (options.run / CONFIG_NAME).exists() or list_checkpoints(options.run):
        config = read_config(options.run)
    else:
        config = first_config(options)
    left = end - time.monotonic() - (2 if options.quick else MARGIN)
    if left <= 0:
        raise ConfigError(f"--minutes is {options.minutes}, but to start and to save takes longer")
    limit = int(options.carry_megabytes * 1e6)
    done = threading.Event()
    watcher = threading.Thread(
        target=_carry_each, args=(options.run, options.out, limit, done), daemon=True
    )
    timer = threading.Timer(left, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.daemon = True
    watcher.start()
    timer.start()
    try:
        train_run(config, out=options.run, resume=True)
        print("gpu: all steps are done")
    except StoppedError as error:
        print(f"gpu: {error}")
    finally:
        timer.cancel()
        done.set()
        watcher.join()
    print(afterwards(carry(options.run, options.out, max_bytes=limit), options.out))


def afterwards(content: Mapping[str, Any], out: Path) -> str:
    """What to do at home with what was carried there."""
    parts = ", ".join(name for name in ("student", "teacher", "optimizer") if content.get(name))
    return (
        f"gpu: step {content['step']} with {parts} is in {out}; at home:\n"
        f"  python benchmarks/gpu.py unpack {out} --run runs/carried\n"
        "  python benchmarks/gpu.py score runs/carried --davis DAVIS --judge VIDEOS... --out scores"
    )


def score(options: argparse.Namespace) -> None:
    """`gpu.py score`: one table of what was carried home, `ino_vitt8`, the carried network with
    random weights, and raw color; stopped, it goes on with the same command.

    Raises:
        InoError: see `ino.experiments.run.run_experiment`.
        ConfigError: a row failed.
    """
    from ino.experiments.rows import Experiment  # none of this is needed beside the GPU
    from ino.experiments.run import run_experiment

    config = from_dict(read_checkpoint(find_checkpoint(options.run))["config"])
    weights = {
        "color": "color",
        "untrained": untrained_name(config.model),
        "ino_vitt8": "ino_vitt8",
        "carried": str(options.run),
    }
    rows = {
        f"{name},{protocol}": {"weights": value, "protocol": protocol}
        for protocol in options.protocols
        for name, value in weights.items()
    }
    fields = {
        "title": "What a GPU learned in some minutes",
        "roots": {"davis": options.davis},
        "defaults": {"year": options.year, "short_side": options.short_side},
        "judge": list(map(str, options.judge)),
        "rows": rows,
    }
    experiment = checked(Experiment, fields)
    if run_experiment(experiment, out=options.out, may_train=False):
        raise ConfigError(f"a row of {options.out} failed, as is said above")


def root_of(pack: Path) -> str:
    """The shards of a pack, or the folder itself where it holds videos."""
    return str(pack / "*.tar") if any(pack.glob("*.tar")) else str(pack)


def first_config(options: argparse.Namespace) -> TrainConfig:
    """The configuration of a run whose schedules end when the minutes of all parts are over."""
    values: dict[str, Any] = dict(one.split("=", 1) for one in options.set)
    values = {
        "data.root": [root_of(options.pack)],
        "run.accelerator": options.device,
        **(TINY if options.quick else {}),
        **values,
    }
    config = resolve(load_recipe(options.recipe, values))
    if options.steps:
        return with_steps(config, options.steps)
    seconds = 60 * (options.total_minutes or options.minutes)
    started = time.monotonic()
    rate = steps_per_second(config, options, limit=seconds / 4)
    left = 0.9 * seconds - (time.monotonic() - started) - (2 if options.quick else MARGIN)
    steps = max(1, int(rate * left))
    print(f"gpu: {rate:.2f} steps per second, so {steps} steps in {seconds / 60:.1f} minutes")
    return with_steps(config, steps)


TINY = {
    "model.arch": "vit_nano",
    "model.out_dim": "64",
    "model.hidden_dim": "64",
    "model.bottleneck_dim": "32",
    "data.batch_size": "2",
    "data.num_workers": "0",
    "views.global_size": "32",
    "views.local_size": "16",
    "run.save_every": "2",
    "run.log_every": "1",
}


def steps_per_second(config: TrainConfig, options: argparse.Namespace, *, limit: float) -> float:
    """Of the end of a short run, which is thrown away."""
    folder = options.run.with_name(options.run.name + ".attempt")
    shutil.rmtree(folder, ignore_errors=True)
    # Seldom logged, as the run will be: the statistics of a logged step take time.
    every = 2 if options.quick else ATTEMPT_STEPS // 3
    attempt = with_steps(config, 3 * every + 1).with_values(
        {"run.log_every": every, "run.save_every": 10**6}
    )
    timer = threading.Timer(limit, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        train_run(attempt, out=folder)
    except StoppedError:
        pass
    finally:
        timer.cancel()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    logged = [line for line in lines if "clips_per_second" in line]
    if len(logged) < 2:
        raise ConfigError("steps take too long for so few minutes: give --steps or more --minutes")
    return logged[-1]["clips_per_second"] / config.data.batch_size


def _carry_each(run: Path, out: Path, max_bytes: int, done: threading.Event) -> None:
    """Carries each checkpoint as it comes, in case the machine is lost."""
    carried: Path | None = None
    while not done.wait(2.0):
        found = list_checkpoints(run)
        if found and found[-1] != carried:
            carried = found[-1]
            carry(run, out, max_bytes=max_bytes)


def carry(run: Path, out: Path, *, max_bytes: int) -> dict[str, Any]:
    """Writes the newest checkpoint of a run in small parts, as far as it fits; gives what fitted.

    Raises:
        CheckpointError: there is none, or not even the student fits.
    """
    found = list_checkpoints(run)
    if not found:
        raise CheckpointError(f"{run} has no checkpoint to carry home: give it more minutes")
    content = read_checkpoint(found[-1])
    optimizer = content["optimizer"]
    small = content | {
        "student": _rounded(content["student"], torch.float16),
        "teacher": None,
        "optimizer": None,
        "param_groups": optimizer["param_groups"],
        "scaler": None,
    }
    kept: dict[str, Any] = {}
    written = b""
    for more in (
        {},
        {"teacher": _rounded(content["teacher"], torch.float16)},
        {"optimizer": _rounded(optimizer["state"], torch.bfloat16)},
    ):
        tried = (kept or small) | more
        data = _as_bytes(tried)
        if len(data) <= max_bytes:
            kept, written = tried, data
        elif not kept:
            raise CheckpointError(
                f"the student alone takes {len(data) / 1e6:.0f} MB: give more --carry-megabytes"
            )
    num_parts = -(-len(written) // PART_BYTES)
    for number in range(num_parts):
        with atomic_path(out / f"{CARRIED}.{number}") as temporary:
            part = written[number * PART_BYTES : (number + 1) * PART_BYTES]
            # Each part names its step and their number, as a machine may be lost between two.
            temporary.write_bytes(f"{content['step']:010d} {num_parts:03d}\n".encode() + part)
    for path in out.glob(f"{CARRIED}.*"):
        if int(path.suffix[1:]) >= num_parts:
            path.unlink()
    return kept


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """Nested values with their matrices and vectors in another precision."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.ndim and value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _rounded(one, dtype) for name, one in value.items()}
    return value


def _as_bytes(content: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def unpack(options: argparse.Namespace) -> None:
    """`gpu.py unpack`: a run that `ino train --resume`, `ino evaluate` and all others take."""
    check_new_folder(options.run)
    content = read_carried(options.results)
    student = _rounded(content["student"], torch.float32)
    teacher = content["teacher"]
    moments = _rounded(content.pop("optimizer") or {}, torch.float32)
    content |= {
        "student": student,
        "teacher": student if teacher is None else _rounded(teacher, torch.float32),
        "optimizer": {"state": moments, "param_groups": content.pop("param_groups")},
    }
    new_folder(options.run)
    (options.run / "checkpoints").mkdir()
    path = options.run / "checkpoints" / f"step_{content['step']:08d}.pt"
    with atomic_path(path) as temporary:
        torch.save(content, temporary)
    print(f"{path} is made")


def read_carried(folder: Path) -> dict[str, Any]:
    """What `carry` wrote.

    Raises:
        CheckpointError: a part is missing, or of another step.
    """
    paths = sorted(folder.glob(f"{CARRIED}.*"), key=lambda path: int(path.suffix[1:]))
    parts = [path.read_bytes().partition(b"\n") for path in paths]
    heads = {head for head, _, _ in parts}
    if len(heads) != 1 or len(parts) != int(next(iter(heads)).split()[1]):
        raise CheckpointError(
            f"{folder} does not hold all parts of one checkpoint ({CARRIED}.0 and so on): copy "
            "them again"
        )
    return torch.load(
        io.BytesIO(b"".join(part for _, _, part in parts)), weights_only=True, map_location="cpu"
    )
