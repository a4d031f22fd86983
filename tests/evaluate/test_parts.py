"""Mean IoU by hand."""

import numpy as np
import pytest

from ino.data.davis import VideoSequence
from ino.data.label_maps import write_labels
from ino.errors import DatasetError, MaskError
from ino.metrics import class_iou, count_labels
from ino.tasks.vip import score_parts

TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], dtype=np.uint8)
FOUND = np.array([[0, 0, 0, 1], [0, 1, 1, 2]], dtype=np.uint8)
NAMES = ("background", "hat", "hair", "face")


def test_by_hand():
    confusion = count_labels(FOUND, TRUTH, num_classes=4)
    assert confusion.tolist() == [[3, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    iou = class_iou(confusion)
    assert iou[:2].tolist() == [3 / 5, 2 / 4]
    assert np.isnan(iou[2:]).all()


def test_a_class_that_is_only_predicted_counts_as_0():
    iou = class_iou(count_labels(np.full_like(TRUTH, 2), TRUTH, num_classes=4))
    assert iou[:3].tolist() == [0, 0, 0]
    assert np.isnan(iou[3])


@pytest.fixture
def videos(tmp_path):
    """Two videos: one label map right, one as in the example above, first frames right."""
    found = []
    for name, predicted in (("a", TRUTH), ("b", FOUND)):
        folder = tmp_path / "truth" / name
        folder.mkdir(parents=True)
        (tmp_path / "predicted" / name).mkdir(parents=True)
        annotations = {}
        for number in (0, 2):
            annotations[number] = folder / f"{number}.png"
            write_labels(annotations[number], TRUTH)
            labels = np.where(TRUTH == 255, 0, TRUTH if number == 0 else predicted)
            write_labels(tmp_path / "predicted" / name / f"{number}.png", labels.astype(np.uint8))
        frames = tuple(tmp_path / "frames" / name / f"{number}.jpg" for number in range(3))
        found.append(VideoSequence(name, frames, annotations))
    return tmp_path / "predicted", found


def test_all_pixels_of_all_frames_together(videos):
    folder, sequences = videos
    scores = score_parts(folder, sequences, names=NAMES)
    # Three frames right (4 and 3 pixels), one with one error of each kind.
    assert scores.iou[:2] == (15 / 17, 11 / 13)
    assert scores.mean_iou == pytest.approx((15 / 17 + 11 / 13) / 2)
    assert scores.accuracy == 26 / 28
    assert scores.num_frames == 4
    later = score_parts(folder, sequences, names=NAMES, first_frame=False)
    assert later.iou[:2] == (7 / 9, 5 / 7)
    assert later.num_frames == 2


def test_predictions_that_do_not_fit(videos):
    folder, sequences = videos
    write_labels(folder / "b" / "2.png", np.full_like(TRUTH, 4))
    with pytest.raises(MaskError, match=r"b/2\.png holds the label 4, but the labels are 0 to 3"):
        score_parts(folder, sequences, names=NAMES)
    write_labels(folder / "b" / "2.png", TRUTH[:1])
    with pytest.raises(MaskError, match=r"b/2\.png is 1x4 .*, but the annotation .* is 2x4"):
        score_parts(folder, sequences, names=NAMES)
    (folder / "a" / "2.png").unlink()
    with pytest.raises(MaskError, match=r"a/2\.png is not a file"):
        score_parts(folder, sequences, names=NAMES)


def test_nothing_to_score(videos):
    folder, sequences = videos
    given = [VideoSequence(v.name, v.frames, {0: v.annotations[0]}) for v in sequences]
    with pytest.raises(DatasetError, match="no annotated pixel"):
        score_parts(folder, given, names=NAMES, first_frame=False)
