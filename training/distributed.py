"""Training on several processes that torchrun starts, on one machine or more: all do the same with other pictures.

A step's batch is as large as all processes' together, its pictures dealt out to them, and their gradients averaged; so
the weights are what one process with so large a batch would have. Process 0 alone writes. With one process nothing
here does anything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
P = ParamSpec("P")


def join(device: torch.device) -> torch.device:
    """Meet the other processes, if torchrun started this one; the device that is its own."""
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes and logs."""
    return rank() == 0


def shard(all_of_them: Sequence[T]) -> Sequence[T]:
    """Of items that all processes know this one's: every `world_size`th, from its rank on."""
    return all_of_them[rank() :: world_size()]


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def all_gather(own: T) -> list[T]:
    """What each process has, in their order."""
    if world_size() == 1:
        return [own]
    all_of_them: list[Any] = [None] * world_size()
    dist.all_gather_object(all_of_them, own)
    return all_of_them


def broadcast(make: Callable[[], T]) -> T:
    """What process 0 makes: what it finds on its disk, say, where others have another."""
    if world_size() == 1:
        return make()
    made: list[Any] = [make() if is_main() else None]
    dist.broadcast_object_list(made)
    result: T = made[0]
    return result


def on_main(do: Callable[P, Any]) -> Callable[P, None]:
    """`do`, but by process 0 alone."""

    @wraps(do)
    def done(*arguments: P.args, **named: P.kwargs) -> None:
        if is_main():
            do(*arguments, **named)

    return done


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Give each tensor, in all processes, the mean of all; one message for all of them."""
    if world_size() == 1:
        return
    those = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in those])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, values in zip(those, flat.split([tensor.numel() for tensor in those]), strict=True):
        tensor.copy_(values.view_as(tensor))


def mean(*values: float) -> tuple[float, ...]:
    """The mean of each over all processes."""
    if world_size() == 1:
        return values
    own = torch.tensor(values, dtype=torch.float64, device=_device())
    average([own])
    return tuple(own.tolist())


def weight(items: Tensor) -> Tensor | float:
    """By what to multiply a mean over so many items: then the mean over processes is that over all their items."""
    if world_size() == 1:
        return 1.0
    total = items.double().clone()
    dist.all_reduce(total)
    return items * world_size() / total


def reseed(*key: int) -> None:
    """Draw other random numbers than the other processes, the same in a run that goes on where it was stopped."""
    if world_size() > 1:
        digest = hashlib.blake2b(repr((*key, rank())).encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
