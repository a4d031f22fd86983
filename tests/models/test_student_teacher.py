"""Which outputs are computed, who takes gradients, how the teacher follows."""

import pytest
import torch

from ino.models.student_teacher import StudentTeacher, Views, split_views
from ino.models.vit import ProjectionHead, build_vit


@pytest.fixture
def model():
    head = ProjectionHead(96, out_dim=12, hidden_dim=16, bottleneck_dim=8)
    return StudentTeacher(build_vit("vit_nano", drop_path=0.2), head)


@pytest.fixture
def views():
    masked = torch.tensor([[1, 5], [0, 15], [7, 8]])
    return Views(torch.randn(4, 3, 3, 32, 32), torch.randn(4, 2, 3, 3, 16, 16), masked)


def both(model, views):
    return model(views, role="student"), model(views, role="teacher")


def test_outputs_are_those_of_the_whole_head_at_the_positions_read(model, views):
    model.eval()
    student, teacher = both(model, views)
    assert student.local_class.shape == (4, 2, 3, 12)
    assert teacher.local_class is None
    for network, logits, corrupt in (
        (model.student, student, True),
        (model.teacher, teacher, False),
    ):
        for frame in range(4):
            mask = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, views.masked, True)
            seen = mask if corrupt else None
            outputs = network.head(network.backbone(views.global_crops[frame], seen))
            torch.testing.assert_close(logits.global_class[frame], outputs[:, 0])
            for clip in range(3):
                expected = outputs[clip, 1:][mask[clip]]
                torch.testing.assert_close(logits.patch[frame, clip], expected)
    crop = model.student.head(model.student.backbone(views.local_crops[2, 1]))[:, 0]
    torch.testing.assert_close(student.local_class[2, 1], crop)


@pytest.mark.parametrize("without", ["local_crops", "global_crops", "masked"])
def test_views_may_lack_parts(model, views, without):
    student = model(views._replace(**{without: None}), role="student")
    assert (student.local_class is None) == (without == "local_crops")
    assert (student.global_class is None) == (without == "global_crops")
    assert (student.patch is None) == (without != "local_crops")


@pytest.mark.parametrize("num_groups", [1, 3])
def test_parts_have_the_gradients_of_the_whole(model, views, num_groups):
    """Of a loss that is a sum over outputs, as every term is a mean over clips.

    In double precision, where sums in another order differ by nothing to speak of.
    """
    model.double().eval()
    views = Views(views.global_crops.double(), views.local_crops.double(), views.masked)

    def gradients(*parts):
        model.zero_grad()
        for part in parts:
            logits = [one for one in model(part, role="student") if one is not None]
            sum(one.square().sum() for one in logits).backward()
        return [parameter.grad for parameter in model.student.parameters()]

    parts = list(split_views(views, num_groups=num_groups))
    assert [clips for clips, _ in parts] == [
        slice(start, start + 3 // num_groups)
        for start in range(0, 3, 3 // num_groups)
        for _ in ("local", "global")
    ]
    whole = gradients(views)
    for found, expected in zip(gradients(*(part for _, part in parts)), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert all(p.grad is not None for p in model.student.parameters())


@pytest.mark.parametrize("masked", [True, False])
def test_no_gradient_reaches_the_teacher_and_all_of_the_student_gets_one(model, views, masked):
    model.train()
    student, teacher = both(model, views if masked else views._replace(masked=None))
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
    first, second = (model(views, role="teacher") for _ in range(2))
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
