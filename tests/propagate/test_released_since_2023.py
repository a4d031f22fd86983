"""The protocols rsp, rvm and diff-zvos against the soft maps, masks, sizes and joints of their
released codes, and cropmae against a twin that is written from its description.

The features, frames and masks are those of the golden README.
"""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dense_layouts import write_part_video
from ino.data.label_maps import read_labels, write_labels
from ino.data.vip import read_vip
from ino.kernels.topk import TiledMatcher, Window
from ino.metrics import PckRule
from ino.propagate.features import FeatureExtractor, input_size
from ino.propagate.labels import harden_labels, resize_mask, restore_mask, soften_labels
from ino.propagate.peers import DistanceMatcher
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import get_protocol, protocol_on
from ino.propagate.tracker import Tracker
from ino.tasks.davis import evaluate_davis
from ino.tasks.jhmdb import joint_maps, joints_to_maps, maps_to_joints
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.vip import propagate_parts
from oracles import cropmae as oracle
from propagate.table_backbone import GRID, TableBackbone, gray_frames

NAMES = ["rsp", "rvm", "diff-zvos"]
TAG = re.compile(r"(two|one|ids036|native480x710|mose)_n(\d+)_(?:r(\d+)|all)_k(\d+)(.*)_soft")
UNDEFINED = "two_n4_r3_k7"
"""Of rvm: exact ties of positions with different labels."""
NUM_FRAMES = 8
"""That the twin labels."""
WHOLE = (192, 272)
"""Size of the input of `GRID`."""


@pytest.fixture
def released(golden):
    return {name: golden(f"propagation_{name}") for name in NAMES}


@pytest.fixture
def inputs(golden):
    return golden("propagation_inputs")


def unit_features(inputs):
    return F.normalize(torch.from_numpy(inputs["feats_f16"].astype(np.float32)), dim=-1)


def protocol_of(name, found):
    kind, num_context, radius, topk, rest = found.groups()
    changes = {"num_context": int(num_context), "radius": radius and int(radius)}
    changes |= {"topk": int(topk)} if topk != "0" else {"topk": 0, "matching": "window"}
    if "T0.1" in rest:
        changes["temperature"] = 0.1
    if "normmask" in rest:
        changes["grid_normalization"] = "positions-fed-back"
    if rest in ("_euclidean", "_l1"):
        changes["similarity"] = rest[1:]
    return get_protocol("diff-zvos-mose" if kind == "mose" else name, **changes)


def check_case(name, tag, numbers, inputs):
    """Propagates as the tag of a table says; compares labels, soft maps and masks."""
    found = TAG.fullmatch(f"{tag}_soft")
    protocol = protocol_of(name, found)
    soft, masks = numbers[f"{tag}_soft"], numbers[f"{tag}_masks"]
    ids = {"one": [0, 1], "ids036": [0, 3, 6]}.get(found[1], [0, 1, 2])
    size = masks.shape[1:]
    given = masks[0] if protocol.keep_given else np.array([0, 3, 6], np.uint8)[inputs["gt0"]]
    if not protocol.keep_given and found[1] != "ids036":
        given = np.where(np.isin(inputs["gt0"], ids), inputs["gt0"], np.uint8(0))
    whole = WHOLE if protocol.masks_at == "input" else size
    given = resize_mask(given, whole=whole, size=whole, how=protocol.mask_to_input)
    first = soften_labels(given, ids=ids, grid=GRID, method=protocol.mask_down)
    np.testing.assert_array_equal(first.permute(2, 0, 1), numbers[f"{tag}_lbl0"])
    propagator = Propagator(protocol)
    skipped = len(masks) - len(soft)  # some tables leave out frame 0
    for time, features in enumerate(unit_features(inputs)[: len(masks)]):
        labels = propagator.step(features.view(*GRID, -1), first if time == 0 else None)
        if time < skipped:
            continue
        expected = torch.from_numpy(soft[time - skipped]).permute(1, 2, 0)
        torch.testing.assert_close(labels, expected, rtol=0, atol=2e-6)
        mask = hardened(labels, ids, protocol, kind=found[1], whole=whole)
        mask = restore_mask(mask, whole=whole, size=size, how=protocol.mask_from_input)
        np.testing.assert_array_equal(mask, masks[time])


def hardened(labels, ids, protocol, *, kind, whole):
    choices = {"ids": ids, "normalize": protocol.normalize_output}
    if kind == "native480x710":  # diff-zvos enlarges 12 x 17 by 40 and 41
        found = harden_labels(labels, stride=1, size=(480, 697), method="bilinear", **choices)
        return np.array(Image.fromarray(found).resize((710, 480), Image.Resampling.NEAREST))
    stride = 7 if protocol.name == "diff-zvos" else 16
    return harden_labels(labels, stride=stride, size=whole, method=protocol.mask_up, **choices)


def tags_of(numbers):
    return [key.removesuffix("_soft") for key in numbers if TAG.fullmatch(key)]


@pytest.mark.parametrize("name", NAMES)
def test_soft_maps_and_masks(released, inputs, name):
    tags = tags_of(released[name])
    assert len(tags) >= 3
    for tag in tags:
        check_case(name, tag, released[name], inputs)


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
def test_all_soft_maps_and_masks(shared_golden, inputs, name):
    with np.load(shared_golden / "peers2" / f"propagation_{name}.npz") as file:
        numbers = dict(file)
    tags = tags_of(numbers)
    assert len(tags) >= 8
    for tag in tags:
        if (name, tag) != ("rvm", UNDEFINED):
            check_case(name, tag, numbers, inputs)


@pytest.mark.parametrize(
    ("name", "stride", "tag"),
    [
        ("rsp", 16, "official"),
        ("rvm", 16, "official"),
        ("rvm", 14, "official14"),
        ("diff-zvos", 8, "official"),
    ],
)
def test_masks_at_the_official_size(released, name, stride, tag):
    numbers, protocol = released[name], get_protocol(name)
    given, expected = numbers["official_gt"], numbers[f"{tag}_mask_of_soft_in"]
    extractor = extractor_of(protocol, stride=stride)
    grid, (whole, size) = extractor.grid(given.shape), extractor.mask_sizes(given.shape)
    mask = resize_mask(given, whole=whole, size=size, how=protocol.mask_to_input)
    labels = soften_labels(mask, ids=[0, 1, 2], grid=grid, method=protocol.mask_down)
    np.testing.assert_array_equal(labels.permute(2, 0, 1), numbers[f"{tag}_lbl0"])
    soft = np.random.RandomState(91).standard_normal((3, *grid)).astype(np.float16)
    soft = torch.from_numpy(np.abs(soft).astype(np.float32)).permute(1, 2, 0)
    found = harden_labels(
        soft / soft.sum(dim=-1, keepdim=True),
        ids=[0, 1, 2],
        stride=stride,
        size=size,
        normalize=protocol.normalize_output,
        method=protocol.mask_up,
    )
    found = restore_mask(found, whole=whole, size=expected.shape, how=protocol.mask_from_input)
    np.testing.assert_array_equal(found, expected)


def extractor_of(protocol, *, stride=16, mean=(0.0,) * 3, std=(1.0,) * 3, colors="rgb"):
    def backbone(images, *, layer):
        raise AssertionError("only sizes and inputs are looked at")

    backbone.stride, backbone.mean, backbone.std, backbone.colors = stride, mean, std, colors
    return FeatureExtractor(backbone, protocol=protocol)


def test_sizes_of_the_input(released):
    for height, width, *expected in released["rsp"]["size_rule_oh_ow_th_tw_segh_segw"][
        :, :4
    ].tolist():
        assert input_size((height, width), protocol=get_protocol("rsp"), stride=16) == (*expected,)
    for size in released["diff-zvos"]["size_rule_oh_ow_th_tw_moseh_mosew"].tolist():
        for name, expected in (("diff-zvos", size[2:4]), ("diff-zvos-mose", size[4:])):
            found = input_size((size[0], size[1]), protocol=get_protocol(name), stride=8)
            assert found == (*expected,)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("cropmae", (480, 854), (480, 880)),
        ("cropmae", (854, 480), (480, 880)),
        ("cropmae-vip", (720, 1280), (448, 880)),
        ("cropmae-vip", (1280, 720), (880, 448)),
        ("cropmae-vip", (480, 480), (880, 832)),
        ("rvm-vip", (720, 1280), (448, 880)),
    ],
)
def test_sizes_of_the_input_by_hand(name, size, expected):
    assert input_size(size, protocol=get_protocol(name), stride=16) == expected


def test_input_of_the_network(released):
    """Without resizing, except for Lanczos's; there no number is rounded otherwise."""
    native = {"data_size": None, "short_side": None, "rounding": "none"}
    normalized = {"mean": (0.485, 0.456, 0.406), "std": (0.228, 0.224, 0.225)}
    halves = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    for name, of_network in (("rsp", normalized), ("diff-zvos", halves)):
        extractor = extractor_of(get_protocol(name, **native), stride=8, **of_network)
        found = extractor.prepare(released[name]["pre_in_rgb_u8"])[0]
        np.testing.assert_allclose(found, released[name]["pre_out"], rtol=0, atol=1e-6)
    extractor = extractor_of(get_protocol("rvm", input_size=[16, 48]))
    found = extractor.prepare(released["rvm"]["resize_in_rgb_u8"])[0].permute(1, 2, 0) * 255
    np.testing.assert_allclose(found, released["rvm"]["resize_out_lanczos_16x48"], atol=1e-4)


def test_data_prepared_by_nearest_neighbor(released, inputs):
    """Both steps of rsp's first mask, and frames that are prepared like it."""
    prepared = resize_mask(inputs["gt0"], whole=(192, 288), size=(192, 288))
    np.testing.assert_array_equal(prepared, released["rsp"]["prep_gt0_192x288"])
    gray = np.repeat(inputs["gt0"][..., None] * 100, 3, axis=2)
    protocol = get_protocol("rsp", data_size=(192, 288), short_side=None, rounding="none")
    found = extractor_of(protocol).prepare(gray)[0, 0] * 255
    np.testing.assert_allclose(found, prepared * 100.0, atol=1e-4)


@pytest.fixture
def rsp_small():
    """rsp where 480x880 is 192x288 and 480x832 is `WHOLE`."""
    small = {"data_size": (192, 288), "short_side": 192, "size_multiple": 272}
    return get_protocol("rsp", **small, radius=30)


def test_rsp_from_frames_to_scores(tmp_path, released, inputs, rsp_small):
    """Masks, and what they are compared with, have the prepared size; a second run resumes."""
    folder = tmp_path / "davis"
    images, maps = (folder / one / "480p" / "clip" for one in ("JPEGImages", "Annotations"))
    for one in (images, maps, folder / "ImageSets" / "2017"):
        one.mkdir(parents=True)
    (folder / "ImageSets" / "2017" / "val.txt").write_text("clip\n")
    for number, frame in enumerate(gray_frames(12, (93, 131))):
        Image.fromarray(frame).save(images / f"{number:05d}.jpg")
        write_labels(maps / f"{number:05d}.png", inputs["gt0"])
    tracker = Tracker(TableBackbone(inputs["feats_f16"]), protocol=rsp_small)
    out = tmp_path / "out"
    scores = evaluate_davis(folder, out=out, tracker=tracker)
    expected = released["rsp"]["two_n30_r30_k7_masks"]
    masks = sorted((out / "predictions" / "clip").iterdir())
    np.testing.assert_array_equal([read_labels(path) for path in masks], expected)
    prepared = expected[0] == 1
    ious = [((m == 1) & prepared).sum() / ((m == 1) | prepared).sum() for m in expected[1:-1]]
    assert scores.objects[0].j.mean == pytest.approx(np.mean(ious))
    written = masks[3].stat().st_mtime_ns
    evaluate_davis(folder, out=out, tracker=tracker, resume=True)
    assert masks[3].stat().st_mtime_ns == written
    for path in list(maps.iterdir()):  # as for a server, which takes masks of the frames' size
        if path.stem != "00000":
            path.unlink()
    assert evaluate_davis(folder, out=tmp_path / "server", tracker=tracker) is None
    assert read_labels(tmp_path / "server/predictions/clip/00005.png").shape == (93, 131)


def test_rsp_gives_a_user_masks_of_the_video_s_size(released, inputs, rsp_small):
    tracker = Tracker(TableBackbone(inputs["feats_f16"]), protocol=rsp_small)
    results = list(tracker.track(gray_frames(12, (93, 131)), {0: inputs["gt0"]}))
    np.testing.assert_array_equal(results[0], inputs["gt0"])
    expected = released["rsp"]["two_n30_r30_k7_masks"]
    for found, theirs in zip(results[1:], expected[1:], strict=True):
        restored = restore_mask(theirs, whole=(192, 288), size=(93, 131))
        np.testing.assert_array_equal(found, restored)
    assert tracker.confidence().shape == (93, 131)


def test_rvm_from_frames_to_masks(released, inputs):
    protocol = get_protocol("rvm", input_size=WHOLE)
    tracker = Tracker(TableBackbone(inputs["feats_f16"]), protocol=protocol)
    results = list(tracker.track(gray_frames(12, (93, 131)), {0: inputs["gt0"]}))
    np.testing.assert_array_equal(results, released["rvm"]["two_n20_r20_k7_masks"])


def test_joints_of_rvm(released, inputs):
    numbers, maps = released["rvm"], joint_maps("rvm")
    size = tuple(numbers["jhmdb_ori_hw"].tolist())
    first = joints_to_maps(
        numbers["jhmdb_pose0"].astype(np.float64), image_size=size, grid=GRID, maps=maps
    )
    np.testing.assert_array_equal(first.permute(2, 0, 1), numbers["jhmdb_lbl0"])
    propagator = Propagator(get_protocol("rvm"))
    for time, features in enumerate(unit_features(inputs)[:12]):
        soft = propagator.step(features.view(*GRID, -1), first if time == 0 else None)
        np.testing.assert_allclose(
            soft.permute(2, 0, 1), numbers["jhmdb_soft"][time], rtol=0, atol=2e-6
        )
        joints = maps_to_joints(soft, image_size=size, maps=maps)
        is_lost = numbers["jhmdb_visible"][time] == 0
        np.testing.assert_array_equal(np.isnan(joints).any(axis=1), is_lost)
        # The fifth and the sixth place of a joint are often equal; their order is not defined.
        six = soft[..., 1:].flatten(0, 1).topk(6, dim=0).values
        clear = ~is_lost & (six[4] - six[5] > 1e-5).numpy()
        assert clear.any()
        np.testing.assert_allclose(joints[clear], numbers["jhmdb_coords"][time][clear], atol=1e-3)


def test_joints_near_the_edges_by_hand():
    """x = 0.3 is drawn as 1, for the released code cuts -1.2 off at -1."""
    maps = joint_maps("cropmae")
    joints = np.array([[0.3, 5.3], [-9.0, 5.0]])
    drawn = joints_to_maps(joints, image_size=(20, 20), grid=(20, 20), maps=maps)
    near, outside = drawn[..., 1].numpy(), drawn[..., 2]
    assert near.max() == near[5, 1] == 1
    assert np.argwhere(near).min(axis=0).tolist() == [3, 0]
    assert np.argwhere(near).max(axis=0).tolist() == [6, 1]
    assert not outside.any()
    assert PckRule().scale == 0.6


CROPMAE = [
    ("two_n20_r20_k7", {}),
    ("one_n4_r3_k7", {"num_context": 4, "radius": 3}),
    ("two_n7_r6_k10_T0.1", {"num_context": 7, "radius": 6, "topk": 10, "temperature": 0.1}),
    *[
        pytest.param(f"{kind}_{tag}", changes, marks=pytest.mark.slow)
        for kind, tag, changes in (
            ("one", "n20_r20_k7", {}),
            ("two", "n20_r20_k10", {"topk": 10}),
            ("two", "n4_r3_k7", {"num_context": 4, "radius": 3}),
            (
                "one",
                "n7_r6_k10_T0.1",
                {"num_context": 7, "radius": 6, "topk": 10, "temperature": 0.1},
            ),
        )
    ],
]


@pytest.mark.parametrize(("tag", "changes"), CROPMAE)
def test_cropmae(inputs, tag, changes):
    """From the first mask to the masks of all frames, and the soft labels between."""
    ids = [0, 1, 2] if tag.startswith("two") else [0, 1]
    given = np.where(np.isin(inputs["gt0"], ids), inputs["gt0"], np.uint8(0))
    protocol = get_protocol("cropmae", input_size=WHOLE, **changes)
    rule = {name: getattr(protocol, name) for name in ("num_context", "radius", "topk")}
    first = oracle.reduced(given, ids, input_size=WHOLE, grid=GRID)
    features = inputs["feats_f16"][:NUM_FRAMES].astype(np.float64).reshape(-1, *GRID, 16)
    expected = oracle.propagated(features, first, temperature=protocol.temperature, **rule)
    propagator = Propagator(protocol)
    for time, soft in enumerate(expected):
        new = torch.from_numpy(first).float() if time == 0 else None
        found = propagator.step(unit_features(inputs)[time].view(*GRID, -1), new)
        np.testing.assert_allclose(found, soft, rtol=0, atol=2e-6)
    tracker = Tracker(TableBackbone(inputs["feats_f16"]), protocol=protocol)
    results = list(tracker.track(gray_frames(NUM_FRAMES, (93, 131)), {0: given}))
    masks = [oracle.restored(s, ids, input_size=WHOLE, size=(93, 131)) for s in expected]
    np.testing.assert_array_equal(results, masks)
    assert len({mask.tobytes() for mask in masks}) > NUM_FRAMES // 2


def test_parts_by_cropmae(tmp_path, inputs):
    """VIP's own size rule, k and way back, from frames to label maps."""
    frames = gray_frames(3, (93, 131))
    write_part_video(tmp_path, "clip", frames, {0: inputs["gt0"]})
    # By the rule that makes 720 x 1280 into 448 x 880, 93 x 131 is `WHOLE`.
    tracker = LabelTracker(
        TableBackbone(inputs["feats_f16"]), get_protocol("cropmae-vip", long_side=272)
    )
    (video,) = read_vip(tmp_path, split="val")
    propagate_parts(video, tmp_path / "out", tracker=tracker)
    ids = [0, 1, 2]
    first = oracle.reduced(inputs["gt0"], ids, input_size=WHOLE, grid=GRID)
    features = inputs["feats_f16"][:3].astype(np.float64).reshape(-1, *GRID, 16)
    rule = {"num_context": 20, "radius": 20, "topk": 10, "temperature": 0.7}
    for path, soft in zip(video.frames, oracle.propagated(features, first, **rule), strict=True):
        expected = oracle.restored(soft, ids, input_size=WHOLE, size=(93, 131), exact=True)
        found = read_labels(tmp_path / "out" / "clip" / f"{path.stem}.png")
        np.testing.assert_array_equal(found, expected)


def test_masks_of_cropmae_at_the_official_size(released):
    """The labels and masks that the released code of rvm is compared by, in the twin's way."""
    given, ids = released["rvm"]["official_gt"], [0, 1, 2]
    sizes = {"input_size": (480, 880)}
    low = oracle.reduced(given, ids, **sizes, grid=(30, 55))
    np.testing.assert_array_equal(low.transpose(2, 0, 1), released["rvm"]["official_lbl0"])
    soft = np.random.default_rng(0).random((30, 55, 3)).astype(np.float32)
    for name in ("cropmae", "cropmae-vip"):
        protocol = get_protocol(name)
        mask = resize_mask(given, whole=(480, 880), size=(480, 880), how=protocol.mask_to_input)
        labels = soften_labels(mask, ids=ids, grid=(30, 55), method=protocol.mask_down)
        np.testing.assert_array_equal(labels, low.astype(np.float32))
        found = harden_labels(
            torch.from_numpy(soft),
            ids=ids,
            stride=16,
            size=(480, 880),
            normalize=False,
            method=protocol.mask_up,
        )
        found = restore_mask(found, whole=(480, 880), size=(480, 854), how=protocol.mask_from_input)
        exact = name == "cropmae-vip"
        expected = oracle.restored(soft, ids, **sizes, size=(480, 854), exact=exact)
        np.testing.assert_array_equal(found, expected)


def test_input_of_cropmae(released):
    """Interpolated in real numbers; whole ones are off by up to half a level."""
    frame, size = released["rvm"]["resize_in_rgb_u8"], (16, 48)
    of_network = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    expected = oracle.network_input(frame, size, **of_network)
    for how, most in (("linear-float", 2e-6), ("linear", 0.02)):
        protocol = get_protocol("cropmae", input_size=size, input_resize=how)
        found = extractor_of(protocol, **of_network).prepare(frame)[0].numpy()
        assert np.abs(found - expected).max() < most
    assert np.abs(found - expected).max() > 0.005


def test_real_numbers_and_lab():
    """A network that sees Lab is given whole numbers, which differ by rounding only."""
    frame = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    usual, real = (
        extractor_of(get_protocol("cropmae", input_size=(16, 48), input_resize=how), colors="lab")
        for how in ("linear", "linear-float")
    )
    assert (usual.prepare(frame) - real.prepare(frame)).abs().max() < 3


@pytest.mark.parametrize("shape", ["square", "circle", "closed-circle"])
@pytest.mark.parametrize("radius", [2, None])
def test_euclidean_distances_rank_unit_vectors_as_cosines_do(shape, radius):
    maps = F.normalize(torch.randn(4, 5, 7, 6), dim=-1)
    window = Window(radius, shape)
    matchers = (
        DistanceMatcher(topk=9, window=window, norm="euclidean"),
        TiledMatcher(topk=9, window=window),
    )
    for windowed in (True, False):
        distance, cosine = (
            matcher.match(
                matcher.prepare(maps[0]),
                [matcher.prepare(one) for one in maps[1:]],
                [[0, 1, 2], [2]],
                windowed=windowed,
            )
            for matcher in matchers
        )
        for found, usual in zip(distance, cosine, strict=True):
            inside = usual.similarity.isfinite()
            assert torch.equal(found.position[inside], usual.position[inside])
            expected = -(2 - 2 * usual.similarity).clamp(min=0).sqrt()
            torch.testing.assert_close(found.similarity, expected)


def test_a_protocol_s_name_on_another_data_set():
    names = ("cropmae", "rvm", "rsp", "cropmae-vip", "dino")
    found = [protocol_on(name, "vip") for name in names]
    assert found == ["cropmae-vip", "rvm-vip", "rsp", "cropmae-vip", "dino"]
    assert protocol_on("cropmae", "jhmdb") == "cropmae"
