"""Variants fill what is not set; wrong values are refused by name; recipes build on each other."""

from typing import get_args

import pytest

from ino.errors import ConfigError
from ino.models.vit import ARCHITECTURES, PATCH_SIZES
from ino.schema import yaml_names
from ino.train.config import (
    RECIPES,
    VARIANTS,
    TrainConfig,
    config_fields,
    differences,
    flatten,
    from_dict,
    load_recipe,
    recipe_values,
    resolve,
    to_dict,
    to_yaml,
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_sets_every_point_that_differs(variant):
    values = flatten(to_dict(resolve(TrainConfig(variant=variant))))
    assert values.items() >= VARIANTS[variant].items()
    assert None not in values.values()
    unset = {name for name, value in flatten(to_dict(TrainConfig())).items() if value is None}
    assert unset == VARIANTS[variant].keys()


def test_single_points_can_be_set_against_the_variant():
    config = TrainConfig(variant="released")
    config.loss.affinity_on = "distributions"
    config.data.frame_step = 2
    resolved = resolve(config)
    assert (resolved.loss.affinity_on, resolved.loss.out_mean) == ("distributions", "joint")
    assert (resolved.data.frame_step, resolved.data.fps) == (2, 0.0)
    assert config.loss.out_mean is None  # the original is left alone


def test_a_configuration_survives_its_plain_form_and_yaml(tmp_path):
    config = resolve(TrainConfig().with_values({"data.root": "videos"}))
    assert config.data.root == ["videos"]
    assert from_dict(to_dict(config)) == config
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_recipe(str(tmp_path / "config.yaml")) == config


def test_configurations_of_earlier_versions_can_be_read():
    values = to_dict(resolve(TrainConfig()))
    values["views"]["colour_on_global"] = not values["views"].pop("color_on_global")
    for name in ("ratio", "blur_sigma", "brightness", "contrast", "saturation", "hue"):
        del values["views"][name]
    found = from_dict(values)
    assert differences(resolve(TrainConfig()), found) == [("views.color_on_global", True, False)]
    del values["run"]
    with pytest.raises(ConfigError, match="run is missing"):
        from_dict(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.clip_length", 3),
        ("data.clip_length", 0),
        ("data.batch_size", 0),
        ("data.num_workers", -1),
        ("data.clips_per_video", 0),
        ("data.root", [""]),
        ("views.global_size", 100),
        ("views.local_size", 0),
        ("views.num_local", -1),
        ("views.global_scale", (0.9, 0.5)),
        ("views.local_scale", (0.0, 0.5)),
        ("views.ratio", (1.5, 0.5)),
        ("views.hue", 0.6),
        ("views.flip", 1.5),
        ("masking.ratio", (0.1, 1.5)),
        ("masking.probability", -0.1),
        ("model.drop_path", 2.0),
        ("model.out_dim", 0),
        ("model.arch", "vit_huge"),
        ("model.patch_size", 14),
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
        ("run.seed", 2**63),
    ],
)
def test_values_out_of_range_are_named(name, value):
    config = TrainConfig()
    section, option = name.split(".")
    setattr(getattr(config, section), option, value)
    with pytest.raises(ConfigError, match=name):
        resolve(config)
    with pytest.raises(ConfigError, match=name):
        TrainConfig().with_values({name: value})


def test_values_that_do_not_fit_together():
    with pytest.raises(ConfigError, match="at least one term"):
        off = dict.fromkeys(("g2g", "l2g", "masked", "affinity"), 0)
        TrainConfig().with_values({"loss": off})
    with pytest.raises(ConfigError, match="frame_step and fps are 2 and 8"):
        TrainConfig().with_values({"data.frame_step": 2, "data.fps": 8})
    with pytest.raises(ConfigError, match="positions is sincos, but timm:resnet18 has its own"):
        TrainConfig().with_values({"model": {"arch": "timm:resnet18", "positions": "sincos"}})


def test_text_of_the_command_line_means_what_it_means_in_yaml():
    config = TrainConfig().with_values(
        {
            "optim.lr": "1e-3",
            "views.ratio": "[0.5, 2]",
            "views.colour_on_global": "true",
            "model.patch_size": "16",
            "data.num_workers": "3",
            "run.eval_split": "2017",
            "masking.shared": "null",
        }
    )
    assert (config.optim.lr, config.views.ratio) == (1e-3, (0.5, 2.0))
    assert config.views.color_on_global is True
    assert (config.model.patch_size, config.data.num_workers) == (16, 3)
    assert (config.run.eval_split, config.masking.shared) == ("2017", None)
    with pytest.raises(ConfigError, match=r"views\.ratio must be a list"):
        TrainConfig().with_values({"views.ratio": "[1"})
    with pytest.raises(ConfigError, match=r"unknown key optim\.lrr; did you mean optim\.lr"):
        TrainConfig().with_values({"optim.lrr": 1})


def test_fields_have_descriptions_and_are_those_of_a_configuration():
    fields = config_fields()
    defaults = flatten(to_dict(TrainConfig()))
    assert list(fields) == list(defaults)
    assert all(field.description.endswith(".") for field in fields.values())
    for name, field in fields.items():
        assert ("variant" in field.description) == (defaults[name] is None)
    own, _ = get_args(fields["model.arch"].type)
    assert get_args(own) == tuple(ARCHITECTURES)
    assert get_args(fields["model.patch_size"].type) == PATCH_SIZES


def test_every_recipe_is_valid_and_opens_with_its_command():
    names = yaml_names(RECIPES)
    assert {"ino_vits8_kinetics400", "ino_vits8_charades", "tiny", "demo"} <= set(names)
    for name in names:
        resolve(load_recipe(name))
        head = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\nvariant")[0]
        assert "ino " in head
        assert name in head


def test_overrides_come_last():
    config = load_recipe("tiny", {"optim.lr": 1, "variant": "released"})
    assert (config.optim.lr, config.variant, config.model.arch) == (1.0, "released", "vit_tiny")


def test_a_recipe_starts_from_others(tmp_path):
    (tmp_path / "first.yaml").write_text("base: tiny\noptim: {lr: 0.5}\nviews: {num_local: 2}\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\noptim: {lr: 0.25}\n")
    values = flatten(recipe_values(str(tmp_path / "second.yaml")))
    changed = {"optim.lr": 0.25, "views.num_local": 2}
    assert values == flatten(recipe_values("tiny")) | changed
    assert load_recipe(str(tmp_path / "second.yaml")) == load_recipe("tiny", changed)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("mine.yaml", "mine -> mine"),
        ("below/../mine.yaml", "mine -> mine"),
        ("other.yaml", "mine -> other -> mine"),
        ("nothing", "there is no recipe 'nothing'"),
        ("[1]", "base must name a recipe"),
    ],
)
def test_a_base_that_leads_nowhere(tmp_path, base, words):
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n")
    (tmp_path / "other.yaml").write_text("base: mine.yaml\n")
    (tmp_path / "below").mkdir()
    with pytest.raises(ConfigError, match=words):
        recipe_values(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {arch: vit_tiny}\nmodel: {arch: vit_small}\n", "line 2 .*'model' is there twice"),
        ("model: {arch: vit_tiny, arch: vit_small}\n", "line 1 .*'arch' is there twice"),
        ("- 1\n", "must hold sections such as model and data"),
        ("optim: {lr: high}\n", r"mine.yaml: optim\.lr must be a number, but is 'high'"),
        ("optim: {rate: 1}\n", r"mine.yaml: unknown key optim\.rate"),
        ("optim: 3\n", "mine.yaml: optim must be keys and values, but is 3"),
        ("optim: 3\noptim.lr: 1\n", "optim must hold keys and values, but is 3"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_recipe(str(path))


def test_a_recipe_names_no_command(tmp_path):
    path = tmp_path / "own.yaml"
    for roots in ('"pipe:touch x"', '[a.tar, "pipe:touch x"]'):
        path.write_text(f"base: tiny\ndata: {{root: {roots}}}")
        with pytest.raises(
            ConfigError, match=r"own\.yaml has a command in data\.root \('pipe:touch"
        ):
            load_recipe(str(path))
    path.write_text("data.root: 'pipe:touch x'")
    (tmp_path / "child.yaml").write_text("base: own.yaml\ndata: {root: a.tar}")
    with pytest.raises(ConfigError, match="has a command"):
        load_recipe(str(tmp_path / "child.yaml"))
    # Whoever gives the command line may run commands anyway.
    assert load_recipe("tiny", {"data.root": ["pipe:cat x"]}).data.root == ["pipe:cat x"]


def test_a_recipe_names_no_module(tmp_path):
    for text in ("base: tiny\nloss: {extra: theirs:term}", "loss.extra: theirs:term"):
        (tmp_path / "own.yaml").write_text(text)
        (tmp_path / "child.yaml").write_text("base: own.yaml")
        for name in ("own.yaml", "child.yaml"):
            with pytest.raises(ConfigError, match=r"own\.yaml has a module in loss\.extra"):
                load_recipe(str(tmp_path / name), {"loss.extra": ""})
    (tmp_path / "own.yaml").write_text("base: tiny\nloss: {extra: ''}")
    given = load_recipe(str(tmp_path / "own.yaml"), {"loss.extra": "theirs:term"})
    assert given.loss.extra == "theirs:term"


@pytest.mark.parametrize("field", ["num_workers", "prefetch"])
def test_processes_and_their_batches_are_bounded(field):
    with pytest.raises(ConfigError, match=rf"data\.{field} must be at most 256"):
        load_recipe("tiny", {f"data.{field}": 257})
