"""VIP in its layout, and every fault of it."""

import numpy as np
import pytest

from dense_layouts import write_part_video
from ino.data.vip import PARTS, read_vip
from ino.errors import DatasetError

FRAME = np.zeros((24, 32, 3), dtype=np.uint8)
LABELS = np.zeros((24, 32), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "VIP_Fine"
    folder.mkdir()
    write_part_video(folder, "videos10", [FRAME] * 3, {0: LABELS, 2: LABELS})
    write_part_video(folder, "videos2", [FRAME] * 2, {0: LABELS, 1: LABELS})
    return tmp_path


def test_videos_of_the_list(root):
    assert len(PARTS) == 20
    for given in (root, root / "VIP_Fine"):
        found = read_vip(given)
        assert [video.name for video in found] == ["videos10", "videos2"]
        assert [list(video.annotations) for video in found] == [[0, 2], [0, 1]]
        assert len(found[0].frames) == 3


def test_what_is_missing_is_told(root):
    with pytest.raises(DatasetError, match=r"lists/test_videos\.txt does not exist"):
        read_vip(root, split="test")
    path = root / "VIP_Fine/Annotations/Category_ids/videos2/000000000000.png"
    path.unlink()
    with pytest.raises(DatasetError, match="videos2 has no annotation of its first frame"):
        read_vip(root)
    for frame in (root / "VIP_Fine/Images/videos2").iterdir():
        frame.unlink()
    with pytest.raises(DatasetError, match="videos2 has no frames"):
        read_vip(root)
    (root / "VIP_Fine/lists/val_videos.txt").write_text("\n")
    with pytest.raises(DatasetError, match="is empty"):
        read_vip(root)
