"""Devices and processes of a run, through Lightning Fabric, and states sharded over them (FSDP).

Launches nothing itself: torchrun and SLURM start the processes, or Fabric those of one machine.
"""

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from ino.errors import ConfigError, InoError
from ino.models.backbone import computes_in_bf16
from ino.models.student_teacher import StudentTeacher
from ino.train.config import RunConfig

Found = TypeVar("Found")


def build_fabric(config: RunConfig) -> Fabric:
    """Lightning Fabric on the devices asked for; `auto` precision is resolved here.

    Raises:
        ConfigError: the device does not exist or does not support the precision, or the number of
            processes is not the one that the launcher started.
    """
    devices, num_nodes = count_processes(config)
    settings: dict[str, Any] = {
        "accelerator": config.accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
    }
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)  # Fabric names the precision before it is known that a run begins
    try:
        precision = config.precision
        if precision == "auto":
            device = Fabric(**settings).device
            precision = "bf16-mixed" if computes_in_bf16(device) else "32-true"
        strategy = _build_strategy(config.strategy, num_processes=devices * num_nodes)
        return Fabric(**settings, strategy=strategy, precision=precision)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot run on accelerator {config.accelerator} with {devices} device(s) on "
            f"{num_nodes} machine(s), strategy {config.strategy} and precision {config.precision}: "
            f"{error}"
        ) from error
    finally:
        logging.disable(disabled)


def _build_strategy(name: str, *, num_processes: int) -> str | Strategy:
    if name == "fsdp":
        # Fabric's FSDPStrategy is FSDP1, whose flattened parameters cannot be clipped one by one.
        return ModelParallelStrategy(
            cast(Any, shard), data_parallel_size=num_processes, tensor_parallel_size=1
        )
    return DDPStrategy() if name == "ddp" else "auto"


def launch(fabric: Fabric) -> None:
    """Starts the processes of a run, or joins those that a launcher started."""
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    environment = getattr(fabric.strategy, "cluster_environment", None)
    on_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if isinstance(environment, TorchElasticEnvironment) and restart != "0" and on_one_machine:
        # torchrun may keep its store over restarts, with the addresses of processes that are dead.
        # The count of restarts is the same for all processes of one machine, but not of several.
        store = TCPStore(environment.main_address, environment.main_port, is_master=False)
        on_cuda = fabric.device.type == "cuda"
        if on_cuda:
            torch.cuda.set_device(fabric.device)
        torch.distributed.init_process_group(
            "nccl" if on_cuda else "gloo",
            store=PrefixStore(f"restart {restart}", store),
            rank=environment.global_rank(),
            world_size=environment.world_size(),
            device_id=fabric.device if on_cuda else None,
        )
    fabric.launch()


def broadcast_from_first(fabric: Fabric, find: Callable[[], Found]) -> Found:
    """Calls `find` in the first process and returns its result in all processes.

    Raises:
        InoError, OSError: raised by `find`; raised again in every process.
    """
    found: Any = None
    if fabric.is_global_zero:
        try:
            found = find()
        except (InoError, OSError) as error:
            found = error
    found = fabric.broadcast(found)
    if isinstance(found, (InoError, OSError)):
        raise found
    return found


def count_processes(config: RunConfig) -> tuple[int, int]:
    """Processes per machine, and machines; 0 in the configuration means those of the launcher.

    Without torchrun or SLURM, 0 is one process on one machine.

    Raises:
        ConfigError: the launcher started other numbers than the configuration names, or no
            launcher did and they cannot be started (Fabric would start as many processes as bring
            the machine down, or wait for a machine that nobody starts).
    """
    found = _of_launcher()
    if found is None:
        num_cores = os.cpu_count() or 1
        if config.accelerator == "cpu" and config.devices > max(2, num_cores):
            raise ConfigError(
                f"run.devices is {config.devices}, but there are {num_cores} cores, and each "
                "process on a CPU needs one: lower run.devices"
            )
        if config.num_nodes > 1 and not os.environ.get("MASTER_ADDR"):
            raise ConfigError(
                f"run.num_nodes is {config.num_nodes}, but no launcher started this process: start "
                "it on each machine with torchrun or SLURM (docs/scaling.md)"
            )
        return config.devices or 1, config.num_nodes or 1
    for name, asked, started in zip(
        ("devices", "num_nodes"), (config.devices, config.num_nodes), found, strict=True
    ):
        if asked not in (0, started):
            raise ConfigError(
                f"run.{name} is {asked}, but the launcher (torchrun or SLURM) started {started}: "
                f"leave run.{name} out or start as many"
            )
    return found


def _of_launcher() -> tuple[int, int] | None:
    if TorchElasticEnvironment.detect():
        on_machine = int(os.environ["LOCAL_WORLD_SIZE"])
        return on_machine, int(os.environ["WORLD_SIZE"]) // on_machine
    if SLURMEnvironment.detect():
        num_nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // num_nodes, num_nodes
    return None


def launch_name() -> str | None:
    """The launcher's name for this job, the same after a restart; None without a launcher."""
    if name := os.environ.get("TORCHELASTIC_RUN_ID"):
        return f"torchrun {name}"
    if name := os.environ.get("SLURM_JOB_ID"):
        return f"slurm {name}"
    return None


def is_restart() -> bool:
    """Whether torchrun or SLURM restarted this process after a failure or requeued the job."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(int(os.environ.get(name) or 0) > 0 for name in names)


def shard(model: StudentTeacher, mesh: DeviceMesh) -> nn.Module:
    """The model with the parameters of both networks sharded over all processes.

    Blocks and heads are gathered one at a time. Student and teacher are sharded alike, so that the
    moving average, the optimizer and clipping work on each process's own shards.
    """
    over = mesh["data_parallel"]
    for network in (model.student, model.teacher):
        for part in (*network.backbone.blocks, network.head, network.backbone):
            # By default, a part that is not within another stays whole after its forward pass.
            fully_shard(part, mesh=over, reshard_after_forward=True)
    fully_shard(model, mesh=over)
    return model


def gather(state: Any) -> Any:
    """A nested state with its sharded tensors gathered on the CPU; all processes must call it."""
    return tree_map(lambda x: x.full_tensor().cpu() if isinstance(x, DTensor) else x, state)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(value: Tensor, other: Tensor) -> Tensor:
    """Moves a whole tensor to the device of `other` and shards it in the same way."""
    if not isinstance(other, DTensor):
        return value.to(other.device)
    value = value.to(other.to_local().device)
    # Every process has read the whole tensor: nothing is sent, each keeps its part.
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)


def load_module(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads whole tensors into a module, sharded or not; keys and shapes must fit."""
    own = module.state_dict()
    module.load_state_dict({name: shard_like(value, own[name]) for name, value in weights.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a gathered state into an optimizer whose parameters are sharded or not."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def fit(value: Any, parameter: Tensor) -> Any:
        is_moment = isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape
        return shard_like(value, parameter) if is_moment else value

    sharded = {
        index: {name: fit(value, parameters[index]) for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": sharded})
