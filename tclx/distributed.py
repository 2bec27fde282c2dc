"""How do several training processes act as one? The only file that calls torch.distributed.

torchrun's environment says who we are, or the same variables set by a SLURM task; without them every function here is the
identity, so that the same code trains one process and many. Losses never see any of this: they receive gathered tensors.
"""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tclx.errors import MachineError, TclxError
from tclx.files import write_atomically
from tclx.runs import MEETING_FILE, MEETING_HOST

T = TypeVar("T")

# The switch got its present name after torch 2.11, and the old one warns since.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers": False
}

# Rank 0 alone trains a tokenizer and writes checkpoints while the others wait in a collective. A dead rank does not need this
# timeout: its connections close, and torchrun ends the rest. One that stands still does not, either: the watchdog
# (train/watchdog.py) ends the others long before.
_PATIENCE = timedelta(hours=1)

# A gloo thread drops its last finished all-reduce a moment after we saw the result, and needs the interpreter for that. Found
# shutting down, it aborts the process with exit code 134 (3 % of short DDP programs under torch 2.15): let it have its turn.
_LINGER_SECONDS = 0.2

MEETING_PATIENCE_SECONDS = 600

# gloo raises plain RuntimeErrors.
_CONNECTION_ENDED = re.compile(r"Connection (closed|reset) by peer|Broken pipe|Connection refused|Socket closed", re.IGNORECASE)


@contextmanager
def start(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun's environment names, and leave them at the end; nothing to do for a single process.

    Args:
        device: this process's device; decides between NCCL (GPUs) and gloo (CPU).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    store = _meet(Path(meeting)) if (meeting := os.environ.get(MEETING_FILE)) else None
    who: dict[str, Any] = (
        {"store": store, "rank": rank_from_environment(), "world_size": int(os.environ["WORLD_SIZE"])} if store else {}
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=_PATIENCE, device_id=device, **who)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE, **who)
    try:
        yield
    finally:
        dist.destroy_process_group()
        time.sleep(_LINGER_SECONDS)


def _meet(path: Path) -> Store:
    """The store through which the processes find each other: rank 0 opens a free port and writes its address into a file.

    A port computed from the job's number, as is usual, may be taken: by another job's task on the same node, or by the system.

    Raises:
        MachineError: rank 0's address does not appear: it never started, or the nodes do not see the same folder.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    if rank_from_environment() == 0:
        host = os.environ.get(MEETING_HOST, "127.0.0.1")
        store = TCPStore(host, 0, world_size, is_master=True, wait_for_workers=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{host}:{store.port}")
        return store
    deadline = time.monotonic() + MEETING_PATIENCE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise MachineError(
                f"rank 0 has not written its address to {path} within {MEETING_PATIENCE_SECONDS} s: it did not start (its log "
                "says why), or this node does not see the same runs folder"
            )
        time.sleep(0.1)
    host, _, port = path.read_text(encoding="utf-8").rpartition(":")
    return TCPStore(host, int(port), world_size, is_master=False)


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    return isinstance(error, dist.DistNetworkError | dist.DistBackendError) or (
        isinstance(error, RuntimeError) and bool(_CONNECTION_ENDED.search(str(error)))
    )


def rank_from_environment() -> int:
    """This process among all, from 0; known before `start`."""
    return int(os.environ.get("RANK", "0"))


def rank() -> int:
    """This process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """This process among those on this machine, from 0; known before `start`."""
    return int(os.environ.get("LOCAL_RANK", "0"))


_acted_out: int | None = None
"""Processes among which one is acted out on the meta device."""


def _exchanges() -> bool:
    """Whether there are processes to exchange with, and this is no acting, of which the others know nothing."""
    return dist.is_initialized() and _acted_out is None


def world_size() -> int:
    """How many processes train together."""
    if _acted_out is not None:
        return _acted_out
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def acting_as_one_of(number: int) -> Iterator[None]:
    """A model on the meta device is one of so many processes: what is gathered is as large as it would be among them.

    Nothing is exchanged, also where this process trains with others.
    """
    global _acted_out
    _acted_out = number
    try:
        yield
    finally:
        _acted_out = None


def is_main() -> bool:
    """Whether this process writes the files and speaks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


def gather(x: Tensor) -> Tensor:
    """The rows of every process in rank order, without a gradient.

    Args:
        x: [B, ...], the same shape in every process.

    Returns:
        [W * B, ...]; row i of rank r is row r * B + i.
    """
    if not _exchanges():
        return x.detach() if world_size() == 1 else x.new_empty(world_size() * len(x), *x.shape[1:])
    x = x.detach().contiguous()
    gathered = x.new_empty(world_size() * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(gathered, x)
    return gathered


def gather_together(*columns: Tensor) -> list[Tensor]:
    """`gather` of each in one message: [B, any width] of one dtype."""
    if not _exchanges() and world_size() == 1:
        return [each.detach() for each in columns]
    together = gather(torch.cat(columns, dim=1))
    ends = list(accumulate(each.shape[1] for each in columns))
    return [together[:, end - each.shape[1] : end].contiguous() for each, end in zip(columns, ends, strict=True)]


class _Gather(torch.autograd.Function):
    """Everyone's rows; in the backward pass, summed, what every rank's loss says about the own rows.

    DDP averages parameter gradients over ranks, so this sum makes them the gradient of the mean of the ranks' losses.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.num_rows = x.shape[0]
        return gather(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.num_rows : (rank() + 1) * ctx.num_rows]


def gather_with_gradient(x: Tensor) -> Tensor:
    """The rows of every process in rank order, as `gather`, differentiable on every rank.

    Every process must take the same backward passes, since each of them communicates.
    """
    if not _exchanges():
        return x.repeat(world_size(), *[1] * (x.ndim - 1)) if world_size() > 1 else x
    return cast(Tensor, _Gather.apply(x))


class Exchange:
    """Rows that this process wants of any, and those of its own that any wants: agreed on once, then fetched of any tensors.

    What travels are the rows that are wanted, where `gather` moves all rows of all processes.

    Args:
        rows: [R] int64, numbers in rank order: row i of rank r is row r * B + i. The same R in every process.
        num_rows: B, rows of each process.
    """

    def __init__(self, rows: Tensor, *, num_rows: int) -> None:
        self._rows = rows
        self._route: _Route | None = None
        if not _exchanges():
            return
        everyone, own, size = world_size(), rank(), len(rows)
        wanted = gather(rows)
        owner = wanted // num_rows
        ranks = torch.arange(everyone, device=rows.device)
        # Of how many rows a message consists the host must know: the one wait of an exchange.
        counts = (owner.view(everyone, size, 1) == ranks).sum(dim=1).tolist()
        by_owner = owner.argsort(stable=True)
        first = sum(of_one[other] for of_one in counts for other in range(own))
        sent = [of_one[own] for of_one in counts]
        self._route = _Route(
            send=wanted[by_owner[first : first + sum(sent)]] - own * num_rows,
            order=owner[own * size : (own + 1) * size].argsort(stable=True),
            sent=sent,
            received=counts[own],
        )

    def fetch(self, x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """The wanted rows, differentiable; every process must take the same backward passes, since each communicates.

        Args:
            x: [B, ...], of the same shape in every process.
            dtype: they travel as; their gradients travel, and they arrive, as x is.

        Returns:
            [R, ...]
        """
        if self._route is None:
            return x[self._rows]
        return cast(Tensor, _Fetch.apply(x, self._route, dtype))


class _Route(NamedTuple):
    """Of an exchange."""

    send: Tensor
    """Own rows, in the order in which they are sent: to rank 0 first."""
    order: Tensor
    """Which of the wanted rows arrive first, and so on: those of rank 0."""
    sent: list[int]
    """How many rows to each rank."""
    received: list[int]
    """How many rows from each rank."""


class _Fetch(torch.autograd.Function):
    """Wanted rows come; in the backward pass their gradients go the way back, and add up where a row was wanted repeatedly.

    As with `_Gather`, DDP's average makes the parameters' gradients those of the mean of the ranks' losses.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, route: _Route, dtype: torch.dtype | None) -> Tensor:
        ctx.route, ctx.shape = route, x.shape
        sent = x[route.send].to(dtype or x.dtype)
        arrived = sent.new_empty(sum(route.received), *x.shape[1:])
        dist.all_to_all_single(arrived, sent, route.received, route.sent)
        return arrived[route.order.argsort()].to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        route, gradient = ctx.route, gradients[0]
        returned = gradient.new_empty(sum(route.sent), *ctx.shape[1:])
        dist.all_to_all_single(returned, gradient[route.order], route.sent, route.received)
        # index_put_ sorts where index_add_ adds atomically: a GPU repeats itself bit for bit.
        added = gradient.new_zeros(ctx.shape).index_put_((route.send,), returned, accumulate=True)
        return added, None, None


def maximum(x: Tensor) -> Tensor:
    """Elementwise maximum over processes."""
    if dist.is_initialized():
        x = x.clone()
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def total(x: Tensor) -> Tensor:
    """Elementwise sum over processes."""
    if dist.is_initialized():
        x = x.clone()
        dist.all_reduce(x)
    return x


def mean(x: Tensor) -> Tensor:
    """Elementwise mean over processes."""
    return total(x) / world_size() if dist.is_initialized() else x


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in at least one process; every process must ask."""
    return bool(maximum(torch.tensor([flag], dtype=torch.uint8, device=_device())).item()) if dist.is_initialized() else flag


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def all_gather_object(value: T) -> list[T]:
    """Every process's value (small, picklable), in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(action: Callable[[], T]) -> T:
    """Do something in rank 0 only; every process returns its result (small, picklable) or raises its error.

    An error that only rank 0 knew of would leave the others waiting in the next collective.
    """
    if not dist.is_initialized():
        return action()
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if is_main():
        try:
            outcome[0] = action()
        except Exception as error:  # shared with the other ranks first, raised by all of them below
            failure = error
            outcome[1] = error if isinstance(error, TclxError) else RuntimeError(f"rank 0 failed: {error!r}")
    dist.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors in place with rank 0's."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def wrap(module: nn.Module) -> nn.Module:
    """The module with its gradients averaged over processes in every backward pass; itself without a process group.

    Layers that are divided among the processes (`tclx.model.sharding`) average their own. Buffers are not broadcast: the
    queues are equal by construction, and batch-norm statistics are copied when they are used (`copy_from_main`).
    """
    if not dist.is_initialized():
        return module
    divided = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
    leave_out: Callable[..., None] = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    leave_out(module, divided)
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **_KEEP_BUFFERS)


def without_averaging(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, backward passes only accumulate; the first one outside averages what has been accumulated."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def fix_bucket_order(module: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Run two backward passes and drop their gradients, so that a resumed run adds numbers in the usual order.

    DDP regroups its gradient buckets after the first backward pass it sees, and the grouping decides the order of additions:
    without this a run resumed at step k, whose step k is that first pass, differs in the last bits from one that never stopped.

    Args:
        module: what `wrap` returned.
        loss: one forward pass through `module` on any batch, to the scalar that is trained on.
    """
    if not isinstance(module, DistributedDataParallel):
        return
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]  # batch-norm statistics move in a forward pass
    for _ in range(2):
        loss().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    module.zero_grad(set_to_none=True)
