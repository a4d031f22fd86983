"""States whose tensors are cut over processes (FSDP), gathered whole and cut again."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map


def gather(state: Any) -> Any:
    """A state of nested dictionaries and lists with whole tensors; all processes must call it."""

    def whole(value: Any) -> Any:
        return value.full_tensor().cpu() if isinstance(value, DTensor) else value

    return tree_map(whole, state)


def cut_like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, on the device of another and cut as that one is."""
    if not isinstance(other, DTensor):
        return value.to(other.device)
    value = value.to(other.to_local().device)
    # Every process has read the whole tensor: nothing is sent, each keeps its part.
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)


def load_module(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts whole tensors into a module, cut or not; keys and shapes must fit."""
    own = module.state_dict()
    module.load_state_dict({name: cut_like(value, own[name]) for name, value in weights.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Puts a gathered state into an optimiser whose parameters are cut or not."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {
        index: {
            name: cut_like(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape and value.ndim
            else value
            for name, value in entries.items()
        }
        for index, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": cut})


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; all of it where it is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
