"""Networks of timm in training: any network whose stem can be masked, for the student of section 3.

Masked pixels get the mean color, and the embeddings of masked positions are replaced by a learned
token where the stem gives them: behind the patch embedding of a ViT (before position embeddings are
added), behind the first layers of a convolutional network (all positions of the stem within a
masked cell of the last feature map). Nothing of a masked position reaches the student. The class
token is the network's own; networks without one have the mean of their patch tokens in its
place. Networks that cannot be masked are refused when they are built.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.errors import ConfigError
from ino.models.backbone import (
    OUR_LAYER,
    TIMM,
    Reading,
    TimmBackbone,
    Triple,
    create_timm,
    split_stride,
)
from ino.models.vit import gather_tokens

_STEMS = ("patch_embed", "stem", "maxpool", "bn1")
"""Modules whose output is masked, the first that a network has: of ViTs and Swin; ConvNeXt and
RegNet; ResNets; EfficientNets."""
_STAGES = re.compile(r"(layer|s)\d")
_POSSIBLE = "take a ViT, an EVA, a ResNet, a ConvNeXt or a Swin of timm"


class MaskedTimm(nn.Module):
    """A network of timm as student and teacher need it. Parameters that it never uses are frozen.

    Attributes:
        arch: its name in recipes, such as timm:resnet50/8.
        patch_size: pixels per token, along each side.
        embed_dim: length of a token.
        network: the model of timm.
        mask_token: stands for masked embeddings, which have this length.
    """

    def __init__(self, arch: str, *, drop_path: float = 0.0) -> None:
        """Builds the network with random weights and tries it on small images.

        Args:
            arch: timm:NAME or, for a convolutional network, timm:NAME/STRIDE.
            drop_path: stochastic depth, see `build_vit`.

        Raises:
            ConfigError: timm has no such network, or it cannot be masked.
        """
        super().__init__()
        name, stride = _split(arch)
        options = {"drop_path_rate": drop_path} if drop_path else {}
        self.arch = arch
        self.network: Any = create_timm(name, stride=stride, options=options)
        self.patch_size = _stride_of(self.network, arch)
        config: Mapping[str, Any] = getattr(self.network, "pretrained_cfg", {})
        self.mean: Triple = config.get("mean") or IMAGENET_MEAN
        self.std: Triple = config.get("std") or IMAGENET_STD
        stem = next((one for one in _STEMS if hasattr(self.network, one)), None)
        if stem is None or not hasattr(self.network, "forward_features"):
            raise ConfigError(f"{arch} cannot be masked, as its stem is not known; {_POSSIBLE}")
        self._mask: Tensor | None = None
        self._seen: tuple[int, ...] = ()
        self.network.get_submodule(stem).register_forward_hook(self._replace_masked)
        self._find_layout()
        self.mask_token = nn.Parameter(torch.empty(1, 1, self._stem_dim))
        trunc_normal_(self.mask_token, std=0.02)
        self._freeze_unused()

    @property
    def blocks(self) -> list[nn.Module]:
        """Its blocks or stages, for what is done block by block."""
        for name in ("blocks", "stages", "layers"):
            found = getattr(self.network, name, None)
            if isinstance(found, nn.Sequential | nn.ModuleList):
                return list(found)
        return [m for name, m in self.network.named_children() if _STAGES.fullmatch(name)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes activations in the backward pass.

        Raises:
            ConfigError: the network cannot do that.
        """
        try:
            self.network.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            if enable:
                raise ConfigError(
                    f"{self.arch} cannot recompute its activations: leave "
                    "run.activation_checkpointing off"
                ) from error

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        mask: Bool[Tensor, "batch tokens"] | None = None,
        *,
        read: Int[Tensor, "batch read"] | None = None,
    ) -> Float[Tensor, "batch class_and_read dim"]:
        """The class token and the patch tokens of the last block or stage.

        Args:
            images: normalized by ImageNet's mean and deviation; sides are multiples of
                `patch_size`.
            mask: positions, row by row, that the mask token replaces.
            read: positions of the patch tokens to return, counted from 0; all by default.
        """
        if (self.mean, self.std) != (IMAGENET_MEAN, IMAGENET_STD):
            images = _renormalized(images, mean=self.mean, std=self.std)
        rows, columns = (side // self.patch_size for side in images.shape[-2:])
        if mask is not None:
            mask = mask.unflatten(1, (rows, columns))
            # Overlapping windows of a convolution would see them from beside.
            images = images.masked_fill(_enlarged(mask, images.shape[-2:])[:, None], 0.0)
        self._mask = mask
        try:
            features = self.network.forward_features(images)
        finally:
            self._mask = None
        if features.ndim == 4:
            features = features.movedim(self._axis, -1).flatten(1, 2)
        patches = features[:, features.shape[1] - rows * columns :]
        first = features[:, :1] if self._has_class_token else patches.mean(dim=1, keepdim=True)
        if read is not None:
            patches = gather_tokens(patches, read)
        return torch.cat([first, patches], dim=1)

    def check_side(self, side: int, *, field: str) -> None:
        """Raises a ConfigError if the network takes no square crops of `side` pixels.

        `field` is the option that sets the side.
        """
        if side % self.patch_size:
            raise ConfigError(
                f"{field} must be a multiple of {self.patch_size}, the pixels per token of "
                f"{self.arch}, but is {side}"
            )
        if reason := self._why_not(side, side):
            raise ConfigError(
                f"{self.arch} refuses crops of {side}x{side} pixels ({reason}): choose another "
                f"{field}"
            )

    def _replace_masked(self, stem: nn.Module, inputs: Any, output: Any) -> Any:
        """Puts the mask token into the output of the stem; called by torch after the stem."""
        self._seen = tuple(output.shape) if isinstance(output, Tensor) else ()
        if self._mask is None:
            return output
        token = self.mask_token.flatten().to(output.dtype)
        if output.ndim == 3:
            return torch.where(self._mask.flatten(1)[..., None], token, output)
        found = [side for axis, side in enumerate(output.shape) if axis not in (0, self._stem_axis)]
        mask = _enlarged(self._mask, found).unsqueeze(self._stem_axis)
        return torch.where(mask, token[:, None, None] if self._stem_axis == 1 else token, output)

    def _find_layout(self) -> None:
        """Finds where the channels are behind the stem and at the end, from two small images."""
        side, found = self.patch_size, []
        for rows, columns in ((2, 3), (3, 5)):
            features, reason = self._try(rows * side, columns * side)
            if features is None:
                raise ConfigError(
                    f"{self.arch} takes no images of other sizes, which crops and videos have "
                    f"({reason}); {_POSSIBLE}"
                )
            found.append((self._seen, tuple(features.shape), rows, columns))
        (first_stem, first, rows, columns), (second_stem, second, *_) = found
        self._stem_axis, self._stem_dim = _channels(first_stem, second_stem)
        self._axis, self.embed_dim = _channels(first, second)
        cells = [side for axis, side in enumerate(first_stem) if axis not in (0, self._stem_axis)]
        fits_stem = cells == [rows * columns] or (
            len(cells) == 2
            and all(side % own == 0 for side, own in zip(cells, (rows, columns), strict=True))
        )
        num_prefix = first[1] - rows * columns if len(first) == 3 else 0
        tokens = [side for axis, side in enumerate(first) if axis not in (0, self._axis)]
        fits_end = (len(first) == 3 and num_prefix >= 0) or tokens == [rows, columns]
        if not (self._stem_dim and self.embed_dim and fits_stem and fits_end):
            found = f"{first_stem} for {rows}x{columns} patches, and its end {first}"
            raise ConfigError(
                f"{self.arch} cannot be masked: its stem gives "
                f"{found if first_stem else 'more than one tensor'}; {_POSSIBLE}"
            )
        has_class_token = isinstance(getattr(self.network, "cls_token", None), Tensor)
        self._has_class_token = num_prefix > 0 and has_class_token

    @torch.no_grad()
    def _try(self, height: int, width: int) -> tuple[Tensor | None, str]:
        """Features of an image in evaluation mode, or None and why there are none."""
        was_training = self.network.training
        self.network.eval()
        try:
            return self.network.forward_features(torch.zeros(1, 3, height, width)), ""
        except (AssertionError, RuntimeError, ValueError, IndexError, TypeError) as error:
            return None, (str(error) or type(error).__name__).splitlines()[0][:120].rstrip(".")
        finally:
            self.network.train(was_training)

    def _why_not(self, height: int, width: int) -> str:
        features, reason = self._try(height, width)
        if features is None:
            return reason
        expected = (height // self.patch_size) * (width // self.patch_size)
        found = features[..., 0].numel() if features.ndim == 3 else features.numel()
        found = found if features.ndim == 3 else found // self.embed_dim
        return "" if found >= expected else f"it gives {found} tokens instead of {expected}"

    @torch.enable_grad()
    def _freeze_unused(self) -> None:
        """Data-parallel training expects a gradient of every parameter that can have one."""
        self.network.eval()
        side = 2 * self.patch_size
        mask = torch.zeros(1, 4, dtype=torch.bool)
        self(torch.zeros(1, 3, side, side), mask).sum().backward()
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.network.train()


def _channels(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, int]:
    """Axis and number of channels: what two images of different sizes have in common; or 0, 0."""
    if len(first) != len(second) or len(first) not in (3, 4):
        return 0, 0
    same = [axis for axis in range(1, len(first)) if first[axis] == second[axis]]
    return (same[0], first[same[0]]) if len(same) == 1 else (0, 0)


def _enlarged(
    mask: Bool[Tensor, "batch rows columns"], size: Sequence[int]
) -> Bool[Tensor, "batch height width"]:
    """A mask of cells as one of what each of them covers."""
    for axis, side in enumerate(size, start=1):
        mask = mask.repeat_interleave(side // mask.shape[axis], dim=axis)
    return mask


def _renormalized(
    images: Float[Tensor, "batch 3 height width"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Tensor, "batch 3 height width"]:
    """Images that were normalized for ImageNet, normalized by another mean and deviation."""
    own_mean, own_std, mean_, std_ = (
        images.new_tensor(values)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD, mean, std)
    )
    return (images * own_std + own_mean - mean_) / std_


def _split(arch: str) -> tuple[str, int | None]:
    return split_stride(arch.removeprefix(TIMM))


def _stride_of(network: Any, arch: str) -> int:
    described = getattr(network, "feature_info", None)
    if not described:
        raise ConfigError(f"{arch} does not tell the stride of its features; {_POSSIBLE}")
    return int(described[-1]["reduction"])


@functools.cache
def timm_stride(arch: str) -> int:
    """Pixels per token of a network of timm; nothing is computed for it.

    Raises:
        ConfigError: timm has no such network.
    """
    name, stride = _split(arch)
    with torch.device("meta"):
        return _stride_of(create_timm(name, stride=stride), arch)


def timm_backbone(network: nn.Module, *, arch: str, mean: Any, std: Any) -> TimmBackbone:
    """Features of a network of timm that was trained here, as `ino evaluate` reads them.

    Args:
        network: the model of timm.
        arch: its name in recipes.
        mean, std: of its input.
    """
    backbone = TimmBackbone(network.eval(), name=arch, reading=Reading(mean=mean, std=std))
    if backbone.num_layers >= OUR_LAYER:
        backbone.layer = OUR_LAYER
    else:
        backbone.protocol = "dino"  # which reads the last layer
    return cast(TimmBackbone, backbone.eval())
