"""The commands that make something of videos: demo, train, segment."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import Namespace

from ino.cli.tracking import describe, progress, tracker_of
from ino.errors import MaskError


def demo(options: Namespace) -> int:
    """Learns, carries and scores on generated video."""
    from ino.demo.demo import run_demo

    chosen = options.demo
    report = run_demo(
        chosen.out, seed=chosen.seed, num_steps=chosen.steps, overwrite=chosen.overwrite
    )
    print(f"open {report}")
    return 0


def train(options: Namespace) -> int:
    """Trains by a recipe."""
    from ino.train.config import config_of

    config = config_of(options.train)
    out = options.train.out or Path("runs") / Path(options.train.recipe).stem

    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from ino.pretrain import pretrain

    checkpoint = pretrain(config, out=out, resume=options.train.resume)
    rank_zero_only(print)(f"last checkpoint: {checkpoint}")
    return 0


def segment(options: Namespace) -> int:
    """Carries masks through a video."""
    chosen = options.segment
    paths = mask_paths(chosen.mask)

    from ino.data.label_maps import read_labels

    masks = {number: read_labels(path) for number, path in paths.items()}
    tracker, settings = tracker_of(chosen)
    settings |= {
        "video": str(chosen.video),
        "masks": {number: str(path) for number, path in paths.items()},
        "resize_mask": chosen.resize_mask,
    }

    from ino.data.video import read_info
    from ino.tasks.segment import resize_masks, segment_video

    info = read_info(chosen.video)
    out = chosen.out or Path("segments") / _name_of(chosen.video)
    if chosen.resize_mask:
        masks = resize_masks(masks, size=(info.height, info.width))
    print(describe(chosen, tracker.protocol))
    with progress("frames", info.num_frames) as advance:
        count = segment_video(
            chosen.video,
            masks,
            out=out,
            tracker=tracker,
            settings=settings,
            overlay=chosen.overlay,
            correct=chosen.correct,
            both_ways=chosen.both_ways,
            check_every=chosen.check_every,
            overwrite=chosen.overwrite,
            on_frame=advance,
        )
    print(f"{count} masks in {out / 'masks'}")
    return 0


def _name_of(video: Path) -> str:
    """What a video is called: its file or folder, or the folder of a pattern of images."""
    from ino.data.video import is_pattern

    if is_pattern(video):
        return video.parent.resolve().name
    return video.resolve().stem if video.name in ("", "..") else video.stem


def mask_paths(given: Sequence[str]) -> dict[int, Path]:
    """Files of masks by frame number from `PNG`, `FRAME=PNG` and folders of `FRAME.png`.

    Raises:
        MaskError: something names no file, or two files are for one frame.
    """
    paths: dict[int, Path] = {}
    for frame, path in _mask_paths(given):
        if frame in paths:
            raise MaskError(f"{paths[frame]} and {path} are both for frame {frame}; give one")
        paths[frame] = path
    return dict(sorted(paths.items()))


def _mask_paths(given: Sequence[str]) -> Iterator[tuple[int, Path]]:
    for text in given:
        frame, separator, name = text.partition("=")
        if not text or (separator and not name):
            raise MaskError(f"--mask {text!r} names no file: give PNG, FRAME=PNG or a folder")
        if separator and frame.isdecimal():
            yield int(frame), Path(name)
        elif (folder := Path(text)).is_dir():
            numbered = sorted(path for path in folder.glob("*.png") if path.stem.isdecimal())
            if not numbered:
                raise MaskError(f"{folder} holds no masks named by frame numbers, as 00000.png")
            yield from ((int(path.stem), path) for path in numbered)
        else:
            yield 0, Path(text)
