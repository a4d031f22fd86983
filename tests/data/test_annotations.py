"""Masks that were drawn elsewhere: which frame, which object, which name, and what is refused."""

import base64
import io
import json
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ino.data.annotations import read_annotations
from ino.data.label_maps import write_labels
from ino.data.rle import decode_brush, decode_coco, decode_rows, encode_coco, encode_rows
from ino.errors import MaskError

# pycocotools' own decoder under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Twelve frames of 48x64."""
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    return write_clip(path)


def write_clip(path, num_frames=12):
    from ino.data.video import VideoWriter

    rng = np.random.default_rng(0)
    with VideoWriter(path, fps=10.0) as writer:
        for _ in range(num_frames):
            writer.write(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    return path


def square(top=10, left=20, side=8):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def corners(top=10, left=20, side=8):
    """The polygon of `square`."""
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return str(path)


def png_text(mask):
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def labelme(shapes, image="00003.png"):
    return {
        "version": "6.3.1",
        "flags": {},
        "shapes": [{"group_id": None, "flags": {}, "shape_type": "polygon"} | s for s in shapes],
        "imagePath": image,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }


def pairs(values):
    return [list(map(float, pair)) for pair in zip(values[::2], values[1::2], strict=True)]


DOG = {"label": "dog", "points": pairs(corners())}
CAT = {"label": "cat", "points": pairs(corners(30, 5))}


def test_labelme(video, tmp_path):
    mask = {
        "label": "bird",
        "shape_type": "mask",
        "points": [[40, 30], [45, 35]],
        "mask": png_text(np.ones((6, 6), bool)),
    }
    path = write(tmp_path / "a.json", labelme([DOG, CAT, mask, {**DOG, "shape_type": "line"}]))
    found = read_annotations([path], video)
    assert found.names == {1: "dog", 2: "cat", 3: "bird"}
    labels = found.labels[3]
    np.testing.assert_array_equal(labels == 1, square())
    np.testing.assert_array_equal(labels == 2, square(30, 5))
    np.testing.assert_array_equal(labels == 3, square(30, 40, 6))


def test_objects_of_one_name_are_one_object_in_all_files(video, tmp_path):
    first = write(tmp_path / "00000.json", labelme([CAT, DOG, {**DOG}], image="00000.png"))
    later = write(tmp_path / "00005.json", labelme([DOG, CAT], image="00005.png"))
    found = read_annotations([first, later, "7=dog:polygon=1,1,9,1,9,9"], video)
    assert found.names == {1: "cat", 2: "dog", 3: "dog"}
    assert set(np.unique(found.labels[5])) == {0, 1, 2}
    assert set(np.unique(found.labels[7])) == {0, 2}
    assert list(read_annotations([str(tmp_path)], video).labels) == [0, 5]  # as a folder


def test_shapes_of_a_group_are_one_object(video, tmp_path):
    parts = [DOG | {"group_id": 4}, DOG | {"group_id": 4, "points": CAT["points"]}]
    found = read_annotations([write(tmp_path / "a.json", labelme(parts))], video)
    np.testing.assert_array_equal(found.labels[3], square() | square(30, 5))


def coco_file(segmentation, **values):
    return {
        "images": [{"id": 7, "file_name": "frame_000004.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "segmentation": segmentation, **values}
        ],
    }


@pytest.mark.parametrize("kind", ["polygon", "runs", "text"])
def test_coco(video, tmp_path, kind):
    column = square().T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column, [0]])))
    runs = np.diff(np.concatenate([[0], edges, [column.size]])).tolist()
    text = coco.encode(np.asfortranarray(square(), dtype=np.uint8))["counts"].decode()
    size = [HEIGHT, WIDTH]
    segmentation = {
        "polygon": [corners()],
        "runs": {"size": size, "counts": runs},
        "text": {"size": size, "counts": text},
    }[kind]
    path = write(tmp_path / "c.json", coco_file(segmentation, track_id=9))
    found = read_annotations([path], video)
    assert found.names == {9: "dog"}
    np.testing.assert_array_equal(found.labels[4], 9 * square())


def test_run_lengths_are_those_of_the_library():
    rng = np.random.default_rng(0)
    for size in ((1, 1), (5, 7), (48, 64)):
        for share in (0, 0.1, 0.5, 1):
            mask = rng.random(size) < share
            stored = encode_coco(mask)
            np.testing.assert_array_equal(decode_coco(stored["counts"], size), mask)
            np.testing.assert_array_equal(coco.decode(stored).astype(bool), mask)
            np.testing.assert_array_equal(decode_rows(encode_rows(mask), size), mask)


def test_youtube_vis_and_a_video_among_several(video, tmp_path):
    content = {
        "videos": [
            {"id": 1, "file_names": ["clip/00000.jpg", "clip/00006.jpg"], "width": WIDTH},
            {"id": 2, "file_names": ["other/00000.jpg"], "width": 10, "height": 10},
        ],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {"id": 5, "video_id": 1, "category_id": 1, "segmentations": [None, [corners()]]},
            {"id": 6, "video_id": 2, "category_id": 1, "segmentations": [[corners()]]},
        ],
    }
    found = read_annotations([write(tmp_path / "v.json", content)], video)
    assert (list(found.labels), found.names) == ([6], {5: "dog"})
    np.testing.assert_array_equal(found.labels[6], 5 * square())


CVAT_VIDEO = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><original_size><width>64</width><height>48</height></original_size></task></meta>
<track id="0" label="dog" source="manual">
  <polygon frame="0" keyframe="1" outside="0" occluded="0" z_order="0"
    points="20.00,10.00;28.00,10.00;28.00,18.00;20.00,18.00"/>
  <polygon frame="1" keyframe="0" outside="0" z_order="0" points="0,0;9,0;9,9"/>
  <polygon frame="5" keyframe="1" outside="0" z_order="0" points="0,0;9,0;9,9"/>
  <polygon frame="6" keyframe="1" outside="1" z_order="0" points="0,0;9,0;9,9"/>
</track>
<track id="1" label="cat" source="manual">
  <box frame="5" keyframe="1" outside="0" xtl="30" ytl="20" xbr="40" ybr="30" z_order="0"/>
  <box frame="8" keyframe="1" outside="0" xtl="32" ytl="20" xbr="42" ybr="30" z_order="0"/>
</track>
<track id="2" label="bird" source="manual">
  <mask frame="2" keyframe="1" outside="0" rle="1, 2, 1" left="3" top="4" width="2" height="2"/>
  <mask frame="3" keyframe="1" outside="1" rle="1, 2, 1" left="3" top="4" width="2" height="2"/>
</track>
</annotations>
"""


def test_cvat_key_frames_are_the_annotations(video, tmp_path):
    found = read_annotations([write(tmp_path / "t.xml", CVAT_VIDEO)], video)
    assert list(found.labels) == [0, 2, 5, 8]
    assert found.names == {1: "dog", 2: "cat", 3: "bird"}
    np.testing.assert_array_equal(found.labels[0], square())
    assert np.argwhere(found.labels[2] == 3).tolist() == [[4, 4], [5, 3]]
    assert [(one.frame, one.label) for one in found.prompts] == [(5, 2), (8, 2)]
    assert found.prompts[0].box == (30, 20, 40, 30)


def test_cvat_for_images_in_a_zip_file(video, tmp_path):
    content = """<annotations><version>1.1</version><image id="4" name="frame_000004" width="64"
    height="48"><polygon label="dog" points="20,10;28,10;28,18;20,18" z_order="1"/>
    <polygon label="cat" points="0,0;64,0;64,48;0,48" z_order="0"/></image></annotations>"""
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as packed:
        packed.writestr("annotations.xml", content)
    found = read_annotations([str(tmp_path / "export.zip")], video)
    front = {name: number for number, name in found.names.items()}["dog"]
    np.testing.assert_array_equal(found.labels[4] == front, square())


def test_a_turned_box_is_the_upright_one_around_it(video, tmp_path):
    turned = CVAT_VIDEO.replace('xbr="40" ybr="30"', 'xbr="40" ybr="30" rotation="45"')
    found = read_annotations([write(tmp_path / "t.xml", turned)], video)
    reach = 5 * 2**0.5
    assert found.prompts[0].box == pytest.approx((35 - reach, 25 - reach, 35 + reach, 25 + reach))


def label_studio(kind, value):
    return [
        {
            "id": 1,
            "data": {"image": "/data/upload/1/1a2b3c4d-00002.png"},
            "annotations": [
                {
                    "id": 1,
                    "result": [
                        {
                            "id": "x",
                            "type": kind,
                            "original_width": WIDTH,
                            "original_height": HEIGHT,
                            "value": {**value, kind: ["dog"]},
                        }
                    ],
                }
            ],
        }
    ]


def brush(mask):
    """The bits of a brush of Label Studio, every value by itself or in runs of 256."""
    bits = f"{mask.size * 4:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    values = np.repeat(mask.ravel().astype(int) * 255, 4)
    place = 0
    while place < len(values):
        run = 1
        while run < 256 and place + run < len(values) and values[place + run] == values[place]:
            run += 1
        if run > 8:
            bits += f"1{2:02b}{run - 1:08b}{values[place]:08b}"
        else:
            bits += f"0{0:02b}{run - 1:03b}" + f"{values[place]:08b}" * run
        place += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_label_studio(video, tmp_path):
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in pairs(corners())]
    path = write(tmp_path / "p.json", label_studio("polygonlabels", {"points": points}))
    found = read_annotations([path], video)
    assert found.names == {1: "dog"}
    np.testing.assert_array_equal(found.labels[2], square())
    rle = {"format": "rle", "rle": brush(square())}
    path = write(tmp_path / "b.json", label_studio("brushlabels", rle))
    np.testing.assert_array_equal(read_annotations([path], video).labels[2], square())
    box = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0}
    path = write(tmp_path / "r.json", label_studio("rectanglelabels", box))
    assert read_annotations([path], video).prompts[0].box == (16, 24, 48, 36)
    path = write(tmp_path / "t.json", label_studio("rectanglelabels", box | {"rotation": 90}))
    assert read_annotations([path], video).prompts[0].box == pytest.approx((4, 24, 16, 48))


def test_arrays_and_stacks(video, tmp_path):
    stack = np.zeros((12, HEIGHT, WIDTH), np.uint16)
    stack[2], stack[7] = 400 * square(), 500 * square() + 400 * square(30, 5)
    np.save(tmp_path / "s.npy", stack)
    pages = [Image.fromarray(page) for page in stack]
    pages[0].save(tmp_path / "s.tif", save_all=True, append_images=pages[1:])
    np.savez(tmp_path / "s.npz", stack)
    np.savez(tmp_path / "f.npz", **{"2": stack[2] // 400, "7": stack[7] // 250})
    for name in ("s.npy", "s.tif", "s.npz", "f.npz"):
        found = read_annotations([str(tmp_path / name)], video)
        assert list(found.labels) == [2, 7], name
        np.testing.assert_array_equal(found.labels[7], 2 * square() + square(30, 5))
    one = tmp_path / "one.npy"
    np.save(one, square())
    assert list(read_annotations([str(one)], video).labels) == [0]
    assert list(read_annotations([f"4={one}"], video).labels) == [4]


def test_typed_masks(video, tmp_path):
    given = ["dog:box=10,8,20,18", "dog:points=12,9,-60,40", "40,1"]
    with pytest.raises(MaskError, match="40,1 is not a file"):
        read_annotations(given, video)
    found = read_annotations(
        [*given[:2], "box=1,1,5,5", "3=2:polygon=20,10,28,10,28,18,20,18"], video
    )
    assert found.names == {1: "dog"}
    dog, other = found.prompts
    assert (dog.frame, dog.label, dog.box) == (0, 1, (10, 8, 20, 18))
    assert dog.points == ((12, 9, True), (60, 40, False))
    assert (other.label, other.box) == (3, (1, 1, 5, 5))
    np.testing.assert_array_equal(found.labels[3], 2 * square())
    write_labels(tmp_path / "m.png", square().astype(np.uint8))
    found = read_annotations([str(tmp_path / "m.png"), "5=box=1,1,5,5"], video)
    assert found.prompts[0].label == 1  # the first object without a name is the one of the mask


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("box=1,2,3", r"give box=LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("box=9,9,3,3", "is no box"),
        ("box=nan,1,3,3", "is not understood"),
        ("box=100,100,120,120", "outside of the frame of 48x64"),
        ("points=1e308,5", "outside of the frame"),
        ("polygon=1,1,2,2", "give polygon=X,Y"),
        ("polygon=1,1,2,2,1e308,5", "not near the frame"),
        ("", "names no file"),
        ("3=", "names no file"),
    ],
)
def test_what_is_typed_wrong_is_refused(video, text, reason):
    with pytest.raises(MaskError, match=reason):
        read_annotations([text], video)


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;">]>
<annotations><image name="&b;"/></annotations>"""
RLE = {"size": [HEIGHT, WIDTH], "counts": [0, 5]}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.xml", BOMB, "declares a document type"),
        ("a.xml", "<annotations>" + "<a>" * 100_000, "more than 64 levels"),
        ("a.xml", "<annotations>", "no whole XML"),
        ("a.xml", "<svg/>", "not of CVAT"),
        ("a.xml", CVAT_VIDEO.replace('rle="1, 2, 1"', 'rle="1, 99999999999"'), "beyond its 4"),
        ("a.xml", CVAT_VIDEO.replace('width="2"', 'width="999999999"'), "not possible"),
        ("a.xml", CVAT_VIDEO.replace("28.00,10.00", "inf,nan"), "not near the frame"),
        ("a.json", "[" * 100_000, "levels deep"),
        ("a.json", '{"shapes": NaN}', "no finite number"),
        ("a.json", "{}", "not of labelme, COCO"),
        ("a.json", "[1, 2]", "Label Studio"),
        ("a.json", {"shapes": [{}]}, "'label' is missing"),
        ("a.json", labelme([DOG | {"points": [[1e308, 0], [1, 1], [2, 5]]}]), "not near"),
        ("a.json", labelme([DOG | {"points": [[1, 1], [2, 2]]}]), "three or more points"),
        ("a.json", labelme([DOG | {"points": [[0, 0], [600, 600]] * 4000}]), "pixels long"),
        ("a.json", labelme([DOG]) | {"imageHeight": 1 << 40}, "not possible"),
        ("a.json", labelme([DOG]) | {"imageHeight": 96}, "96x64 but the frames are 48x64"),
        ("a.json", labelme([DOG | {"label": f"{i}"} for i in range(255)]), "more than 254"),
        ("a.json", labelme([DOG | {"shape_type": "mask", "mask": "?"}]), "no PNG in base64"),
        ("a.json", coco_file(RLE), "cover 5 pixels"),
        ("a.json", coco_file(RLE | {"counts": "\u00e9"}), "characters that COCO"),
        ("a.json", coco_file(RLE | {"size": [1 << 20, 1 << 20]}), "not possible"),
        ("a.json", coco_file(RLE | {"counts": [1.5]}), "whole numbers"),
        ("a.json", coco_file(RLE | {"counts": "o" * 99}), "characters that COCO|break off"),
        ("a.json", label_studio("brushlabels", {"rle": [255] * 30}), "values, but"),
        ("a.json", label_studio("brushlabels", {"rle": brush(square())[:20]}), "breaks off"),
        ("a.txt", "0 1001 1 48 64", "5 parts, but MOTS has 6"),
        ("a.npy", "no array", "cannot be read as an array"),
        ("a.npz", "no zip", "cannot be read as arrays"),
        ("a.zip", "no zip", "cannot be read as a zip file"),
        ("a.tif", "no TIFF", "cannot be read as a TIFF"),
    ],
)  # fmt: skip
def test_hostile_files_are_one_sentence(video, tmp_path, name, content, reason):
    start = time.monotonic()
    with pytest.raises(MaskError, match=reason) as caught:
        read_annotations([write(tmp_path / name, content)], video)
    assert name in str(caught.value) or "96x64" in str(caught.value) or "254" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5


def test_an_array_that_promises_more_than_it_holds(video, tmp_path):
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as packed:
        packed.writestr("masks.npy", header.getvalue())
    (tmp_path / "a.npy").write_bytes(header.getvalue())
    for name in ("a.npz", "a.npy"):
        with pytest.raises(MaskError, match=name):
            read_annotations([str(tmp_path / name)], video)


def test_more_frames_than_memory_are_one_sentence(video, tmp_path, monkeypatch):
    monkeypatch.setattr("ino.data.annotations.MAX_MEMORY", 3 * HEIGHT * WIDTH)
    monkeypatch.setattr("ino.data.annotation_formats.MAX_MEMORY", 3 * HEIGHT * WIDTH)
    np.save(tmp_path / "a.npy", np.stack([square().astype(np.uint8)] * 4))
    for given in ([str(tmp_path / "a.npy")], [f"{i}=polygon=1,1,9,1,9,9" for i in range(4)]):
        with pytest.raises(MaskError, match="need more than"):
            read_annotations(given, video)


def test_masks_of_another_size_are_fitted_if_asked(video, tmp_path):
    content = labelme([DOG, CAT | {"shape_type": "rectangle", "points": [[8, 8], [16, 16]]}])
    content |= {"imageHeight": 2 * HEIGHT, "imageWidth": 2 * WIDTH}
    found = read_annotations([write(tmp_path / "a.json", content)], video, resize=True)
    np.testing.assert_array_equal(found.labels[3], square(5, 10, 4))
    assert found.prompts[0].box == (4, 4, 8, 8)


def test_numbers_that_are_no_objects_are_told(video, tmp_path, caplog):
    content = coco_file([corners()], track_id=1000)
    found = read_annotations([write(tmp_path / "a.json", content)], video)
    assert found.names == {1: "dog"}
    assert "1000 is object 1" in caplog.text


def test_a_brush_is_read_as_it_was_painted():
    mask = np.random.default_rng(0).random((9, 11)) < 0.4
    np.testing.assert_array_equal(decode_brush(brush(mask), (9, 11)), mask)


def folder_of_images(folder, names):
    folder.mkdir()
    for name in names:
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / f"{name}.bmp")
    return folder


@pytest.mark.parametrize(
    ("given", "names", "expected"),
    [
        (["m.png"], None, [0]),
        (["3=m.png"], None, [3]),
        (["m.png", "3=n.png"], ["00001", "00002", "00003", "00004"], [0, 2]),
        (["00003.png"], ["00001", "00002", "00003"], [2]),
        (["00005.png"], ["00000", "00005", "00010"], [1]),
        (["5=m.png"], ["00000", "00005", "00010"], [1]),
        (["left_2=m.png"], ["left_1", "left_2"], [1]),
        (["2=m.png"], ["left_1", "left_2"], [1]),
        (["00004.png"], None, [4]),  # as ino frame names them
        (["mask2.png"], None, [0]),
    ],
)
def test_a_mask_belongs_to_the_frame_whose_name_it_bears(
    video, tmp_path, monkeypatch, given, names, expected
):
    monkeypatch.chdir(tmp_path)
    for text in given:
        write_labels(text.rpartition("=")[2], square().astype(np.uint8))
    place = video if names is None else folder_of_images(tmp_path / "frames", names)
    assert list(read_annotations(given, place).labels) == expected


def test_masks_of_a_folder_belong_to_the_frames_of_their_names(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("00001.png", "00005.png"):
        write_labels(masks / name, square().astype(np.uint8))
    some = folder_of_images(tmp_path / "some", ["00001", "00005", "00009"])
    assert list(read_annotations([str(masks)], some).labels) == [0, 1]
    others = folder_of_images(tmp_path / "others", ["00001", "00002", "00003", "00004"])
    with pytest.raises(MaskError, match=r"00005\.png.* is for frame 00005, .* 00001 to 00004"):
        read_annotations([str(masks)], others)
    with pytest.raises(MaskError, match="both for frame 00001; give one"):
        read_annotations([str(masks), f"1={masks / '00005.png'}"], some)


def test_a_number_that_is_no_frame_is_told(video, tmp_path, caplog):
    write_labels(tmp_path / "2024.png", square().astype(np.uint8))
    assert list(read_annotations([str(tmp_path / "2024.png")], video).labels) == [0]
    assert "the video has no frame 2024" in caplog.text


def test_frames_matched_by_number_are_told(tmp_path, caplog):
    place = folder_of_images(tmp_path / "frames", ["left_1", "left_2"])
    path = write(tmp_path / "a.json", labelme([DOG], image="shot_0002.png"))
    assert list(read_annotations([path], place).labels) == [1]
    assert "shot_0002 is frame left_2 by its number" in caplog.text
