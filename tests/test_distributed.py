"""Each promise is kept by 2 and by 4 real gloo processes; this file is also the program they run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tclx import distributed
from tclx.errors import MachineError
from tests.processes import finish_processes, start_processes

NUM_ROWS, WIDTH = 3, 5


def local_loss(queries: Tensor, keys: Tensor, first_row: int) -> Tensor:
    """InfoNCE of some queries among all keys, with gradient through both."""
    return nn.functional.cross_entropy(queries @ keys.T, torch.arange(first_row, first_row + len(queries)))


def check_gather() -> dict[str, bool]:
    rank, world_size = distributed.rank(), distributed.world_size()
    mine = torch.full((2, 2), rank)
    flags = torch.tensor([rank % 2 == 0, True])
    everyone = torch.arange(world_size).repeat_interleave(2)
    return {
        "gather_orders_rows_by_rank": bool((distributed.gather(mine)[:, 0] == everyone).all()),
        "gather_keeps_bool": distributed.gather(flags).tolist() == [v for r in range(world_size) for v in (r % 2 == 0, True)],
        "columns_come_apart_again": all(
            map(torch.equal, distributed.gather_together(mine, mine + 1), map(distributed.gather, (mine, mine + 1)))
        ),
        "objects_come_in_rank_order": distributed.all_gather_object(rank) == list(range(world_size)),
        "any_rank_sees_the_last_rank": distributed.any_rank(rank == world_size - 1) and not distributed.any_rank(False),
        "mean_is_over_ranks": distributed.mean(torch.tensor(float(rank))).item() == (world_size - 1) / 2,
    }


def check_gradient() -> dict[str, bool]:
    """DDP's averaged gradient equals that of the mean of the ranks' losses, computed in one process."""
    rank, world_size = distributed.rank(), distributed.world_size()
    rows = torch.randn(world_size * NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    net = nn.Linear(WIDTH, 4)
    embedded = net(rows)
    chunks = [local_loss(part, embedded, r * NUM_ROWS) for r, part in enumerate(embedded.split(NUM_ROWS))]
    expected = torch.autograd.grad(torch.stack(chunks).mean(), net.weight)[0]

    wrapped = distributed.wrap(net)
    mine = wrapped(rows[rank * NUM_ROWS : (rank + 1) * NUM_ROWS])
    local_loss(mine, distributed.gather_with_gradient(mine), rank * NUM_ROWS).backward()
    return {"gradient_is_that_of_the_mean_loss": torch.allclose(net.weight.grad, expected, rtol=1e-5, atol=1e-7)}


def check_exchange() -> dict[str, bool]:
    """What is fetched, and the gradient that it leaves, are those of gathering everything and choosing then."""
    rank, everyone = distributed.rank(), distributed.world_size()
    generator = torch.Generator().manual_seed(rank)
    kept = {"fetched_rows_are_the_wanted_ones": True, "their_gradient_is_that_of_gathering": True, "bools_travel": True}
    for wanted in (torch.randint(everyone * NUM_ROWS, (4,), generator=generator), torch.full((4,), everyone * NUM_ROWS - 1)):
        x = torch.randn(NUM_ROWS, WIDTH, 2, generator=generator)
        weights = torch.randn(4, WIDTH, 2, generator=generator)
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        exchange = distributed.Exchange(wanted, num_rows=NUM_ROWS)
        kept["only_wanted_rows_travel"] = len(exchange._route.order) == sum(exchange._route.received) == len(wanted)
        fetched, chosen = exchange.fetch(one), distributed.gather_with_gradient(other)[wanted]
        (fetched * weights).sum().backward()
        (chosen * weights).sum().backward()
        kept["fetched_rows_are_the_wanted_ones"] &= torch.equal(fetched, chosen)
        kept["their_gradient_is_that_of_gathering"] &= torch.allclose(one.grad, other.grad, rtol=1e-6, atol=1e-6)
        kept["bools_travel"] &= torch.equal(exchange.fetch(x > 0), distributed.gather(x > 0)[wanted])
        halved = exchange.fetch(one, dtype=torch.bfloat16)
        kept["half_is_for_the_way_alone"] = halved.dtype == torch.float32 and torch.equal(halved, chosen.bfloat16().float())
    return kept


def check_errors() -> dict[str, bool]:
    def fill_the_disk() -> None:
        raise MachineError("the disk is full")

    try:
        distributed.on_main(fill_the_disk)
    except MachineError as error:
        raised = str(error)
    tensor = torch.full((2,), float(distributed.rank()))
    distributed.copy_from_main([tensor])
    return {
        "an_error_of_rank_0_reaches_all": raised == "the disk is full",
        "a_result_of_rank_0_reaches_all": distributed.on_main(lambda: f"from {distributed.rank()}") == "from 0",
        "copy_from_main_overwrites": bool((tensor == 0).all()),
    }


def test_a_single_process_gives_and_gets_its_own(device: torch.device, tmp_path: Path) -> None:
    """Through a real collective of one: NCCL on a GPU, gloo on a CPU."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        rows, flags = torch.randn(3, 2, device=device), torch.tensor([True, False], device=device)
        leaf = rows.clone().requires_grad_()
        (2 * distributed.gather_with_gradient(leaf)).sum().backward()
        net = nn.Linear(2, 2).to(device)
        distributed.wrap(net)(rows).sum().backward()
        assert torch.equal(distributed.gather(rows), rows)
        assert torch.equal(distributed.gather(flags), flags)
        chosen = distributed.Exchange(torch.tensor([2, 2, 0], device=device), num_rows=3).fetch(
            leaf_too := rows.clone().requires_grad_()
        )
        chosen.sum().backward()
        assert torch.equal(chosen, rows[[2, 2, 0]])
        assert torch.equal(leaf_too.grad, torch.tensor([[1.0, 1], [0, 0], [2, 2]], device=device))
        assert torch.equal(leaf.grad, torch.full_like(rows, 2))
        assert torch.equal(distributed.mean(rows), rows)
        assert torch.equal(distributed.total(flags.long()), flags.long())
        assert torch.equal(distributed.maximum(flags.to(torch.uint8)), flags.to(torch.uint8))
        assert distributed.on_main(lambda: "said") == "said"
        assert distributed.all_gather_object({"rank": 0}) == [{"rank": 0}]
        assert distributed.any_rank(True)
        assert not distributed.any_rank(False)
        torch.testing.assert_close(net.weight.grad, rows.sum(dim=0).expand(2, 2))
        distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def train(*, first: int, state: dict[str, Tensor] | None, settle: bool) -> dict[str, Tensor]:
    """Steps first..8 of plain gradient descent on a net whose bucket order changes after the first backward pass."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(37, 37) for _ in range(6)), nn.BatchNorm1d(37))
    if state is not None:
        net.load_state_dict(state)
    wrapped = distributed.wrap(net)
    generator = torch.Generator()

    def loss(step: int) -> Tensor:
        rows = torch.randn(8, 37, generator=generator.manual_seed(100 * step + distributed.rank()))
        return wrapped(rows).square().mean()

    if settle:
        distributed.fix_bucket_order(wrapped, lambda: loss(first))
    for step in range(first, 8):
        loss(step).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.3 * parameter.grad
                parameter.grad = None
        if step == 3 and first == 0:
            halfway = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return {name: tensor.clone() for name, tensor in net.state_dict().items()} | (
        {f"halfway/{name}": tensor for name, tensor in halfway.items()} if first == 0 else {}
    )


def resumes_exactly(*, settle: bool) -> bool:
    whole = train(first=0, state=None, settle=settle)
    halfway = {name.removeprefix("halfway/"): tensor for name, tensor in whole.items() if name.startswith("halfway/")}
    resumed = train(first=4, state=halfway, settle=settle)
    # Batch-norm statistics are each process's own, and DDP starts all of them with rank 0's, which are those that are saved.
    compared = [name for name in resumed if distributed.is_main() or "running" not in name]
    return all(torch.equal(whole[name], resumed[name]) for name in compared)


def check_resume() -> dict[str, bool]:
    settled, unsettled = resumes_exactly(settle=True), resumes_exactly(settle=False)
    two = distributed.world_size() == 2  # two numbers add up the same in either order: only more can tell the difference
    return {"settled_buckets_resume_bit_for_bit": settled, "and_unsettled_ones_do_not": not unsettled or two}


CHECKS = (check_gather, check_gradient, check_exchange, check_errors, check_resume)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_processes_act_as_one(world_size: int) -> None:
    processes = start_processes([__file__], world_size=world_size)
    for output in finish_processes(processes):
        verdicts = json.loads(output)
        assert len(verdicts) == 17
        assert [promise for promise, kept in verdicts.items() if not kept] == []


def test_a_single_process_needs_no_group() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with distributed.start(torch.device("cpu")):
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        assert distributed.gather_with_gradient(x) is x
        assert torch.equal(distributed.gather(x), x)
        assert not distributed.gather(x).requires_grad
        assert torch.equal(distributed.Exchange(torch.tensor([1, 0]), num_rows=2).fetch(x), x[[1, 0]])
        assert distributed.wrap(nn.Linear(1, 1)).__class__ is nn.Linear
        assert distributed.all_gather_object("a") == ["a"]
        assert distributed.any_rank(True)


# ------------------------------------------------------------------------------------------------------------------- meetings

NUM_MEETINGS = 32
PATIENCE_SECONDS = 60


def meet_all(folder: Path) -> int:
    """Fork two processes a meeting, in any order; returns how many did not meet exactly their companion."""
    members = [(meeting, rank) for meeting in range(NUM_MEETINGS) for rank in range(2)]
    random.Random(0).shuffle(members)
    children = [os.fork() or attend(folder, *member) for member in members]
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def attend(folder: Path, meeting: int, rank: int) -> int:
    """One process: meet, stay until all meetings have taken place at the same time, leave. Does not return."""
    kept = False
    signal.alarm(PATIENCE_SECONDS)  # one that waits in vain must not stay behind
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), TCLX_MEETING_HOST="127.0.0.1")
        os.environ["TCLX_MEETING_FILE"] = str(folder / f"{meeting}" / "job7.0")
        with distributed.start(torch.device("cpu")):
            kept = distributed.all_gather_object((meeting, rank)) == [(meeting, 0), (meeting, 1)]
            (folder / f"{meeting}" / f"met-{rank}").touch()
            while len(list(folder.glob("*/met-*"))) < 2 * NUM_MEETINGS:
                time.sleep(0.2)
    finally:
        os._exit(0 if kept else 1)


def test_many_pairs_meet_on_one_machine_at_the_same_time(tmp_path: Path) -> None:
    """As many jobs' tasks on one node, each pair under a port of its own."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "0 failed\n"), done.stderr
    addresses = {path.read_text(encoding="utf-8") for path in tmp_path.glob("*/job7.0")}
    assert len(addresses) == NUM_MEETINGS


if __name__ == "__main__" and len(sys.argv) == 2:
    print(f"{meet_all(Path(sys.argv[1]))} failed")
elif __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.start(torch.device("cpu")):
        found: dict[str, bool] = {}
        for check in CHECKS:
            found |= check()
    json.dump(found, sys.stdout)
