"""Cores are counted as the system grants them."""

import os

import pytest

from ino import system as cores


@pytest.fixture
def grant(tmp_path, monkeypatch):
    """Grants cores by affinity and by the quota of a container."""

    def grant(affinity: int, quota: str | None) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
        monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
        (tmp_path / "cpu.max").unlink(missing_ok=True)
        if quota is not None:
            (tmp_path / "cpu.max").write_text(quota)
        return cores.available_cores()

    return grant


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [
        (16, None, 16),
        (16, "max 100000\n", 16),
        (16, "350000 100000\n", 4),
        (2, "800000 100000\n", 2),
        (1, "10000 100000\n", 1),
        (8, "nonsense", 8),
    ],
)
def test_affinity_and_quota_both_bind(affinity, quota, expected, grant):
    assert grant(affinity, quota) == expected
