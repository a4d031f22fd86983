"""Files in the form of each release, with weights that are a formula of their names."""

import argparse
import zlib
from collections import Counter, OrderedDict
from functools import cache

import numpy as np
import torch

METHODS = (
    "dino",
    "dinov2_vits14",
    "dinov3_vits16",
    "crw",
    "vfs_r18",
    "dul",
    "timecycle",
    "contcorr",
    "mast",
    "corrflow",
)
NOT_BY_FORMULA = {
    "normalize.mean": torch.tensor([0.485, 0.456, 0.406]),
    "normalize.std": torch.tensor([0.229, 0.224, 0.225]),
}


def drawn(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """An input whose seed is stored with the golden features."""
    numbers = np.random.RandomState(seed).standard_normal(shape)
    return torch.from_numpy(numbers.astype(np.float16).astype(np.float32))


@cache
def by_formula(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights of a name, which the golden features were computed with; not to be changed."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    state = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    r = state.standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        r = 1 + np.float32(0.02) * np.abs(r)
    elif key.endswith("running_mean"):
        r = np.float32(0.02) * r
    elif len(shape) <= 1 and key.endswith(("weight", "gamma")):
        r = 1 + np.float32(0.02) * r
    else:
        r = np.float32(0.02 if len(shape) <= 1 else 0.05) * r
    return torch.from_numpy(np.asarray(r, dtype=np.float32))


def formula_weights(golden: dict, method: str) -> dict[str, torch.Tensor]:
    """The state dict of a method, with exactly the keys and shapes of its release."""
    weights = OrderedDict()
    for key, text in zip(golden[f"{method}/keys"], golden[f"{method}/shapes"], strict=True):
        key, shape = str(key), tuple(int(side) for side in str(text).split("x") if side)
        if key in NOT_BY_FORMULA:
            weights[key] = NOT_BY_FORMULA[key]
        elif key == "rope_embed.periods":
            weights[key] = torch.from_numpy(golden[f"{method}/rope_periods"])
        elif key.endswith("bias_mask"):
            weights[key] = torch.from_numpy(golden[f"{method}/bias_mask_block0"])
        else:
            weights[key] = by_formula(key, shape)
    return weights


def prefixed(weights: dict, prefix: str) -> OrderedDict:
    return OrderedDict((prefix + key, value) for key, value in weights.items())


def options() -> argparse.Namespace:
    return argparse.Namespace(lr=0.1, arch="any", epochs=3)


def released(method: str, weights: dict) -> dict:
    """What the method's own code saves."""
    optimizer = {"state": {}, "param_groups": [{"lr": np.float64(0.1), "params": [0, 1]}]}
    if method == "crw":
        scheduler = {"milestones": Counter([5, 10]), "last_epoch": 3}
        return {
            "model": weights,
            "optimizer": optimizer,
            "lr_scheduler": scheduler,
            "epoch": 3,
            "args": options(),
        }
    if method == "vfs_r18":
        return {"state_dict": weights, "meta": {}}
    if method == "dul":
        return {"model": weights, "opt": optimizer, "score": np.float64(0.5), "epoch": 3}
    if method == "mast":
        return {"epoch": 3, "state_dict": weights, "optimizer": optimizer}
    if method in ("corrflow", "timecycle", "contcorr"):
        return {"epoch": 3, "state_dict": prefixed(weights, "module."), "best_loss": 0.5}
    return dict(weights)
