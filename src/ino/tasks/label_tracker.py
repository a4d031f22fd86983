"""Propagates soft labels of any kind, such as joints and parts, through a video.

`ino.propagate.tracker` does the same for masks of objects. Here frames may also be resized to
squares, as the papers on JHMDB and VIP do.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ino.data.images import image_size, read_image
from ino.data.video import in_background
from ino.errors import ConfigError
from ino.models.backbone import computes_in_bf16
from ino.propagate.features import FeatureBackbone, FeatureExtractor, Precision, check_finite
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import Protocol, fit_layer


class LabelTracker:
    """Propagates labels through videos under one protocol, as `Tracker` does masks of objects."""

    def __init__(
        self,
        backbone: FeatureBackbone,
        protocol: Protocol,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        input_size: int | None = None,
    ) -> None:
        """Creates a tracker; moves the backbone to `device` and puts it into evaluation mode.

        Args:
            backbone: for instance from `ino.models.load.load_backbone`.
            protocol: decides the context, the window, top-k and, without an input size, the input.
            device: where everything is computed.
            precision: of the network, as for `Tracker`.
            input_size: frames are resized to squares with this side, in pixels; None for the size
                that the protocol gives.

        Raises:
            ConfigError: the input size is below 1, or see `Tracker`.
        """
        protocol = fit_layer(protocol, getattr(backbone, "strides", ()))
        self.protocol, self.input_size = protocol, input_size
        if input_size is not None:
            if input_size < 1:
                raise ConfigError(f"the input size is {input_size}; it must be 1 pixel or more")
            size = {"short_side": None, "size_multiple": None, "rounding": "none"}
            square = {"input_size": (input_size, input_size), "data_size": None}
            protocol = protocol.model_copy(update=size | square)
        self._extractor = FeatureExtractor(
            backbone, protocol=protocol, device=device, precision=precision
        )
        self.device, self.stride = self._extractor.device, self._extractor.stride
        self.mask_sizes = self._extractor.mask_sizes

    def track(
        self,
        frames: Sequence[Path],
        first: Callable[[tuple[int, int]], Tensor],
    ) -> Generator[Float[Tensor, "rows columns channel"]]:
        """The soft labels of each frame, those of the first one as given; images are read ahead
        in a thread, which ends when the result is closed.

        Args:
            frames: images of one size.
            first: labels of the first frame for a grid of rows and columns.

        Raises:
            VideoError: a frame is broken, too small, or of another size than the first.
        """
        propagator = Propagator(self.protocol, screening=computes_in_bf16(self.device))
        size = image_size(frames[0])
        with closing(in_background(read_image(path, size=size) for path in frames)) as images:
            for number, frame in enumerate(images):
                features = self._extractor(frame)
                check_finite(features, str(frames[number]))
                grid = (features.shape[0], features.shape[1])
                yield propagator.step(features, first(grid) if number == 0 else None)
