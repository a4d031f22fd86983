"""The networks of a run: random, or started from weights."""

from ino.models.head import ProjectionHead
from ino.models.student_teacher import StudentTeacher
from ino.models.vit import build_vit
from ino.train.config import ModelConfig, TrainConfig


def build_networks(config: TrainConfig, *, continues: bool) -> StudentTeacher:
    """Student and teacher as the run starts; of a run that `continues` only the shapes count."""
    return build_model(config.model)


def build_model(config: ModelConfig) -> StudentTeacher:
    """Student and teacher with equal random weights."""
    backbone = build_vit(config.arch, patch_size=config.patch_size, drop_path=config.drop_path)
    head = ProjectionHead(
        backbone.embed_dim,
        out_dim=config.out_dim,
        hidden_dim=config.hidden_dim,
        bottleneck_dim=config.bottleneck_dim,
    )
    return StudentTeacher(backbone, head)
