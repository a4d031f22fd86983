"""Recipes that come with ino can be run, and wrong ones are refused."""

import pytest

from ino.errors import ConfigError
from ino.train.config import FOLDER, load_recipe, recipe_names, recipe_values, resolve


def test_every_recipe_is_valid_and_opens_with_its_command():
    assert {"ino_vits8_kinetics400", "ino_vits8_charades", "tiny", "demo"} <= set(recipe_names())
    for name in recipe_names():
        resolve(load_recipe(name))
        head = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\nvariant")[0]
        assert "ino " in head
        assert name in head


def test_the_paper_s_settings_are_in_its_recipes():
    for name, lr, warmup in (("kinetics400", 3e-4, 2), ("charades", 3e-3, 5)):
        config = resolve(load_recipe(f"ino_vits8_{name}"))
        assert (config.optim.lr, config.optim.warmup_epochs) == (lr, warmup)
        assert (config.model.arch, config.model.patch_size) == ("vit_small", 8)
        assert (config.data.clip_length, config.data.frame_step) == (4, 8)
        assert (config.views.global_size, config.views.local_size) == (224, 64)
        assert (config.views.num_local, config.optim.epochs) == (8, 25)


def test_overrides_come_last_and_numbers_keep_their_type():
    config = load_recipe("tiny", {"optim.lr": "1", "variant": "released"})
    assert isinstance(config.optim.lr, float)
    assert config.optim.lr == 1
    assert config.variant == "released"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: {wandb: 2024-99-99}\n", "cannot be used: month must be"),
        ("model: {arch: vit_tiny}\nmodel: {arch: vit_small}\n", "'model' is there twice"),
        ("model: {arch: vit_tiny, arch: vit_small}\n", "'arch' is there twice"),
        ("- 1\n", "must hold sections such as model and data"),
    ],
)
def test_a_file_that_says_nothing_or_two_things_is_refused(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        recipe_values(str(path))


def test_a_value_of_the_wrong_type_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optim:\n  lr: high\n")
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        load_recipe(str(path))
