"""What `variant` sets: the points on which the paper's text and the released code differ."""

from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {
        "data.frame_step": 8,
        "data.fps": 0.0,
        "views.colour_on_global": True,
        "masking.kind": "blockwise",
        "masking.shared": False,
        "loss.center_update": "step",
        "loss.out_mean": "each",
        "loss.affinity_on": "distributions",
        "optim.first_epoch": 0,
        "optim.freeze_last_layer_epochs": 1,
    },
    "released": {
        "data.frame_step": 0,
        "data.fps": 8.0,
        "views.colour_on_global": False,
        "masking.kind": "random",
        "masking.shared": True,
        "loss.center_update": "group",
        "loss.out_mean": "joint",
        "loss.affinity_on": "logits",
        "optim.first_epoch": 1,
        "optim.freeze_last_layer_epochs": 0,
    },
}
"""Where the two variants differ; docs/paper-and-code.md tells what each difference does."""
