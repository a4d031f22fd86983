"""The weights that come with ino are whole, small, told of, and found by their name."""

import csv
import json
import math

import pytest
import torch

from ino.models.load import BUNDLED, DEFAULT, bundled_folder, list_weights, load_backbone
from ino.propagate.protocols import fit_layer
from ino.tasks.results import fingerprint, sized_protocol

MOST_BYTES = 30e6


@pytest.mark.parametrize("name", list_weights())
@torch.no_grad()
def test_they_are_whole_and_small(name):
    files = list((BUNDLED / name).iterdir())
    assert {path.name for path in files} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "videos.csv",
    }
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    backbone = load_backbone(name)  # checks the SHA-256 of the weights
    fitted = fit_layer(sized_protocol("ino-davis", short_side=None), backbone.strides)
    assert fitted.layer == backbone.num_layers
    features = backbone(torch.randn(1, 3, 48, 64), layer=None)
    assert features.shape[2:] == (6, 8)
    assert math.isfinite(features.std())
    assert fingerprint(name).keys() == {"checkpoint", "sha256"}


@pytest.mark.parametrize("name", list_weights())
def test_the_card_names_licence_and_data(name):
    own = json.loads((BUNDLED / name / "config.json").read_text())["ino"]
    assert own["license"] and own["data"]
    with (BUNDLED / name / "videos.csv").open(newline="") as file:
        videos = list(csv.DictReader(file))
    assert videos and all(video["source_repo"] and video["licence"] for video in videos)
    card = (BUNDLED / name / "README.md").read_text()
    assert own["license"] in card and own["data"] in card


def test_the_default_is_there_and_other_names_are_not():
    assert DEFAULT in list_weights()
    assert bundled_folder("color") is None
