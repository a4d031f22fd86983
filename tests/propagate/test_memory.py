import torch

from ino.propagate.memory import Memory, MemoryFrame


def frame(time):
    return MemoryFrame(time, torch.zeros(1, 1, 1), torch.zeros(1, 1, 2))


def test_context_is_that_of_the_released_code(golden):
    """Reference frames 0 and 5, 10 context frames: the golden lists, one row a frame."""
    numbers = golden("prop_random")
    memory = Memory(num_context=10)
    introduced = {0: slice(0, 3), 5: slice(3, 4)}
    for time in range(16):
        for reference in memory.references:
            start = reference.frame.time
            row = numbers[f"context_index_t0_{start}"][time - start - 1]
            found = [stored.time for stored in memory.context(reference)]
            assert found == row[row >= 0].tolist()
        memory.store(frame(time), introduced=introduced.get(time))
    assert [reference.channels for reference in memory.references] == list(introduced.values())


def test_storage_does_not_grow_and_holds_each_frame_once():
    memory = Memory(num_context=4)
    for time in range(50):
        memory.store(frame(time), introduced=slice(time, time + 1) if time in (0, 30) else None)
        times = [stored.time for stored in memory.frames()]
        assert len(times) == len(set(times)) <= 6
    assert sorted(times) == [0, 30, 46, 47, 48, 49]


def test_without_context_frames_only_the_reference_is_left():
    memory = Memory(num_context=0)
    memory.store(frame(0), introduced=slice(0, 2))
    memory.store(frame(1), introduced=None)
    assert [stored.time for stored in memory.context(memory.references[0])] == [0]
