"""Which outputs are computed, who takes gradients, how the teacher follows."""

import pytest
import torch

from ino.models.head import ProjectionHead
from ino.models.student_teacher import StudentTeacher, Views
from ino.models.vit import build_vit


@pytest.fixture
def model():
    head = ProjectionHead(96, out_dim=12, hidden_dim=16, bottleneck_dim=8)
    return StudentTeacher(build_vit("vit_nano", drop_path=0.2), head)


@pytest.fixture
def views():
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[0, [1, 5]] = mask[1, [0, 15]] = mask[2, [7, 8]] = True
    return Views(torch.randn(4, 3, 3, 32, 32), torch.randn(4, 2, 3, 3, 16, 16), mask)


def test_outputs_are_those_of_the_whole_head_at_the_positions_read(model, views):
    model.eval()
    student, teacher = model(views)
    assert student.local_class.shape == (4, 2, 3, 12)
    assert teacher.local_class is None
    for network, logits, corrupt in (
        (model.student, student, True),
        (model.teacher, teacher, False),
    ):
        for frame in range(4):
            mask = views.mask if corrupt else None
            outputs = network.head(network.backbone(views.global_crops[frame], mask))
            torch.testing.assert_close(logits.global_class[frame], outputs[:, 0])
            for clip in range(3):
                expected = outputs[clip, 1:][views.mask[clip]]
                torch.testing.assert_close(logits.patch[frame, clip], expected)
    crop = model.student.head(model.student.backbone(views.local_crops[2, 1]))[:, 0]
    torch.testing.assert_close(student.local_class[2, 1], crop)


@pytest.mark.parametrize("without", ["local_crops", "mask"])
def test_views_may_lack_parts(model, views, without):
    student, _ = model(views._replace(**{without: None}))
    assert (student.local_class is None) == (without == "local_crops")
    assert (student.patch is None) == (without == "mask")


@pytest.mark.parametrize("masked", [True, False])
def test_no_gradient_reaches_the_teacher_and_all_of_the_student_gets_one(model, views, masked):
    model.train()
    student, teacher = model(views if masked else views._replace(mask=None))
    loss = sum(part.square().sum() for part in student if part is not None)
    loss = loss + sum(part.sum() for part in teacher if part is not None)
    loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    missing = [n for n, p in model.student.named_parameters() if p.grad is None]
    assert missing == []


def test_the_teacher_starts_equal_and_drops_no_path(model, views):
    model.train()
    assert not model.teacher.training
    assert not model.teacher.backbone.training
    first, second = model(views)[1], model(views)[1]
    assert torch.equal(first.global_class, second.global_class)
    states = zip(model.student.parameters(), model.teacher.parameters(), strict=True)
    assert all(torch.equal(student, teacher) for student, teacher in states)


def test_the_teacher_is_a_moving_average(model):
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1)
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    model.update_teacher(0.75)
    for old, new in zip(before, model.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
