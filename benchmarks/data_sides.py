"""The sides of the data benchmark: clips to normalised crops by ino, and by torchvision one by one.

All take the same frames, boxes, flips and color changes; those of the plain sides were drawn
before their time is taken. The plain sides open each video anew and decode from its start to the
last frame of the clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pillow_functional
from torchvision.transforms.v2 import functional

from ino.data.clips import ClipSampling, frame_indices
from ino.data.video import read_clip, read_info
from ino.data.views import IMAGENET_MEAN, IMAGENET_STD, CropGeometry, make_crops, sample_boxes
from ino.kernels.crops import Changes, Photometric, sample_changes

SAMPLING = ClipSampling(length=4, frame_step=8)


@dataclass(frozen=True)
class Kind:
    """Crops of one kind: how many a frame, where, and what becomes of their colors."""

    num_crops: int
    geometry: CropGeometry
    photometric: Photometric


PAPER = {
    "global crops": Kind(1, CropGeometry(224, (0.8, 0.95)), Photometric()),
    "local crops": Kind(8, CropGeometry(64, (0.05, 0.8)), Photometric(blur=0.5)),
}


@dataclass(frozen=True)
class Drawn:
    """The numbers of the crops of a clip (frames, crops)."""

    boxes: np.ndarray
    flips: np.ndarray
    changes: Changes


@dataclass(frozen=True)
class Job:
    """A clip to be made, and the seed of its crops."""

    video: Path
    indices: list[int]
    seed: int

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


def draw_jobs(videos: Sequence[Path], *, clips_per_video: int) -> list[Job]:
    """Clips of each video in turn, from starts drawn as in training."""
    rng = np.random.default_rng(0)
    infos = [read_info(video) for video in videos]
    return [
        Job(
            video,
            frame_indices(info.num_frames, info.fps, sampling=SAMPLING, rng=rng),
            seed=turn * len(videos) + number,
        )
        for turn in range(clips_per_video)
        for number, (video, info) in enumerate(zip(videos, infos, strict=True))
    ]


class OurSide:
    """What `ino train` does: a worker's decoding, then the crops of the training process."""

    def decode(self, job: Job) -> Tensor:
        return torch.from_numpy(read_clip(job.video, job.indices))

    def crops(self, clip: Tensor, kind: Kind, rng: np.random.Generator) -> Tensor:
        crops = make_crops(
            [clip],
            geometry=kind.geometry,
            photometric=kind.photometric,
            num_crops=kind.num_crops,
            rng=[rng],
        )
        return crops[:, :, 0]


class PlainSide:
    """A fresh decoder for each clip, and torchvision's transforms on one PIL image at a time."""

    def decode(self, job: Job) -> list[Any]:
        wanted = set(job.indices)
        frames = []
        with av.open(str(job.video)) as container:
            container.streams.video[0].thread_count = 1
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    frames.append(self.to_image(frame))
                if index == job.indices[-1]:
                    break
        return frames

    def crops(self, frames: Sequence[Any], kind: Kind, drawn: Drawn) -> Tensor:
        crops = []
        for place in np.ndindex(drawn.flips.shape):
            top, left, height, width = drawn.boxes[place].tolist()
            side = [kind.geometry.size] * 2
            bicubic = InterpolationMode.BICUBIC
            image = functional.resized_crop(
                frames[place[0]], top, left, height, width, side, bicubic, antialias=True
            )
            if drawn.flips[place]:
                image = functional.horizontal_flip(image)
            image = self.change_colors(image, drawn.changes, place)
            image = functional.normalize(
                self.to_tensor(image), list(IMAGENET_MEAN), list(IMAGENET_STD)
            )
            crops.append(image)
        return torch.stack(crops).unflatten(0, drawn.flips.shape)

    def change_colors(self, image: Any, changes: Changes, place: tuple[int, ...]) -> Any:
        brightness, contrast, saturation = changes.factors[place].tolist()
        if changes.jittered[place]:
            for operation in changes.order[place]:
                if operation == 0:
                    image = functional.adjust_brightness(image, brightness)
                elif operation == 1:
                    image = functional.adjust_contrast(image, contrast)
                elif operation == 2:
                    image = functional.adjust_saturation(image, saturation)
                else:
                    image = functional.adjust_hue(image, float(changes.hue[place]))
        if changes.grey[place]:
            image = functional.rgb_to_grayscale(image, num_output_channels=3)
        if changes.sigma[place]:
            image = self.blur(image, float(changes.sigma[place]))
        return image

    def to_image(self, frame: av.VideoFrame) -> Any:
        return frame.to_image()

    def to_tensor(self, image: Any) -> Tensor:
        return pillow_functional.to_tensor(image)

    def blur(self, image: Any, sigma: float) -> Any:
        return image.filter(ImageFilter.GaussianBlur(sigma))


class BytesSide(PlainSide):
    """The same on tensors of bytes, torchvision's v2, which is what is quickest in workers."""

    def to_image(self, frame: av.VideoFrame) -> Tensor:
        return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)

    def to_tensor(self, image: Tensor) -> Tensor:
        return functional.to_dtype(image, torch.float32, scale=True)

    def blur(self, image: Tensor, sigma: float) -> Tensor:
        return functional.gaussian_blur(image, [13, 13], [sigma, sigma])


def draw_numbers(clip: Tensor, kind: Kind, rng: np.random.Generator) -> Drawn:
    """The numbers that `make_crops` draws for a clip alone from this generator."""
    shape = (len(clip), kind.num_crops)
    heights, widths = (np.full(shape, side) for side in clip.shape[1:3])
    boxes = sample_boxes(rng, heights=heights, widths=widths, geometry=kind.geometry)
    flips = rng.random(shape) < kind.photometric.flip
    changes = sample_changes(rng, shape, photometric=kind.photometric)
    return Drawn(boxes, flips, changes)


def write_h264(frames: np.ndarray, path: Path, *, fps: int, keyframes: int) -> None:
    """Writes a video with x264's own settings (B-frames, quality 23) but for the most frames from
    one key frame to the next, which are 250 where nothing is said."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"g": str(keyframes)})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
