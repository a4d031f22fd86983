"""Time and memory of the propagation of one frame over frame size, context, radius and objects.

    python benchmarks/propagation_sweep.py [--quick] [--json FILE] [--threads N]

Features are smooth random maps of 384 dimensions with a stride of 8 pixels; networks and images
take no part. Each case runs in a process of its own: `ino` as it is by default (bf16 first where
the processor multiplies it, ranked in fp32), `ino fp32`, and the plain reference, which computes
all affinities of all positions at once, where that takes less than 3 GiB. Labels of the sides are
compared. Seconds are those of the fastest of three frames (one where a frame takes longer than 5
seconds); memory is the peak above that of a process that only imports, maps included.

Ratios: `speedup_FRAME_CONTEXT_RADIUS_OBJECTS` of `ino` over the reference, and `gib_...` of `ino`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ino.kernels.topk import TiledMatcher, Window
from ino.models.backbone import computes_in_bf16
from ino.propagate.affinity import propagate_labels
from reference import plain_propagation, square_window
from report import (
    GIB,
    DifferentResultsError,
    build_parser,
    conclude,
    describe_machine,
    peak_bytes,
    print_table,
)

STRIDE, DIM, TOPK, TEMPERATURE = 8, 384, 5, 0.1
LARGEST_PLAIN = 3 * GIB
LARGEST_SHARE = 1e-3
"""Of the positions whose best label may differ by rounding."""


class Case(NamedTuple):
    """What is propagated: frame in pixels, context frames beside the first, window, objects."""

    height: int
    width: int
    context: int = 10
    radius: int | None = 40
    objects: int = 2

    @property
    def name(self) -> str:
        return f"{self.height}x{self.width}_{self.context}_{self.radius}_{self.objects}"

    @property
    def grid(self) -> tuple[int, int]:
        return self.height // STRIDE, self.width // STRIDE

    @property
    def plain_bytes(self) -> int:
        """Of the reference: affinities, and as much again while it changes them."""
        tokens = self.grid[0] * self.grid[1]
        return 2 * 4 * tokens**2 * (1 + self.context)


BASE = Case(480, 854)
FULL = [
    *(Case(height, width) for height, width in ((240, 426), (480, 854), (720, 1280), (1080, 1920))),
    *(BASE._replace(context=context) for context in (5, 20)),
    *(BASE._replace(radius=radius) for radius in (12, 24, None)),
    *(BASE._replace(objects=objects) for objects in (1, 50, 200)),
    Case(720, 1280, context=20, radius=50),
]
QUICK = [Case(160, 240, context=3, radius=8)]
SIDES = ("ino", "ino fp32", "reference")


def smooth_maps(case: Case) -> list[Tensor]:
    """The maps of the context and of the query: one pattern that moves, and noise."""
    generator = torch.Generator().manual_seed(0)
    height, width = case.grid
    coarse = torch.randn(1, DIM, height // 5 + 2, width // 5 + 2, generator=generator)
    pattern = F.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0)
    maps = []
    for number in range(2 + case.context):
        noise = 0.1 * torch.randn(height, width, DIM, generator=generator)
        maps.append(F.normalize(pattern.roll((number, number), dims=(0, 1)) + noise, dim=-1))
    return maps


def side_of(name: str, case: Case, keys: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """What propagates labels of the context, the same for each of its maps, to a query."""
    if name == "reference":
        window = square_window(
            *case.grid, radius=max(case.grid) if not case.radius else case.radius
        )
        return lambda query, labels: plain_propagation(
            query, keys, [labels] * len(keys), window, topk=TOPK, temperature=TEMPERATURE
        )
    screening = name == "ino" and computes_in_bf16(torch.device("cpu"))
    matcher = TiledMatcher(topk=TOPK, window=Window(case.radius), screening=screening)
    maps = [matcher.prepare(key) for key in keys]

    def propagate(query: Tensor, labels: Tensor) -> Tensor:
        (found,) = matcher.match(matcher.prepare(query), maps, [range(len(maps))])
        return propagate_labels(found, [labels] * len(keys), topk=TOPK, temperature=TEMPERATURE)

    return propagate


def run_child(name: str, case: Case) -> None:
    """Prints seconds, the peak of this process and the best label of each position as JSON."""
    seconds: list[float] = []
    best = torch.zeros(0)
    if name != "baseline":
        *keys, query = smooth_maps(case)
        generator = torch.Generator().manual_seed(1)
        labels = torch.rand(*case.grid, 1 + case.objects, generator=generator).softmax(dim=-1)
        propagate = side_of(name, case, keys)
        while len(seconds) < 3 and (not seconds or seconds[0] < 5):
            started = time.perf_counter()
            best = propagate(query, labels).argmax(dim=-1)
            seconds.append(time.perf_counter() - started)
    found = {"seconds": seconds, "peak": peak_bytes(), "labels": best.flatten().tolist()}
    print(json.dumps(found))


def child(name: str, case: Case, *, threads: int) -> dict:
    """What the child prints."""
    command = [sys.executable, __file__, "--child", name, "--case", json.dumps(case)]
    command += ["--threads", str(threads)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def measure(case: Case, *, threads: int, baseline: int) -> dict[str, dict[str, float]]:
    """Seconds and GiB by side.

    Raises:
        DifferentResultsError: labels differ by more than rounding.
    """
    names = [name for name in SIDES if name != "reference" or case.plain_bytes < LARGEST_PLAIN]
    found = {name: child(name, case, threads=threads) for name in names}
    first = torch.tensor(found["ino fp32"]["labels"])
    for name in names:
        share = (torch.tensor(found[name]["labels"]) != first).float().mean().item()
        if share > LARGEST_SHARE:
            raise DifferentResultsError(f"{share:.2%} of the labels of {name} differ: {case.name}")
    return {
        name: {"seconds": min(one["seconds"]), "gib": (one["peak"] - baseline) / GIB}
        for name, one in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    parser.add_argument("--child", choices=["baseline", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.child:
        run_child(options.child, Case(*options.case))
        return
    machine = describe_machine(precision="fp32")
    cases = QUICK if options.quick else FULL
    baseline = child("baseline", cases[0], threads=options.threads)["peak"]
    measured = {
        case.name: measure(case, threads=options.threads, baseline=baseline) for case in cases
    }
    rows = [
        [name, *(f"{found[s]['seconds']:.3g}" if s in found else "" for s in SIDES)]
        + [f"{found[s]['gib']:.2f}" if s in found else "" for s in SIDES]
        for name, found in measured.items()
    ]
    print_table("Seconds, then GiB", ["frame context radius objects", *SIDES, *SIDES], rows)
    ratios = {f"gib_{name}": found["ino"]["gib"] for name, found in measured.items()}
    for name, found in measured.items():
        if "reference" in found:
            ratio = found["reference"]["seconds"] / found["ino"]["seconds"]
            ratios[f"speedup_{name}"] = ratio
    conclude(
        "propagation_sweep", ratios=ratios, machine=machine, measured=measured, path=options.json
    )


if __name__ == "__main__":
    main()
