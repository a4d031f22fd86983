import weakref

import pytest
import torch

from ino.propagate.memory import Memory, MemoryFrame, Reference
from ino.propagate.protocols import get_protocol


def empty_memory(**fields):
    return Memory(get_protocol("ino-davis", **fields))


def store(memory, stored, channels=None):
    """Stores a frame, as a reference where it introduces channels."""
    if channels is not None:
        memory.introduce(Reference(stored, list(channels), copied=stored))
    memory.store(stored)


def frame(time):
    return MemoryFrame(time, None, torch.zeros(1, 1, 2))


def test_context_is_that_of_the_released_code(golden):
    """Reference frames 0 and 5, 10 context frames: the golden lists, one row a frame."""
    numbers = golden("prop_random")
    memory = empty_memory(num_context=10)
    introduced = {0: [0, 1, 2], 5: [3]}
    for time in range(16):
        for reference in memory.references:
            start = reference.frame.time
            row = numbers[f"context_index_t0_{start}"][time - start - 1]
            found = [stored.frame.time for stored in memory.context(reference)]
            assert found == row[row >= 0].tolist()
        store(memory, frame(time), introduced.get(time))
    assert [reference.channels for reference in memory.references] == list(introduced.values())


def times(memory, reference=0):
    """Of the context, each as often as it counts; negative where the window does not hold."""
    context = memory.context(memory.references[reference])
    return [t if one.windowed else -t for one in context for t in [one.frame.time] * one.copies]


def test_storage_does_not_grow():
    memory = empty_memory(num_context=4)
    kept = []
    for time in range(50):
        stored = frame(time)
        kept.append(weakref.ref(stored))
        store(memory, stored, range(time, time + 1) if time in (1, 30) else None)
    del stored
    assert times(memory) == [1, 46, 47, 48, 49]
    assert times(memory, 1) == [30, 46, 47, 48, 49]
    alive = [reference() for reference in kept if reference() is not None]
    assert [one.time for one in alive] == [1, 30, 46, 47, 48, 49]


def test_without_context_frames_only_the_reference_is_left():
    memory = empty_memory(num_context=0, recent="padded")
    store(memory, frame(1), range(2))
    memory.store(frame(2))
    assert times(memory) == [1]


def test_padding_repeats_the_reference_within_the_window():
    """CRW: the reference once without a window, then always `num_context` frames."""
    memory = empty_memory(num_context=3, recent="padded", reference_windowed=False)
    found = []
    for time in range(1, 7):
        store(memory, frame(time), range(0, 2) if time == 1 else None)
        found.append(times(memory))
    assert found == [
        [-1, 1, 1, 1],
        [-1, 1, 1, 2],
        [-1, 1, 2, 3],
        [-1, 2, 3, 4],
        [-1, 3, 4, 5],
        [-1, 4, 5, 6],
    ]


def test_the_reference_counts_again_while_it_is_recent():
    """VFS."""
    memory = empty_memory(num_context=3, recent="reference-again")
    found = []
    for time in range(1, 6):
        store(memory, frame(time), range(0, 2) if time == 1 else None)
        found.append(times(memory))
    assert found == [[1, 1], [1, 1, 2], [1, 1, 2, 3], [1, 2, 3, 4], [1, 3, 4, 5]]


@pytest.mark.parametrize(
    ("tag", "changes"),
    [
        ("full_R12_alignTrue", {}),
        ("ref1_R12", {"kept": (0,)}),
        ("ref2_R12", {"kept": (), "num_context": 1}),
    ],
)
def test_kept_frames_and_every_second_of_the_last_ones(golden, tag, changes):
    """MAST's own lists: frames 0 and 5 for good, and t-1, t-3, t-5."""
    rows = golden("propagation_mast")[f"{tag}_ref_index"]
    settings = {"kept": (0, 5), "num_context": 3, "context_step": 2} | changes
    memory = empty_memory(**settings)
    for time, row in enumerate(rows):
        store(memory, frame(time), range(0, 3) if time == 0 else None)
        assert times(memory) == row[row >= 0].tolist()


def test_kept_frames_are_counted_from_their_reference():
    memory = empty_memory(num_context=1, kept=(0, 2))
    for time in range(9):
        store(memory, frame(time), range(time, time + 1) if time in (1, 4) else None)
    assert times(memory) == [1, 3, 8]
    assert times(memory, 1) == [4, 6, 8]


def test_a_reference_that_is_not_kept_leaves_with_the_last_frames():
    memory = empty_memory(num_context=2, kept=())
    found = []
    for time in range(4):
        store(memory, frame(time), range(0, 1) if time == 0 else None)
        found.append(times(memory))
    assert found == [[0], [0, 1], [1, 2], [2, 3]]


def test_a_reference_passed_on_is_one_of_the_last_frames_with_labels_of_its_own():
    """TimeCycle: at first only copies, then the prediction of the reference among them."""
    memory = empty_memory(num_context=3, recent="padded", reference_passed_on=True)
    given, predicted = frame(0), frame(0)
    reference = Reference(given, [0, 1], copied=given)
    memory.introduce(reference)
    assert times(memory) == [0] * 4
    memory.store(predicted)
    context = memory.context(reference)
    assert [(one.frame is predicted, one.copies) for one in context] == [
        (False, 1),
        (False, 2),
        (True, 1),
    ]


def test_labels_are_replaced_wherever_the_frame_is():
    memory = empty_memory(num_context=2, kept=(0, 1))
    for time in range(2):
        store(memory, frame(time), range(0, 2) if time == 0 else None)
    for time in range(2):
        memory.replace_labels(time, torch.full((1, 1, 2), time + 1.0))
    (reference,) = memory.references
    assert [one.frame.soft.max().item() for one in memory.context(reference)] == [1, 2]
