import re
from pathlib import Path

import pytest
import yaml

from ino.errors import ConfigError
from ino.propagate.peers import PeerSettings
from ino.propagate.protocols import (
    PROTOCOLS,
    OwnSettings,
    Protocol,
    describe_protocol,
    fit_layer,
    get_protocol,
)

SINCE_2023 = ["rsp", "cropmae", "cropmae-vip", "rvm", "rvm-vip", "diff-zvos", "diff-zvos-mose"]
"""These have a table of their own, which ends with the fields that nothing else sets."""
LATER = [
    *("data_size", "input_size", "long_side", "input_resize"),
    *("similarity", "mask_to_input", "mask_from_input"),
]
SETTINGS = [name for name in PeerSettings.model_fields if name not in LATER]
USED_SINCE_2023 = ["reference_passed_on", "masks_at"]
"""Settings of older methods that these take other values of."""
OWN = list(OwnSettings.model_fields)
QUALITIES = ["ino-fast", "ino-default", "ino-best"]
OURS = "`, `".join(QUALITIES)
DEFAULTS = list(PeerSettings().model_dump().items())


def test_ino_davis_is_the_table_of_the_released_code():
    protocol = get_protocol("ino-davis")
    assert protocol.as_dict() == {
        "name": "ino-davis",
        "layer": 7,
        "short_side": 480,
        "size_multiple": None,
        "rounding": "down",
        "fixed_sizes": (),
        "data_size": None,
        "input_size": None,
        "long_side": None,
        "input_resize": "linear",
        "similarity": "cosine",
        "mask_to_input": "nearest-exact",
        "mask_from_input": "nearest",
        "normalize_features": True,
        "matching": "topk",
        "topk": 5,
        "kept": (0,),
        "num_context": 10,
        "context_step": 1,
        "recent": "after-reference",
        "reference_passed_on": False,
        "window": "square",
        "radius": 40,
        "reference_windowed": True,
        "border": "left-out",
        "realign_after": None,
        "realign_radius": 12,
        "realign_dilation": 4,
        "realign_corners": True,
        "temperature": 0.1,
        "grid_normalization": "none",
        "feedback": "soft",
        "entry": "plain",
        "masks_at": "video",
        "mask_down": "bilinear-align-corners",
        "mask_up": "bilinear-stride",
        "normalize_output": True,
        "keep_given": True,
        "attention_side": None,
        "learned_metric": False,
        "color_share": 0.0,
        "zoom_margin": None,
        "flow_share": 0.0,
    }


def test_ino_ytvos_differs_from_davis_in_size_context_and_radius():
    davis, ytvos = (PROTOCOLS[f"ino-{name}"].as_dict() for name in ("davis", "ytvos"))
    assert {key: value for key, value in ytvos.items() if value != davis[key]} == {
        "name": "ino-ytvos",
        "short_side": None,
        "fixed_sizes": (((1080, 1920), (720, 1280)), ((816, 1920), (720, 1280))),
        "num_context": 20,
        "radius": 50,
    }


def test_ino_near_differs_from_dinov3_in_size_radius_and_outlines():
    theirs, near = (PROTOCOLS[name].as_dict() for name in ("dinov3", "ino-near"))
    assert {key: value for key, value in near.items() if value != theirs[key]} == {
        "name": "ino-near",
        "short_side": 480,
        "radius": 6,
        "mask_down": "nearest-or-most",
        "mask_up": "bilinear",
    }


def test_names_are_the_keys():
    assert [protocol.name for protocol in PROTOCOLS.values()] == list(PROTOCOLS)


@pytest.mark.parametrize(
    ("first", "fields", "names"),
    [
        (
            "`ino-davis`",
            [one for one in Protocol.model_fields if one not in (*SETTINGS, *LATER, *OWN)],
            [name for name in PROTOCOLS if name not in SINCE_2023],
        ),
        (
            "`rsp`",
            [one for one in Protocol.model_fields if one not in (*SETTINGS, *LATER, *OWN)]
            + [one for one in PeerSettings.model_fields if one in (*LATER, *USED_SINCE_2023)],
            SINCE_2023,
        ),
        ("`mast`", SETTINGS, ["mast", "corrflow", "contcorr", "timecycle", OURS]),
        ("`ino-fast`", OWN, QUALITIES),
    ],
)
def test_the_tables_of_the_documentation_are_those_of_the_code(first, fields, names):
    text = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    rows = [re.findall(r"[^|]+", line) for line in text.splitlines() if line.startswith("| ")]
    (head,) = [row for row in rows if first in row[1]]
    start = rows.index(head) + 1
    assert [cell.strip(" `") for cell in head[1 : len(names) + 1]] == list(names)
    fields = [field for field in fields if field != "name"]
    for field, row in zip(fields, rows[start : start + len(fields)], strict=True):
        assert row[0].strip(" `") == field
        values = [getattr(PROTOCOLS[name.partition("`")[0]], field) for name in names]
        if fields[0] not in ("layer", "name"):  # the last column is for all others
            values.append(getattr(PROTOCOLS["ino-davis"], field))
        for cell, value in zip(row[1:], values, strict=True):
            if field == "fixed_sizes":
                assert cell.strip() == ("two" if value else "none")
            elif field == "temperature":
                assert float(cell) == pytest.approx(value, rel=1e-3)
            else:
                found = yaml.safe_load(cell)
                assert (tuple(found) if isinstance(found, list) else found) == value


def test_only_these_protocols_have_settings_of_peers():
    named = {p.name for p in PROTOCOLS.values() if any(getattr(p, s) != v for s, v in DEFAULTS)}
    later = set(SINCE_2023) - {"diff-zvos"}
    assert named == later | {"mast", "corrflow", "contcorr", "timecycle", *QUALITIES}


def test_no_published_protocol_has_settings_of_our_own():
    usual = OwnSettings().model_dump()
    named = {p.name for p in PROTOCOLS.values() if any(getattr(p, s) != usual[s] for s in OWN)}
    assert named == set(QUALITIES)


def test_overrides_replace_single_fields_and_leave_the_table_alone():
    protocol = get_protocol("ino-davis", short_side=120, radius=None, temperature=0.5)
    assert (protocol.short_side, protocol.radius, protocol.temperature) == (120, None, 0.5)
    assert get_protocol("ino-davis").short_side == 480


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"layer": 0}, "layer must be at least 1, but is 0"),
        ({"topk": -1}, "topk must be at least 0, but is -1"),
        ({"topk": 0}, "topk must be 1 or more where matching is topk, but is 0"),
        ({"topk": 2.5}, "topk must be a whole number, but is 2.5"),
        ({"topk": None}, "topk must be a whole number, but is None"),
        ({"topk": True}, "topk must be a whole number, but is True"),
        ({"num_context": -1}, "num_context must be at least 0, but is -1"),
        ({"radius": -1}, "radius must be at least 0, but is -1"),
        ({"short_side": 0}, "short_side must be at least 1, but is 0"),
        ({"size_multiple": "8"}, "size_multiple must be a whole number, but is '8'"),
        ({"temperature": 0}, "temperature must be a number from 1e-30 to 1e30, but is 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number, but is nan"),
        ({"temperature": "warm"}, "temperature must be a number, but is 'warm'"),
        ({"window": "disc"}, "must be 'square', 'circle' or 'closed-circle', but is 'disc'"),
        ({"window": "circle", "radius": 0}, "radius must be 1 or more in a circle, but is 0"),
        ({"rounding": "up"}, "rounding must be 'down', 'long-side-down'"),
        ({"recent": None}, "recent must be 'after-reference', 'reference-again' or 'padded', but"),
        ({"entry": 1}, "entry must be 'plain' or 'weighted', but is 1"),
        ({"mask_up": "linear"}, "mask_up must be 'bilinear-stride', 'bilinear'"),
        ({"keep_given": 1}, "keep_given must be true or false, but is 1"),
        ({"feedback": "argmax"}, "feedback must be 'soft', 'hard' or 'refined', but is 'argmax'"),
        ({"top_k": 5}, "protocol ino-davis: unknown key top_k; did you mean topk?"),
        ({"name": "mine"}, "name is no field that can be replaced"),
    ],
)
def test_values_out_of_range_are_refused(overrides, message):
    with pytest.raises(ConfigError) as error:
        get_protocol("ino-davis", **overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("mast", {"topk": 5}, "topk must be 0 where matching is window, but is 5"),
        ("mast", {"radius": None}, "radius must be a whole number where matching is window"),
        ("mast", {"window": "circle"}, "window must be square where matching is window"),
        ("mast", {"reference_windowed": False}, "reference_windowed must be true where matching"),
        ("mast", {"border": "left-out"}, "border must be empty where realign_after is set"),
        ("mast", {"reference_passed_on": True}, "must be false where feedback is hard"),
        ("mast", {"kept": (5, 0)}, "kept: give ascending whole numbers, as in [0, 5]"),
        ("mast", {"kept": 5}, "kept: give ascending whole numbers, as in [0, 5]"),
        ("mast", {"context_step": 0}, "context_step must be at least 1"),
        ("corrflow", {"num_context": 0}, "num_context must be 1 or more where kept has no 0"),
        ("corrflow", {"masks_at": "video"}, "masks_at must be input where rounding is crop"),
        ("contcorr", {"radius": 12}, "radius must be none where matching is mutual, but is 12"),
        ("contcorr", {"topk": 0}, "topk must be 1 or more where matching is mutual, but is 0"),
        ("timecycle", {"border": "empty"}, "border must be left-out where matching is per-frame"),
        ("timecycle", {"short_side": None}, "short_side must be set where rounding is square"),
        ("diff-zvos-mose", {"short_side": None}, "must be set where rounding is width-down"),
        ("mast", {"similarity": "l1"}, "similarity must be cosine where matching is window"),
        ("ino-fast", {"data_size": [480, 880]}, "data_size must be none where flow_share is above"),
        (
            "rvm",
            {"input_size": [480]},
            "input_size: give height and width in pixels, as in [480, 880]",
        ),
        ("rvm", {"input_size": [0, 880]}, "must be at least 1, but is 0"),
        (
            "rvm",
            {"input_size": 480},
            "input_size: give height and width in pixels, as in [480, 880]",
        ),
        ("dino", {"realign_after": 15}, "realign_after must be none where matching is topk"),
        (
            "dino",
            {"matching": "best"},
            "matching must be 'topk', 'window', 'per-frame'",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(name, overrides, message):
    with pytest.raises(ConfigError) as error:
        get_protocol(name, **overrides)
    assert message in str(error.value)


def test_kept_frames_can_come_from_yaml():
    assert get_protocol("mast", kept=[0, 10]).kept == (0, 10)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown protocol 'davis'; choose one of ino-davis, "):
        get_protocol("davis")


def test_a_protocol_in_one_line():
    assert describe_protocol(get_protocol("dino")) == (
        "dino (layer none, short_side 480, topk 5, num_context 7, window square, radius 12, "
        "temperature 0.1), as named"
    )
    changed = describe_protocol(get_protocol("ino-davis", short_side=240, feedback="hard"))
    assert changed.endswith(
        ", with short_side 240 in place of 480, radius 20 in place of 40, "
        "feedback hard in place of soft"
    )


@pytest.mark.parametrize(
    ("name", "changes", "radius"),
    [
        ("ino-davis", {"short_side": 240}, 20),
        ("ino-davis", {"short_side": 240, "radius": 40}, 40),
        ("ino-davis", {"short_side": None}, 40),
        ("dinov3", {"short_side": 96}, 1),
        ("crw", {"short_side": 240}, 12),  # has no size of its own
        ("timecycle", {"short_side": 160}, None),
    ],
)
def test_the_radius_follows_the_short_side(name, changes, radius):
    protocol = get_protocol(name, **changes)
    assert protocol.radius == radius
    words = f"radius {radius} in place of {get_protocol(name).radius}"
    assert (words in describe_protocol(protocol)) == (radius != get_protocol(name).radius)


@pytest.mark.parametrize(
    ("name", "changes", "strides", "layer"),
    [
        ("ino-davis", {}, [8] * 4, 4),  # a ViT of four blocks
        ("ino-davis", {}, [8] * 12, 7),
        ("ino-near", {}, [8] * 4, None),
        ("ino-fast", {}, [8] * 4, 3),
        ("ino-davis", {"layer": 6}, [8] * 4, 6),  # what was chosen is not changed
        ("ino-davis", {}, [4, 8, 16, 32], 7),  # and a convolutional network has no such blocks
        ("ino-davis", {}, [8], 7),  # raw color
    ],
)
def test_vits_of_fewer_blocks_are_read_at_their_last(name, changes, strides, layer):
    protocol = get_protocol(name, **changes)
    fitted = fit_layer(protocol, strides)
    assert fitted == protocol.model_copy(update={"layer": layer})
    if (name, layer) == ("ino-davis", 4):
        assert "layer 4 in place of 7" in describe_protocol(fitted)
