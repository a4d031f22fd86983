"""The measurements of `gpu.py measure`, in the order of their worth.

Propagation is measured from decoded frames in memory to label maps in memory, and once more from
JPEG files to written masks. Training is `ino.train.loop.train` on packed frames. A share of the
peak counts the multiplications that are needed (see `tracking.py` and `scaling.py`) over those of
one large matrix product in bf16 on the same device.
"""

import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import cv2
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ino.demo.synthetic import generate_clip
from ino.errors import StoppedError
from ino.kernels.topk import Window
from ino.models.backbone import VitBackbone, choose_device
from ino.models.load import load_backbone
from ino.propagate.features import FeatureExtractor
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import Protocol, get_protocol
from ino.propagate.tracker import Tracker
from ino.tasks.results import propagate_masks
from ino.train.config import TrainConfig, load_recipe, resolve
from ino.train.loop import train
from scaling import count_operations
from tracking import bf16_peak, flops, synchronize

ROOT = Path(__file__).parent.parent
Numbers = dict[str, float | int | str]


class TimeUpError(Exception):
    """A measurement has used up its time."""


class Sizes(NamedTuple):
    """What is measured; `TINY` only shows that it runs."""

    height: int
    width: int
    num_frames: int
    batch: int
    small8: str
    small16: str
    large: str
    large_size: tuple[int, int]
    clips: int
    num_clips: int


FULL = Sizes(
    *(480, 854, 32, 8, "random:vit_small/8", "random:vit_small/16"),
    *("random:vit_large_patch16_dinov3", (960, 1280), 32, 96),
)
TINY = Sizes(
    *(64, 96, 6, 2, "random:vit_nano/8", "random:vit_nano/16"),
    *("random:vit_nano/16", (64, 96), 2, 6),
)


@dataclass
class Place:
    """The device, and what measurements share."""

    device: torch.device
    quick: bool
    machine: dict[str, Any]
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ino-gpu-")))

    @classmethod
    def of(cls, name: str, *, quick: bool) -> "Place":
        device = choose_device(name)
        on_cuda = device.type == "cuda"
        machine = {
            "device": torch.cuda.get_device_name() if on_cuda else platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sizes": "tiny" if quick else "full",
        }
        return cls(device, quick, machine)

    @property
    def sizes(self) -> Sizes:
        return TINY if self.quick else FULL

    @cached_property
    def clip(self) -> Any:
        """Decoded frames and the first mask."""
        sizes = self.sizes
        return generate_clip(
            0, num_frames=sizes.num_frames, height=sizes.height, width=sizes.width, num_objects=2
        )

    @cached_property
    def peak(self) -> float:
        """FLOP a second of a large product of bf16 matrices."""
        return bf16_peak(self.device, size=8192 if self.device.type == "cuda" else 256)

    def is_lost(self) -> bool:
        """Whether nothing works on the device any more, as after an illegal access."""
        try:
            torch.ones(1, device=self.device).sum().item()
        except RuntimeError:
            return True
        return False

    def refuse_tiny(self, compiles: bool) -> None:
        """Raises where compiling would take longer than all else."""
        if compiles and self.quick:
            raise RuntimeError("left out with --quick")

    def protocol(self, name: str) -> Protocol:
        if not self.quick:
            return get_protocol(name)
        return get_protocol(name, short_side=64, radius=2, num_context=2)


class Measure(NamedTuple):
    """A measurement: its name, the most seconds that it may take, and what it does."""

    name: str
    limit: float
    run: Callable[[Place, float], Numbers]


def take(measure: Measure, place: Place, limit: float) -> Numbers:
    """Takes a measurement; raises TimeUpError at the limit, where it is not stuck in a call."""

    def stop(*_: object) -> None:
        raise TimeUpError(f"took longer than {limit:.0f} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    signal.setitimer(signal.ITIMER_REAL, limit)
    started = time.perf_counter()
    try:
        found = measure.run(place, limit)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if place.device.type == "cuda":
        found["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found | {"seconds taken": time.perf_counter() - started}


def peaks(place: Place, limit: float) -> Numbers:
    """What the device reaches: a product in bf16 and in fp32 by TF32, and a copy."""
    device, on_cuda = place.device, place.device.type == "cuda"
    found: Numbers = {"bf16, TFLOP/s": place.peak / 1e12}
    block = torch.empty((1 << 30) if on_cuda else (1 << 24), dtype=torch.uint8, device=device)
    other = torch.empty_like(block)
    seconds = least_seconds(device, lambda: other.copy_(block))
    found["copy, TB/s read and written"] = 2 * block.nbytes / seconds / 1e12
    return found


def least_seconds(device: torch.device, act: Callable[[], Any], repeats: int = 5) -> float:
    """The least of several calls after one that warms up."""
    best = float("inf")
    for _ in range(1 + repeats):
        synchronize(device)
        started = time.perf_counter()
        act()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def build_tracker(
    place: Place, backbone: str, protocol: str | Protocol, *, compiles: bool = False
) -> Tracker:
    """In bf16, with random weights; blocks compiled if asked for."""
    network = load_backbone(backbone)
    if isinstance(protocol, str):
        protocol = place.protocol(protocol)
    if compiles:
        for block in vit_of(network).blocks:
            block.compile()
    return Tracker(network, protocol=protocol, device=place.device, precision="bf16", warns=False)


def vit_of(network: Any) -> Any:
    """The ViT of a backbone, ours or timm's."""
    return network.vit if isinstance(network, VitBackbone) else network.network


def propagation(
    backbone: str, protocol: str, *, batch: int | None = None, compiles: bool = False
) -> Callable[[Place, float], Numbers]:
    """Frames per second from frames in memory to label maps in memory."""

    def run(place: Place, limit: float) -> Numbers:
        place.refuse_tiny(compiles)
        sizes = place.sizes
        name = getattr(sizes, backbone)
        tracker = build_tracker(place, name, protocol, compiles=compiles)
        frames, mask = place.clip.frames, place.clip.labels[0]
        if backbone == "large":
            height, width = sizes.large_size
            frames = np.stack([cv2.resize(one, (width, height)) for one in frames])
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        count = batch or sizes.batch
        seconds, num_frames = timed_frames(place, tracker, frames, mask, batch=count, limit=limit)
        found: Numbers = {
            "frames per second": num_frames / seconds,
            "milliseconds per frame": 1000 * seconds / num_frames,
            "frames together": count,
        }
        network: Any = tracker._extractor._backbone
        if tracker.protocol.attention_side is None:
            described: Any = SimpleNamespace(
                stride=network.stride, num_layers=network.num_layers, vit=vit_of(network)
            )
            work = flops(described, tracker.protocol, (frames.shape[1], frames.shape[2]))
            found["GFLOP per frame"] = work / 1e9
            found["share of bf16 peak"] = work * num_frames / seconds / place.peak
        return found

    return run


def timed_frames(
    place: Place,
    tracker: Tracker,
    frames: np.ndarray,
    mask: np.ndarray,
    *,
    batch: int,
    limit: float,
) -> tuple[float, int]:
    """Seconds and frames after those that fill the context, in at most half of the time left."""
    skipped = 1 + tracker.protocol.num_context + 2 * batch
    longest = 12 * batch if not place.quick else 2 * batch
    started, taken, end = 0.0, 0, time.perf_counter() + limit
    endless = itertools.islice(itertools.cycle(frames), skipped + longest)

    def until_late() -> Iterator[np.ndarray]:
        for frame in endless:
            if time.perf_counter() < end - limit / 4:
                yield frame

    for number, _ in enumerate(tracker.track(until_late(), {0: mask}, batch=batch), start=1):
        if number == skipped:
            synchronize(place.device)
            started = time.perf_counter()
        taken = number - skipped
    synchronize(place.device)
    if taken <= 0:
        raise TimeUpError("the context was not full in time")
    return time.perf_counter() - started, taken


def stages(place: Place, limit: float) -> Numbers:
    """Milliseconds per frame of each stage alone: where the time of `davis` goes."""
    sizes, device = place.sizes, place.device
    protocol = place.protocol("ino-davis")
    extractor = FeatureExtractor(
        load_backbone(sizes.small8), protocol=protocol, device=device, precision="bf16"
    )
    frames = list(place.clip.frames[: sizes.batch])
    images = extractor.prepare_batch(frames)
    features = extractor.read_batch(images)
    found: Numbers = {
        "upload and normalize": least_seconds(device, lambda: extractor.prepare_batch(frames)),
        "network": least_seconds(device, lambda: extractor.read_batch(images)),
    }
    for name, backend in (
        ("network, flash attention", SDPBackend.FLASH_ATTENTION),
        ("network, cuDNN attention", SDPBackend.CUDNN_ATTENTION),
    ):
        with suppress(RuntimeError), sdpa_kernel(backend):
            found[name] = least_seconds(device, lambda: extractor.read_batch(images))
    found = {name: 1000 * float(seconds) / len(frames) for name, seconds in found.items()}
    propagator = Propagator(protocol)
    soft = torch.rand(*features.shape[1:3], 3, device=device).softmax(dim=-1)
    for number in range(1 + protocol.num_context):
        propagator.step(features[number % len(features)], soft if number == 0 else None)
    reference = propagator.memory.references[0]
    context = propagator.memory.context(reference)
    query = propagator.memory.latest.features
    found["matching"] = 1000 * least_seconds(
        device, lambda: propagator._candidates(query, [context])
    )
    found["a step of propagation"] = 1000 * least_seconds(
        device, lambda: propagator.step(features[0])
    )
    return found


def blocks(place: Place, limit: float) -> Numbers:
    """Milliseconds of matching a frame with 11 others, by sizes in `ino.kernels.topk_triton`."""
    from ino.kernels import topk_triton

    sizes, protocol = place.sizes, place.protocol("ino-davis")
    if place.device.type != "cuda":
        raise RuntimeError("the kernel needs a CUDA device")
    extractor = FeatureExtractor(
        load_backbone(sizes.small8), protocol=protocol, device=place.device, precision="bf16"
    )
    features = extractor.read_batch(extractor.prepare_batch(list(place.clip.frames[:12])))
    found: Numbers = {}
    names = ("_ROWS", "_COLUMNS", "_KEYS", "_DIMS", "_WARPS")
    for values in BLOCKS:
        matcher = topk_triton.TritonMatcher(topk=protocol.topk, window=Window(protocol.radius))
        query, *keys = (matcher.prepare(one) for one in features)
        with ExitStack() as held, suppress(RuntimeError):
            for name, value in zip(names, values, strict=True):
                held.enter_context(patch.object(topk_triton, name, value))
            match = partial(matcher.match, query, keys, [list(range(len(keys)))])
            seconds = least_seconds(place.device, match)
            found["x".join(map(str, values))] = 1000 * seconds
    return found


BLOCKS = (
    (8, 8, 64, 64, 4),
    (8, 8, 32, 64, 4),
    (8, 16, 64, 64, 8),
    (16, 8, 64, 64, 8),
    (8, 16, 32, 64, 8),
    (8, 8, 64, 128, 4),
    (4, 16, 64, 64, 4),
)
"""Rows and columns of queries, keys, dimensions, warps."""


def equal_masks(place: Place, limit: float) -> Numbers:
    """Shares of pixels that differ from those of one frame at a time on the CPU, in fp32."""
    sizes, protocol = place.sizes, place.protocol("ino-davis")
    if not place.quick:  # the CPU is slow: a smaller frame
        protocol = get_protocol("ino-davis", short_side=240)
    frames, mask = place.clip.frames[:10], place.clip.labels[0]
    labels = {}
    for name, device, batch in (
        ("CPU", "cpu", 1),
        ("device", str(place.device), 1),
        ("device, batches", str(place.device), sizes.batch),
    ):
        tracker = Tracker(
            load_backbone(sizes.small8), protocol=protocol, device=device, warns=False
        )
        labels[name] = np.stack(list(tracker.track(frames, {0: mask}, batch=batch)))
    return {
        f"pixels that differ, {name}": float(np.mean(found != labels["CPU"]))
        for name, found in labels.items()
        if name != "CPU"
    }


def files(backbone: str, protocol: str) -> Callable[[Place, float], Numbers]:
    """Frames per second from JPEG files to written masks, as `ino evaluate davis` works."""

    def run(place: Place, limit: float) -> Numbers:
        clip, repeats = place.clip, 1 if place.quick else 8
        folder = place.folder / f"jpeg_{backbone}"
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, frame in enumerate(itertools.chain(*([clip.frames] * repeats))):
            paths.append(folder / f"{number:05d}.jpg")
            cv2.imwrite(str(paths[-1]), frame[..., ::-1])
        from ino.data.label_maps import write_labels

        write_labels(folder / "mask.png", clip.labels[0])
        tracker = build_tracker(place, getattr(place.sizes, backbone), protocol)
        stamps: list[float] = []

        def write(name: str, frames: list[Path]) -> None:
            propagate_masks(
                frames,
                {0: folder / "mask.png"},
                place.folder / name,
                tracker=tracker,
                wanted={path.stem for path in frames},
                on_frame=lambda: stamps.append(time.perf_counter()),
            )

        write("warm", paths[: 2 * place.sizes.batch + 1])  # starts what reads and writes
        stamps.clear()
        write("masks", paths)
        skipped = len(stamps) // 4
        seconds = stamps[-1] - stamps[skipped]
        return {"frames per second": (len(stamps) - 1 - skipped) / seconds, "frames": len(stamps)}

    return run


def tests(place: Place, limit: float) -> Numbers:
    """The project's tests that need a GPU; a failed one is an error."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    if place.quick:
        command += ["--collect-only", "tests/kernels"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit
    )
    last = result.stdout.strip().splitlines()[-1:] or [result.stderr.strip()[-200:]]
    if result.returncode:
        raise RuntimeError(last[0])
    return {"result": last[0]}


def training_config(
    place: Place, *, compiles: bool = False, clips: int | None = None
) -> TrainConfig:
    """ViT-S/8 on the paper's crops, frames as files."""
    pack = packed(place)
    sizes = place.sizes
    values: dict[str, Any] = {
        "data.root": [str(pack)],
        "data.frame_step": 1,
        "data.batch_size": clips or sizes.clips,
        "data.clips_per_video": 50,
        "run.accelerator": place.device.type,
        "run.compile": compiles,
        "run.log_every": 1 if place.quick else 10,
        "run.save_every": 1_000_000,
        "run.pictures_every": 0,
        "run.max_steps": 3 if place.quick else 0,
    }
    if place.quick:
        values |= {
            "model.arch": "vit_nano",
            "model.out_dim": 64,
            "model.hidden_dim": 64,
            "model.bottleneck_dim": 32,
            "views.global_size": 32,
            "views.local_size": 16,
            "views.num_local": 2,
            "data.num_workers": 0,
        }
    return resolve(load_recipe("ino_vits8_kinetics400", values))


def packed(place: Place) -> Path:
    """Generated frames in tar files, as `gpu.py pack` writes them."""
    from gpu_train import write_pack

    folder = place.folder / "pack"
    if not folder.is_dir():
        pieces = (
            (f"{seed:03d}", generate_clip(seed, num_frames=8, height=256, width=340).frames)
            for seed in range(2 if place.quick else 16)
        )
        # Each piece several times: what is decoded matters here, not what is learned.
        again = ((f"{name}_{n}", frames) for name, frames in pieces for n in range(4))
        write_pack(again, folder, max_bytes=64 << 20, quality=80, num_shards=16)
    return folder / "*.tar"


def training(
    *, compiles: bool = False, clips: int | None = None
) -> Callable[[Place, float], Numbers]:
    """Clips per second of `ino train`, with decoding and crops."""

    def run(place: Place, limit: float) -> Numbers:
        place.refuse_tiny(compiles)
        config = training_config(place, compiles=compiles, clips=clips)
        with tempfile.TemporaryDirectory(dir=place.folder) as folder:
            out = Path(folder) / "run"
            with stopping_after(0.8 * limit), suppress(StoppedError):
                train(config, out=out)
            lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        found = [line for line in lines if "clips_per_second" in line]
        found = found[min(len(found) - 1, 2) :]  # the first ones start and compile
        rates = [line["clips_per_second"] for line in found]
        work = count_operations(config)
        return {
            "clips per second": float(np.median(rates)),
            "clips per step": config.data.batch_size,
            "share of bf16 peak": float(np.median(rates)) * work / place.peak,
            "share of time waiting for data": float(np.median([x["waiting"] for x in found])),
            "steps": len(lines),
        }

    return run


@contextmanager
def stopping_after(seconds: float) -> Iterator[None]:
    """Asks a training in this block to stop after so many seconds, as a batch system does."""
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.daemon = True
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # between two trainings
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


MEASURES = (
    Measure("peaks", 15, peaks),
    Measure("ViT-S/8, 480x854, ino-davis", 25, propagation("small8", "ino-davis")),
    Measure("equal masks", 30, equal_masks),
    Measure("stages of that", 20, stages),
    Measure("ViT-S/8, 480x854, ino-davis, from JPEG to PNG", 25, files("small8", "ino-davis")),
    Measure("training, ViT-S/8", 45, training()),
    Measure("ViT-S/16, 480x854, ino-davis", 15, propagation("small16", "ino-davis")),
    Measure("ViT-L/16, 960x1280, dinov3", 30, propagation("large", "dinov3")),
    Measure(
        "ViT-S/8, 480x854, ino-davis, compiled",
        45,
        propagation("small8", "ino-davis", compiles=True),
    ),
    Measure(
        "ViT-S/8, 480x854, ino-davis, frame by frame",
        15,
        propagation("small8", "ino-davis", batch=1),
    ),
    Measure("ViT-S/8, 480x854, ino-near", 15, propagation("small8", "ino-near")),
    Measure("tests marked gpu", 60, tests),
    Measure("matching by blocks", 40, blocks),
    Measure("training, ViT-S/8, compiled", 90, training(compiles=True)),
    Measure("ViT-S/8, 480x854, ino-fast", 15, propagation("small8", "ino-fast")),
    Measure("ViT-S/16, 480x854, ino-davis, from JPEG to PNG", 20, files("small16", "ino-davis")),
    Measure(
        "ViT-L/16, 960x1280, dinov3, compiled", 60, propagation("large", "dinov3", compiles=True)
    ),
    Measure("training, ViT-S/8, steps of the paper", 30, training(clips=4)),
)
