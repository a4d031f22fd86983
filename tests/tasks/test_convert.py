"""Masks out: every format is read back by its own library and by our reader."""

import csv
import json

import av
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from skimage.measure import regionprops_table

from data.video_files import moving_frames, write_video
from ino.cli import main
from ino.data.annotations import read_annotations
from ino.data.label_maps import write_labels
from ino.data.video import VideoWriter, frame_number, read_frames, read_info
from ino.errors import MaskError, OutputError, VideoError
from ino.tasks.convert import FORMATS, convert_result, write_frames
from ino.tasks.masks import read_masks

# pycocotools' own decoder under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH, NUM_FRAMES = 45, 64, 6
NAMES = {1: "dog", 2: "cat / <b>", 7: "dog"}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A result as of `ino segment`, its video, and its label maps."""
    folder = tmp_path_factory.mktemp("results")
    video, masks = folder / "clip.mp4", folder / "out" / "masks"
    masks.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with VideoWriter(video, fps=10.0) as writer:
        for _ in range(NUM_FRAMES):
            writer.write(rng.integers(0, 255, (HEIGHT + 1, WIDTH, 3), np.uint8))
    maps = []
    for number in range(NUM_FRAMES):
        labels = np.zeros((HEIGHT + 1, WIDTH), np.uint8)
        labels[5:20, 4 + number : 20 + number] = 1
        labels[10:14, 10:12] = 0  # a hole
        if number != 3:
            labels[30:44, 40:] = 2
        labels[25, 3:9] = 7
        maps.append(labels)
        write_labels(masks / f"{number:05d}.png", labels)
    settings = {"video": str(video), "objects": {str(n): name for n, name in NAMES.items()}}
    (folder / "out" / "settings.json").write_text(json.dumps(settings))
    return folder / "out", video, np.stack(maps)


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    out = tmp_path_factory.mktemp("written")
    convert_result(result[0], list(FORMATS), out=out)
    return out


@pytest.mark.parametrize(
    ("name", "has_names"),
    [
        ("png-per-object", True),
        ("coco.json", True),
        ("coco-images/annotations/instances_default.json", True),
        ("ytvis.json", True),
        ("mots.txt", True),
        ("cvat.xml", True),
        ("masks.mkv", False),
        ("masks.tiff", False),
        ("masks.npz", True),
    ],
)
def test_what_goes_out_comes_in_again(result, written, name, has_names):
    _, video, maps = result
    found = read_annotations([str(written / name)], video)
    for number, labels in enumerate(maps):
        np.testing.assert_array_equal(found.labels[number], labels, err_msg=str(number))
    if name == "png-per-object":  # names of folders cannot hold every character
        assert found.names == {1: "dog", 2: "cat _ _b_", 7: "dog"}
    else:
        assert found.names == (NAMES if has_names else {})


def test_coco_by_its_own_library(result, written, capsys):
    _, _, maps = result
    data = COCO(str(written / "coco.json"))
    assert [one["name"] for one in data.loadCats(data.getCatIds())] == ["dog", "cat / <b>"]
    for image, labels in zip(data.loadImgs(data.getImgIds()), maps, strict=True):
        shown = np.zeros_like(labels)
        for one in data.loadAnns(data.getAnnIds(image["id"])):
            mask = data.annToMask(one)
            shown[mask > 0] = one["track_id"]
            assert one["area"] == mask.sum()
            assert one["bbox"] == coco.toBbox(one["segmentation"]).tolist()
        np.testing.assert_array_equal(shown, labels)


def test_a_coco_data_set_has_its_frames(result, written):
    folder = written / "coco-images"
    content = json.loads((folder / "annotations" / "instances_default.json").read_text())
    alone = json.loads((written / "coco.json").read_text())
    assert content["annotations"] == alone["annotations"]
    frames = list(read_frames(result[1]))
    for one, frame in zip(content["images"], frames, strict=True):
        with Image.open(folder / "images" / "default" / one["file_name"]) as image:
            assert np.abs(np.asarray(image, float) - frame).mean() < 8


def test_ytvis_and_mots_by_the_library_of_their_masks(result, written):
    _, _, maps = result
    content = json.loads((written / "ytvis.json").read_text())
    for one in content["annotations"]:
        for labels, stored in zip(maps, one["segmentations"], strict=True):
            mask = labels == one["id"]
            assert (stored is None) == (not mask.any())
            if stored:
                np.testing.assert_array_equal(coco.decode(stored), mask)
    for line in (written / "mots.txt").read_text().splitlines():
        frame, track, kind, height, width, counts = line.split()
        mask = coco.decode({"size": [int(height), int(width)], "counts": counts})
        np.testing.assert_array_equal(mask, maps[int(frame)] == int(track) % 1000)
        assert int(track) // 1000 == int(kind)
    assert (written / "mots_labels.txt").read_text().splitlines() == ["dog", "cat / <b>"]


def test_stacks_and_arrays_by_their_libraries(result, written):
    _, _, maps = result
    np.testing.assert_array_equal(tifffile.imread(written / "masks.tiff"), maps)
    with np.load(written / "masks.npz") as arrays:
        np.testing.assert_array_equal(arrays["masks"], maps)
        assert arrays["object_names"].tolist() == list(NAMES.values())


def decoded(path, *, codec, pixels):
    """Every frame by that decoder."""
    with av.open(str(path)) as container:
        decoder = av.CodecContext.create(codec, "r")
        stream = container.streams.video[0]
        decoder.extradata = stream.codec_context.extradata
        decoder.width, decoder.height = stream.width, stream.height
        packets = list(container.demux(stream))
        return [
            frame.to_ndarray(format=pixels)
            for packet in packets
            for frame in decoder.decode(packet)
        ]


def test_cut_outs_have_an_alpha_channel(result, written):
    _, video, maps = result
    frames = list(read_frames(video))
    for number, (frame, labels) in enumerate(zip(frames, maps, strict=True)):
        with Image.open(written / "cutout-png" / f"{number:05d}.png") as image:
            assert image.mode == "RGBA"
            found = np.asarray(image)
        np.testing.assert_array_equal(found[..., 3] > 0, labels > 0)
        np.testing.assert_array_equal(found[..., :3][labels > 0], frame[labels > 0])
        assert not found[labels == 0].any()  # what is cut away cannot be brought back
    moving = decoded(written / "cutout.webm", codec="libvpx-vp9", pixels="rgba")
    assert len(moving) == NUM_FRAMES
    for found, labels in zip(moving, maps, strict=True):
        assert ((found[..., 3] > 127) == (labels > 0)).mean() > 0.98
    assert read_info(written / "overlay.mp4").num_frames == NUM_FRAMES
    assert read_info(written / "masks.mkv").fps == pytest.approx(10)


def test_areas_and_centroids_are_those_of_scikit_image(result, written):
    _, _, maps = result
    with (written / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    at = 0
    for number, labels in enumerate(maps):
        found = regionprops_table(labels, properties=("label", "area", "centroid", "bbox"))
        for index, label in enumerate(found["label"]):
            row = rows[at]
            at += 1
            assert (int(row["number"]), int(row["object"])) == (number, label)
            assert row["name"] == NAMES[label]
            assert int(row["area"]) == found["area"][index]
            assert float(row["centroid_y"]) == pytest.approx(found["centroid-0"][index], abs=1e-3)
            assert float(row["centroid_x"]) == pytest.approx(found["centroid-1"][index], abs=1e-3)
            assert int(row["left"]) == found["bbox-1"][index]
            assert int(row["top"]) + int(row["height"]) == found["bbox-2"][index]
            assert float(row["seconds"]) == pytest.approx(number / 10)
    assert at == len(rows)


def test_times_are_those_of_the_frames(tmp_path):
    """A phone records fewer frames in the dark."""
    times = [0, 40, 80, 200, 600, 640, 1000]
    video = write_video(tmp_path / "phone.mp4", moving_frames(7), times=times)
    (tmp_path / "masks").mkdir()
    for number in range(7):
        write_labels(tmp_path / "masks" / f"{number:05d}.png", np.eye(64, 96, dtype=np.uint8))
    for fps, expected in ((None, [time / 1000 for time in times]), (2.0, np.arange(7) / 2)):
        convert_result(
            tmp_path, ["csv"], out=tmp_path / "out", video=video, fps=fps, overwrite=True
        )
        with (tmp_path / "out" / "objects.csv").open() as file:
            found = [float(row["seconds"]) for row in csv.DictReader(file)]
        assert found == pytest.approx(expected)
    for text, number in (("0:00", 0), ("0:0.3", 3), ("0:0.55", 4), ("0:1.1", 6)):
        assert frame_number(text, video) == number
    assert frame_number("0:1.5", video) >= 7


def test_confidence_comes_from_the_table_beside_the_masks(result, tmp_path):
    out, _, _ = result
    (out / "frames.csv").write_text("frame,object,area,confidence,survival\n2,7,6,0.25,\n")
    try:
        convert_result(out, ["csv"], out=tmp_path)
    finally:
        (out / "frames.csv").unlink()
    rows = list(csv.DictReader((tmp_path / "objects.csv").open()))
    told = {(row["number"], row["object"]): row["confidence"] for row in rows}
    assert told["2", "7"] == "0.25"
    assert told["2", "1"] == ""


def test_any_folder_of_masks_is_a_result(tmp_path):
    (tmp_path / "frames").mkdir()
    for number in (3, 4):
        write_labels(tmp_path / f"{number:05d}.png", np.eye(9, dtype=np.uint8))
        Image.new("RGB", (9, 9)).save(tmp_path / "frames" / f"{number:05d}.jpg")
    convert_result(tmp_path, ["coco"], out=tmp_path / "images", video=tmp_path / "frames")
    content = json.loads((tmp_path / "images" / "coco.json").read_text())
    assert [one["file_name"] for one in content["images"]] == ["00003.jpg", "00004.jpg"]
    convert_result(tmp_path, ["csv", "coco"], out=tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "objects.csv").open()))
    assert [(row["number"], row["name"]) for row in rows] == [("3", "object 1"), ("4", "object 1")]
    with pytest.raises(VideoError, match="pass --video"):
        convert_result(tmp_path, ["overlay-video"], out=tmp_path / "out")
    assert not (tmp_path / "out" / "overlay.mp4").exists()
    with pytest.raises(OutputError, match="overwrite"):
        convert_result(tmp_path, ["csv"], out=tmp_path / "out")
    (tmp_path / "settings.json").write_text("[")
    with pytest.raises(MaskError, match="settings"):
        convert_result(tmp_path, ["csv"], out=tmp_path / "out2")


def test_what_an_earlier_result_left_is_removed(result, tmp_path):
    stale = [tmp_path / "cutout-png" / "00099.png", tmp_path / "png-per-object" / "9" / "00000.png"]
    for path in stale:
        path.parent.mkdir(parents=True)
        write_labels(path, np.ones((4, 4), np.uint8))
    formats = ["cutout-png", "png-per-object"]
    convert_result(result[0], formats, out=tmp_path, overwrite=True)
    assert not any(path.exists() for path in [*stale, stale[1].parent])
    assert len(list((tmp_path / "cutout-png").iterdir())) == NUM_FRAMES


def test_names_of_a_result_are_kept_when_its_masks_come_in_again(result):
    out, video, maps = result
    found = read_annotations([str(out / "masks")], video)
    assert found.names == NAMES
    np.testing.assert_array_equal(found.labels[2], maps[2])


def test_segment_keeps_names_and_saves(result, tmp_path, capsys):
    _, video, _ = result
    out = tmp_path / "out"
    arguments = ["--weights", "color", "--set", "short_side=none", "--save", "coco", "csv"]
    given = ["dog:polygon=4,5,20,5,20,20,4,20", "3=cat:polygon=38,28,64,28,64,46"]
    assert main(["segment", str(video), "--mask", *given, *arguments, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "mask of frame 0: object 1 dog (240 pixels, 8.2%), from dog:polygon=4,5" in shown
    settings = json.loads((out / "settings.json").read_text())
    assert settings["objects"] == {"1": "dog", "2": "cat"}
    assert settings["annotated"] == [0, 3]
    assert [path.name for path in sorted((out / "annotations").iterdir())] == [
        "00000.png",
        "00003.png",
    ]
    found = json.loads((out / "coco.json").read_text())["categories"]
    assert [one["name"] for one in found] == ["dog", "cat"]
    assert main(["convert", str(out), "--to", "tiff", "--out", str(tmp_path / "more")]) == 0
    assert main(["convert", str(out), "--to", "gif"]) == 2
    assert "there is no format 'gif'" in capsys.readouterr().err


def test_a_box_becomes_a_mask_of_what_is_in_it(tmp_path):
    video = tmp_path / "clip.mp4"
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 40, (64, 96, 3), np.uint8)
    frame[20:40, 30:60] = 200 + rng.integers(0, 40, (20, 30, 3), np.uint8)
    with VideoWriter(video, fps=10.0) as writer:
        for _ in range(4):
            writer.write(frame)
    expected = np.zeros((64, 96), bool)
    expected[20:40, 30:60] = True
    for given in (["2=dog:box=22,14,70,46"], ["2=points=45,30,-5,5,-90,60"]):
        labels = read_masks(given, video).labels[2]
        overlap = ((labels > 0) & expected).sum() / ((labels > 0) | expected).sum()
        assert overlap > 0.9, given
    with pytest.raises(MaskError, match="the video has 4 frames"):
        read_masks(["4=box=1,1,9,9"], video)
    with pytest.raises(MaskError, match="points where it is not, and none where"):
        read_masks(["points=-1,1"], video)


def test_frames_to_draw_on(result, tmp_path, capsys):
    _, video, _ = result
    assert main(["frame", str(video), "2", "5", "--out", str(tmp_path / "f")]) == 0
    frames = list(read_frames(video))
    for number in (2, 5):
        with Image.open(tmp_path / "f" / f"{number:05d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), frames[number])
    assert main(["frame", str(video), "6", "--out", str(tmp_path / "g")]) == 2
    assert "has 6 frames, numbered from 0, so there is no frame 6" in capsys.readouterr().err
    assert main(["frame", str(video), "last", "--out", str(tmp_path / "g")]) == 2
    assert "'last' is no frame of" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()
    time = f"0:{4 / read_info(video).fps:.3f}"
    assert [path.name for path in write_frames(video, [time], out=tmp_path / "t")] == ["00004.png"]
    (file,) = write_frames(video, [2], out=tmp_path / "one.png")
    assert file.read_bytes() == (tmp_path / "f" / "00002.png").read_bytes()
    with pytest.raises(OutputError, match="exists"):
        write_frames(video, [2], out=file)
    names = write_frames(tmp_path / "f", ["00005", 1], out=tmp_path / "h")
    assert [path.name for path in names] == ["00005.png", "00005.png"]
