"""Training that starts from weights: J&F on the way, with and without care for them.

    python benchmarks/starting.py --data VIDEOS --davis ROOT --out DIR [--init NAME] [--steps N]

Trains the recipe `tiny`, with smaller crops and batches, from weights whose heads are random, and
evaluates the student every `--every` steps on the DAVIS root's list of 2016. Rows:
`plain` trains all at one learning rate from the first step; `heads first` lets the heads learn
alone during the warm-up; `layer decay` has lower rates in earlier blocks; `default` is both.

Ratios: for each row the lowest score after the start minus the score of the start, in points of
J&F: `lowest_plain`, `lowest_default` and so on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ino.models.backbone import choose_device
from ino.models.load import load_backbone
from ino.pretraining import pretrain
from ino.propagate.tracker import Tracker
from ino.tasks.davis import evaluate_davis
from ino.tasks.results import sized_protocol
from ino.train.config import load_recipe
from report import build_parser, conclude, describe_machine, print_table

ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain": {"optim.heads_first_epochs": 0, "optim.layer_decay": 1.0},
    "heads first": {"optim.layer_decay": 1.0},
    "layer decay": {"optim.heads_first_epochs": 0},
}
SMALL = {
    "model.arch": "vit_tiny",
    "model.depth": 4,
    "views.global_size": 64,
    "views.local_size": 32,
    "views.num_local": 2,
    "data.batch_size": 3,
    "data.num_workers": 0,
    "optim.warmup_epochs": 1,
    "optim.freeze_last_layer_epochs": 0,
    "run.eval_year": 2016,
    "run.pictures_every": 0,
    "run.save_every": 100000,
}


def scores_of(changes: dict[str, Any], *, options: argparse.Namespace, out: Path) -> list[float]:
    """J&F in percent after every so many steps of a run."""
    settings = {
        **SMALL,
        "init": options.init,
        "optim.lr": options.lr,
        "optim.epochs": options.epochs,
        "data.root": str(options.data),
        "run.max_steps": options.steps,
        "run.eval_every": options.every,
        "run.eval_root": str(options.davis),
        "run.eval_protocol": options.protocol,
        "run.eval_short_side": options.side,
        **changes,
    }
    if not (out / "checkpoints").is_dir():
        pretrain(load_recipe("tiny", settings), out=out)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["eval_jf"] for line in lines if "eval_jf" in line]


def main() -> None:
    """Parses the arguments, trains each row and writes the table."""
    parser = build_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="videos to learn from")
    parser.add_argument("--davis", type=Path, required=True, help="labelled sequences")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--init", default="ino_vitt8", help="weights to start from")
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--every", type=int, default=25, help="steps between two scores")
    parser.add_argument("--protocol", default="ino-near", help="of propagation")
    parser.add_argument("--side", type=int, default=240, help="short side of frames in pixels")
    parser.add_argument("--lr", type=float, default=0.02, help="optim.lr")
    parser.add_argument("--epochs", type=int, default=6, help="length of the schedules")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = evaluate_davis(
        options.davis,
        out=options.out / "start",
        tracker=Tracker(
            load_backbone(options.init),
            protocol=sized_protocol(options.protocol, short_side=options.side),
            device=choose_device("cpu"),
        ),
        year=2016,
        split="val",
        overwrite=True,
    )
    assert start is not None
    first = 100 * start.jf_mean
    rows, ratios, measured = [], {}, {}
    for name in options.rows:
        scores = scores_of(ROWS[name], options=options, out=options.out / name.replace(" ", "-"))
        rows.append([name, *(f"{score:.1f}" for score in (first, *scores))])
        ratios[f"lowest_{name.replace(' ', '_')}"] = min(scores) - first
        measured[name] = [first, *scores]
        steps = [str(options.every * count) for count in range(len(scores) + 1)]
        print_table("J&F after steps", ["", *steps], rows)
    conclude(
        "starting",
        ratios=ratios,
        machine=describe_machine(precision="as the recipe decides"),
        measured=measured,
        path=options.json,
    )


if __name__ == "__main__":
    main()
