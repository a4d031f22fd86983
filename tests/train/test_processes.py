"""Several processes train to what one trains to, and may continue each other's runs."""

import copy

import pytest
import torch
from processes import start_processes, wait

from ino.models.checkpoints import list_checkpoints, read_checkpoint
from ino.train.loop import train

TOLERANCE = 1e-5


def without_key_bias(name: str, value: torch.Tensor) -> torch.Tensor:
    """A softmax over keys does not change with their bias: its gradient is rounding alone, from
    which AdamW makes steps of full size, and no output depends on it."""
    return value.unflatten(0, (3, -1))[[0, 2]] if name.endswith("qkv.bias") else value


def assert_close_states(first: dict, second: dict) -> None:
    for network in ("student", "teacher", "objective"):
        assert first[network].keys() == second[network].keys()
        for name, value in first[network].items():
            torch.testing.assert_close(
                without_key_bias(name, value),
                without_key_bias(name, second[network][name]),
                atol=TOLERANCE,
                rtol=0,
                msg=lambda text, name=name, network=network: f"{network}.{name}: {text}",
            )


@pytest.fixture
def config(config):
    """Drops no path: each process would drop its own."""
    config.model.drop_path = 0.0
    config.optim.lr = 0.02
    config.run.max_steps = 4
    config.run.save_every = 2
    return config


def of_each(config, *, number: int):
    """The same global batch over so many processes."""
    shared = copy.deepcopy(config)
    shared.data.batch_size = config.data.batch_size // number
    return shared


@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_two_processes_train_as_one(config, tmp_path, strategy):
    alone = read_checkpoint(train(config, out=tmp_path / "one"))
    config.run.strategy = strategy
    two = start_processes(of_each(config, number=2), tmp_path / "two", number=2)
    assert wait(two) == [0, 0]
    together = read_checkpoint(list_checkpoints(tmp_path / "two")[-1])
    assert together["step"] == alone["step"] == 4
    assert_close_states(alone, together)
    moments = (content["optimizer"]["state"] for content in (alone, together))
    for first, second in zip(*(list(one.values()) for one in moments), strict=True):
        torch.testing.assert_close(first, second, atol=TOLERANCE, rtol=0)
