"""A header read without a decoder tells what one read with it tells."""

import pytest
from video_files import FASTSTART, cut, moving_frames, write_sound, write_video

from ino.data import video_index as video_header
from ino.data.video import read_info
from ino.data.video_index import read_header
from ino.errors import VideoError

FRAMES = moving_frames(12)
HEVC = {"x265-params": "keyint=6:log-level=none"}
KINDS = {
    "h264.mp4": {},
    "index-first.mov": {"container": FASTSTART},
    "uneven.mp4": {"times": [0, 40, 90, 100, 200, 220, 300, 500, 520, 560, 700, 740]},
    "turned.mp4": {"rotation": 90},
    "hevc.mp4": {"codec": "libx265", "options": HEVC},
    "vp9.mp4": {"codec": "libvpx-vp9", "options": {}},
}


@pytest.mark.parametrize("name", KINDS)
def test_no_decoder_is_needed_for_mp4(name, tmp_path):
    path = write_video(tmp_path / name, FRAMES, **KINDS[name])
    header = video_header._of_container(path)
    assert header is not None
    assert header == video_header._of_stream(path)
    assert header.num_frames == len(FRAMES)
    assert header.fps == read_info(path).fps
    assert (header.height, header.width) == FRAMES[0].shape[:2]


@pytest.mark.parametrize("name", ["video.mkv", "video.ts", "fragments.mp4"])
def test_others_are_opened_in_full(name, tmp_path):
    fragments = {"movflags": "+frag_keyframe+empty_moov"}
    container = fragments if name == "fragments.mp4" else None
    path = write_video(tmp_path / name, FRAMES, container=container)
    assert video_header._of_container(path) is None
    header = read_header(path)
    assert header.num_frames == 0
    assert header.seconds == pytest.approx(len(FRAMES) / 25, abs=0.1)
    assert (header.height, header.width) == FRAMES[0].shape[:2]


def test_faults_are_those_of_opening_in_full(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", FRAMES, container=FASTSTART)
    with pytest.raises(VideoError, match=r"breaks off after [0-9]+ whole frames"):
        read_header(cut(tmp_path / "cut.mp4", whole))
    with pytest.raises(VideoError, match="no pictures"):
        read_header(write_sound(tmp_path / "sound.mp4"))
