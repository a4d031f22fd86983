"""Variants fill what is not set; values out of range are refused by name."""

import pytest

from ino.errors import ConfigError
from ino.train.config import VARIANTS, TrainConfig, from_dict, resolve, to_dict


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_sets_every_point_that_differs(variant):
    resolved = to_dict(resolve(TrainConfig(variant=variant)))
    for name, value in VARIANTS[variant].items():
        section, option = name.split(".")
        assert resolved[section][option] == value


def test_single_points_can_be_set_against_the_variant():
    config = TrainConfig(variant="released")
    config.loss.affinity_on = "distributions"
    assert resolve(config).loss.affinity_on == "distributions"
    assert resolve(config).loss.out_mean == "joint"


def test_a_frame_step_replaces_the_rate_of_the_variant():
    config = TrainConfig(variant="released")
    config.data.frame_step = 2
    resolved = resolve(config)
    assert (resolved.data.frame_step, resolved.data.fps) == (2, 0.0)


def test_resolving_leaves_the_original_alone():
    config = TrainConfig()
    resolve(config)
    assert config.loss.center_update is None


def test_a_configuration_survives_its_plain_form():
    config = resolve(TrainConfig())
    config.data.root = ["videos"]
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.clip_length", 3),
        ("data.clip_length", 0),
        ("data.batch_size", 0),
        ("data.num_workers", -1),
        ("data.clips_per_video", 0),
        ("views.global_size", 100),
        ("views.local_size", 0),
        ("views.num_local", -1),
        ("views.global_scale", (0.9, 0.5)),
        ("views.local_scale", (0.0, 0.5)),
        ("views.flip", 1.5),
        ("masking.ratio", (0.1, 1.5)),
        ("masking.probability", -0.1),
        ("model.drop_path", 2.0),
        ("model.out_dim", 0),
        ("model.arch", "vit_huge"),
        ("model.patch_size", 14),
        ("model.patch_size", 0),
        ("optim.lr", float("inf")),
        ("loss.affinity", float("inf")),
        ("data.fps", float("nan")),
        ("data.shard_videos", -1),
        ("data.prefetch", 0),
        ("run.accumulate", 3),
        ("run.eval_short_side", -1),
        ("run.pictures_every", -1),
        ("loss.teacher_temperature", 0.0),
        ("loss.affinity", -1.0),
        ("optim.epochs", 0),
        ("optim.lr", -1.0),
        ("optim.teacher_momentum", 1.1),
        ("run.save_every", 0),
        ("run.keep", 0),
    ],
)
def test_values_out_of_range_are_named(name, value):
    config = TrainConfig()
    section, option = name.split(".")
    setattr(getattr(config, section), option, value)
    with pytest.raises(ConfigError, match=name):
        resolve(config)


def test_an_objective_without_terms_is_refused():
    config = TrainConfig()
    for term in ("g2g", "l2g", "masked", "affinity"):
        setattr(config.loss, term, 0.0)
    with pytest.raises(ConfigError, match="at least one term"):
        resolve(config)
