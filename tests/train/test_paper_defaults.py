"""`variant: paper` is what the paper says: every number, and the views and losses made of them."""

import dataclasses
import re

import numpy as np
import pytest
import torch

import ino.train.data
from data.video_files import moving_frames, write_video
from ino.data.views import CropGeometry
from ino.kernels.crops import PLAIN, Photometric
from ino.losses import Objective
from ino.train.config import RECIPES, TrainConfig, flatten, load_recipe, resolve, to_dict
from ino.train.data import find_source, sample_views

PAPER = {
    # section 4.1, and the released code where the paper is silent
    "model.arch": "vit_small",
    "model.patch_size": 8,
    "model.depth": 12,
    "model.positions": "learned",  # DINO's, whose noise they start from
    "model.drop_path": 0.1,
    "model.out_dim": 4096,
    "model.hidden_dim": 2048,
    "model.bottleneck_dim": 256,
    "data.clip_length": 4,
    "data.frame_step": 8,
    "data.fps": 0.0,
    "data.clips_per_video": 5,
    "data.sampling": "uniform",
    "data.cuts": "allow",
    "data.batch_size": 4,
    # section 3.2 and 4.4 (4.1 has the two scales swapped)
    "views.global_size": 224,
    "views.global_scale": [0.8, 0.95],
    "views.num_local": 8,
    "views.local_size": 64,
    "views.local_scale": [0.05, 0.8],
    "views.ratio": [3 / 4, 4 / 3],
    "views.flip": 0.5,
    "views.jitter": 0.8,
    "views.brightness": 0.4,
    "views.contrast": 0.4,
    "views.saturation": 0.2,
    "views.hue": 0.1,
    "views.grey": 0.2,
    "views.local_blur": 0.5,
    "views.blur_sigma": [0.1, 2.0],
    "views.color_on_global": True,
    # section 3.3
    "masking.probability": 0.5,
    "masking.ratio": [0.1, 0.5],
    "masking.kind": "blockwise",
    "masking.shared": False,
    # section 3.1 and Eq. 1 to 6
    "loss.g2g": 1.0,
    "loss.l2g": 1.0,
    "loss.masked": 1.0,
    "loss.affinity": 1.0,
    "loss.extra": "",
    "loss.extra_weight": 1.0,
    "loss.teacher_temperature": 0.04,
    "loss.student_temperature": 0.1,
    "loss.affinity_teacher_temperature": 0.04,
    "loss.affinity_student_temperature": 0.1,
    "loss.center_momentum": 0.9,
    "loss.center_update": "step",
    "loss.out_mean": "each",
    "loss.affinity_on": "distributions",
    "optim.epochs": 25,
    "optim.lr": 3e-4,
    "optim.min_lr": 1e-6,
    "optim.warmup_epochs": 2.0,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.4,
    "optim.teacher_momentum": 0.996,
    "optim.clip_grad": 3.0,
    "optim.first_epoch": 0,
    "optim.freeze_last_layer_epochs": 1,
    "optim.heads_first_epochs": "auto",  # 0 from random weights
    "optim.layer_decay": "auto",  # and 1
}
CHARADES = {"optim.lr": 3e-3, "optim.warmup_epochs": 5.0}
RELEASED = {
    "data.frame_step": 0,
    "data.fps": 8.0,
    "views.color_on_global": False,
    "masking.kind": "random",
    "masking.shared": True,
    "loss.center_update": "group",
    "loss.out_mean": "joint",
    "loss.affinity_on": "logits",
    "optim.first_epoch": 1,
    "optim.freeze_last_layer_epochs": 0,
}
OF_THE_MACHINE = {
    "variant",
    "init",
    "data.root",
    "data.visits",
    "data.shard_videos",
    "data.num_workers",
    "data.prefetch",
    "data.index",
}
"""Fields that the paper says nothing about, with those of `run`."""


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (lambda: TrainConfig(), {}),
        (lambda: load_recipe("ino_vits8_kinetics400"), {}),
        (lambda: load_recipe("ino_vits8_charades"), CHARADES),
        (lambda: TrainConfig(variant="released"), RELEASED),
        (lambda: load_recipe("ino_vits8_kinetics400", {"variant": "released"}), RELEASED),
    ],
)
def test_every_number_is_the_paper_s(config, changes):
    values = flatten(to_dict(resolve(config())))
    found = {k: v for k, v in values.items() if k not in OF_THE_MACHINE and k[:4] != "run."}
    assert found == PAPER | changes


def test_the_heads_of_recipes_name_the_published_devices_and_scores():
    for name, devices, score in (("kinetics400", 8, "72.5"), ("charades", 4, "67.0")):
        head = (RECIPES / f"ino_vits8_{name}.yaml").read_text(encoding="utf-8")
        assert f"--nproc-per-node {devices} " in head and f"{devices} devices of 4 clips" in head
        assert f"J&F {score}" in head


COLOR = Photometric(
    flip=0.5,
    jitter=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    grey=0.2,
    blur=0.0,
    blur_sigma=(0.1, 2.0),
)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_crops_are_cut_and_colored_as_section_3_2_says(variant, monkeypatch):
    cut = []

    def make_crops(clips, **options):
        cut.append(options)
        return torch.zeros(1, options["num_crops"], len(clips))

    monkeypatch.setattr(ino.train.data, "make_crops", make_crops)
    config = resolve(TrainConfig(variant=variant))
    sample_views(config, [torch.zeros(1)] * 4, step=0, device=torch.device("cpu"))
    of_global, of_local = cut
    assert of_global["geometry"] == CropGeometry(224, (0.8, 0.95), (3 / 4, 4 / 3))
    assert of_global["num_crops"] == 1
    assert of_global["photometric"] == (COLOR if variant == "paper" else PLAIN)
    assert of_local["geometry"] == CropGeometry(64, (0.05, 0.8), (3 / 4, 4 / 3))
    assert of_local["num_crops"] == 8
    assert of_local["photometric"] == dataclasses.replace(COLOR, blur=0.5)


def masks_of_steps(variant):
    """Masks (clips, 28, 28) of the steps among 64 that have in-generative learning."""
    config = resolve(TrainConfig(variant=variant)).with_values({"views.num_local": 0})
    frames = [torch.zeros(1, 32, 32, 3, dtype=torch.uint8)] * 3
    for step in range(64):
        views = sample_views(config, frames, step=step, device=torch.device("cpu"))
        if views.masked is not None:
            masks = torch.zeros(3, 28 * 28, dtype=torch.bool).scatter_(1, views.masked, True)
            yield masks.unflatten(1, (28, 28)).numpy()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_masks_are_as_section_3_3_says(variant):
    steps = list(masks_of_steps(variant))
    assert 22 <= len(steps) <= 42  # half of 64, give or take 2.5 standard deviations
    counts = np.array([masks.sum(axis=(1, 2)) for masks in steps])
    assert (counts == counts[:, :1]).all()  # one K for all clips of a step
    shares = counts[:, 0] / 28**2
    assert 0.1 - 1 / 28**2 <= shares.min() < 0.2 and 0.4 < shares.max() <= 0.5
    # How often the position to the right of a masked one is masked, too: by chance, or in blocks.
    beside = [masks[:, :, 1:][masks[:, :, :-1]].mean() for masks in steps]
    is_shared = [bool((masks == masks[:1]).all()) for masks in steps]
    if variant == "paper":
        assert min(beside - shares) > 0.15
        assert not any(is_shared)
    else:
        np.testing.assert_allclose(beside, shares, atol=0.15)
        assert all(is_shared)


def test_the_objective_of_a_run_is_the_default_of_losses():
    """What the equations are tested with (tests/test_losses.py) is what a run computes."""
    torch.manual_seed(0)
    teacher, masked = torch.randn(4, 2, 16), torch.randn(4, 2, 5, 16)
    student = torch.randn(4, 2, 16), torch.randn(4, 8, 2, 16), torch.randn(4, 2, 5, 16)
    loss = resolve(TrainConfig()).loss
    own = loss.model_dump(exclude={"extra", "extra_weight"})
    of_run = Objective(**own, num_classes=16, num_local=8)
    default = Objective(num_classes=16, num_local=8)
    for _ in range(2):
        terms = []
        for objective in (of_run, default):
            targets = objective.targets(teacher, masked)
            terms.append(objective(targets, *student))
            objective.update_centers(targets)
        assert all(map(torch.equal, *terms))


def test_a_run_says_that_crops_do_not_fit_wide_video(tmp_path):
    for number in range(2):
        write_video(tmp_path / f"{number}.mp4", moving_frames(30, height=36, width=64))
    config = resolve(TrainConfig()).with_values(
        {"data.root": str(tmp_path), "data.index": str(tmp_path / "index"), "data.frame_step": 1}
    )
    remark = find_source(config.data, config.views).remark
    assert re.match("100% of the videos are wider than 1.67:1", remark)
    wider = config.with_values({"views.ratio": [0.75, 16 / 9]})
    assert find_source(wider.data, wider.views).remark == ""
