"""The views of a step, drawn from its number: crops, colours, mask.

A clip's draw follows from seed, step and the clip's place in the global batch alone. Any number of
processes that share a global batch, and a run that resumes, see the same views.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ino.data.clip_random import ClipRandom
from ino.data.token_masks import draw_masks, draw_num_masked
from ino.data.views import PLAIN, CropGeometry, Photometric, make_crops
from ino.models.student_teacher import Views
from ino.train.config import TrainConfig


def seed_drop_path(seed: int, *, step: int, rank: int) -> None:
    """Seeds torch's generators for a step; each process drops paths of its own."""
    drawn = np.random.SeedSequence([seed, step], spawn_key=(2, rank)).generate_state(2, np.uint32)
    torch.manual_seed(int(drawn[0]) << 32 | int(drawn[1]))


def draw_views(
    config: TrainConfig,
    clips: Sequence[Tensor],
    *,
    step: int,
    device: torch.device,
    first_clip: int = 0,
) -> Views:
    """The crops and the masked positions of a step.

    The number of masked positions is that of all processes; with `masking.shared`, so is the mask.

    Args:
        config: a resolved configuration.
        clips: uint8 frames of each clip.
        step: counted from 0.
        device: where crops are cut.
        first_clip: place of the first clip in the global batch of the step.
    """
    settings = config.views
    rng = ClipRandom([config.run.seed, step], num_clips=len(clips), first_clip=first_clip)
    masked = _draw_masked(config, rng, step=step)
    colour = Photometric(flip=settings.flip, jitter=settings.jitter, grey=settings.grey)
    clips = [clip.to(device, non_blocking=True) for clip in clips]
    global_crops = make_crops(
        clips,
        geometry=CropGeometry(settings.global_size, settings.global_scale),
        photometric=colour if settings.colour_on_global else PLAIN,
        num_crops=1,
        rng=rng,
    )[:, 0]
    local_crops = None
    if settings.num_local and config.loss.l2g > 0:
        local_crops = make_crops(
            clips,
            geometry=CropGeometry(settings.local_size, settings.local_scale),
            photometric=dataclasses.replace(colour, blur=settings.local_blur),
            num_crops=settings.num_local,
            rng=rng,
        )
    positions = None if masked is None else torch.from_numpy(masked).to(device)
    return Views(global_crops, local_crops, positions)


def _draw_masked(
    config: TrainConfig, rng: ClipRandom, *, step: int
) -> Int[np.ndarray, "clips masked"] | None:
    """The masked positions of each clip, ascending."""
    masking = config.masking
    shared_rng = np.random.default_rng([config.run.seed, step, 0])
    side = config.views.global_size // config.model.patch_size
    has_in_generative = config.loss.masked > 0 or config.loss.affinity > 0
    num_masked = draw_num_masked(
        shared_rng,
        num_tokens=side * side,
        probability=masking.probability if has_in_generative else 0.0,
        ratio=masking.ratio,
    )
    if not num_masked:
        return None
    masks = [
        draw_masks(
            stream,
            num_clips=num_clips,
            rows=side,
            columns=side,
            num_masked=num_masked,
            kind=masking.kind or "blockwise",
            shared=bool(masking.shared),
        )
        for stream, num_clips in (
            [(shared_rng, len(rng.clips))] if masking.shared else [(one, 1) for one in rng.clips]
        )
    ]
    return np.nonzero(np.concatenate(masks))[1].reshape(len(rng.clips), num_masked)
