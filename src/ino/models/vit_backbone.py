"""Patch tokens of our ViT as feature maps."""

import dataclasses

from jaxtyping import Float
from torch import Tensor

from ino.models.dense import Backbone, Reading, Triple
from ino.models.vit import VisionTransformer

RELEASED_STD = (0.228, 0.224, 0.225)
"""By which the authors' code normalises at inference, and DINO's and iBOT's; in training its first
number is 0.229."""

OUR_LAYER = 7
"""Block whose features the authors of INO read, and ours after them."""


class VitBackbone(Backbone):
    """Patch tokens of a ViT's block, final norm applied; layer n is block n."""

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        std: Triple | None = None,
        reading: Reading | None = None,
    ) -> None:
        """Args:
        vit: the network.
        std: deviation by which images are normalised; None for that of `reading`.
        reading: of the input; None for that of our runs.
        """
        reading = reading or Reading(layer=OUR_LAYER)
        if std is not None:
            reading = dataclasses.replace(reading, std=std)
        super().__init__(
            strides=[vit.patch_size] * vit.depth,
            dims=[vit.embed_dim] * vit.depth,
            reading=reading,
        )
        self.vit = vit

    def read(
        self, images: Float[Tensor, "batch 3 height width"], layer: int
    ) -> Float[Tensor, "batch dim rows columns"]:
        tokens = self.vit(images, num_blocks=layer)[:, 1:]
        rows, columns = (side // self.stride for side in images.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))
