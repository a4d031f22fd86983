"""A run so small that a step takes a fraction of a second."""

from pathlib import Path

from ino.train.config import (
    DataConfig,
    MaskingConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ViewsConfig,
)


def tiny_config(videos: Path) -> TrainConfig:
    """Two steps an epoch, four epochs."""
    return TrainConfig(
        model=ModelConfig(arch="vit_nano", out_dim=32, hidden_dim=24, bottleneck_dim=16),
        data=DataConfig(
            root=[str(videos)], frame_step=1, clips_per_video=1, batch_size=2, num_workers=0
        ),
        views=ViewsConfig(global_size=32, local_size=16, num_local=2),
        masking=MaskingConfig(probability=0.7),
        optim=OptimConfig(epochs=4, lr=0.05, warmup_epochs=1.0),
        run=RunConfig(accelerator="cpu", precision="32-true", save_every=3, log_every=1),
    )
