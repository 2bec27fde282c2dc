from __future__ import annotations

import pytest
import torch

from tclx.errors import MachineError, RunFailed
from tclx.spec.training import TrainingSpec
from tclx.train.failures import known_failure
from tclx.train.precision import autocast, choose_device, gradient_scaler, prepare_numerics

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
CPU = torch.device("cpu")


def spec(**changes: str) -> TrainingSpec:
    return TrainingSpec(steps=1, batch_size_per_gpu=1, **changes)


@no_gpu
def test_a_missing_gpu_is_named_with_its_key() -> None:
    with pytest.raises(MachineError, match=r"training\.device"):
        choose_device(spec(device="cuda"))


@no_gpu
def test_auto_takes_the_cpu_where_there_is_nothing_else() -> None:
    assert choose_device(spec()) == CPU


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine is a Mac with a GPU")
def test_a_missing_mac_is_named_with_its_key() -> None:
    with pytest.raises(MachineError, match=r"training\.device: mps .* Apple silicon"):
        choose_device(spec(device="mps"))


def test_a_macs_gpu_is_taken_where_it_is_asked_for_and_never_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's word for it is a stand-in: no Mac was at hand."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(spec(device="mps")) == torch.device("mps")
    assert choose_device(spec()) == CPU
    for precision in ("tf32", "bf16", "fp16"):
        with pytest.raises(MachineError, match=rf"training\.precision: {precision} .* mps"):
            choose_device(spec(device="mps", precision=precision))


def test_what_torch_cannot_do_on_a_macs_gpu_ends_in_words() -> None:
    """Errors as torch's own source writes them."""
    mps = torch.device("mps")
    missing = NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device.\nIf you want")
    for error in (missing, RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB)")):
        known = known_failure(error, mps)
        assert isinstance(known, RunFailed)
        assert str(known).startswith("training.device: mps: ")
        assert "device: cpu" in str(known)
    assert known_failure(missing, CPU) is None


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_what_a_cpu_cannot_do_is_refused_with_its_key(precision: str) -> None:
    with pytest.raises(MachineError, match=rf"training\.precision: {precision}"):
        choose_device(spec(device="cpu", precision=precision))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_are_computed_in_the_precision_asked_for(precision: str, dtype: torch.dtype) -> None:
    with autocast(spec(precision=precision), CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_only_fp16_scales_its_gradients() -> None:
    enabled = [gradient_scaler(spec(precision=each), CPU).is_enabled() for each in ("fp32", "tf32", "bf16", "fp16")]
    assert enabled == [False, False, False, True]


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int], number: int = 1) -> None:
    """torch's answers about GPUs that are not there; nothing is computed on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("capability", "refused"), [((7, 5), {"tf32", "bf16"}), ((8, 0), set()), ((8, 9), set()), ((9, 0), set())]
)
def test_what_a_gpu_cannot_do_is_refused_with_its_key(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], refused: set[str]
) -> None:
    """tf32 and bf16 came with compute capability 8.0 (NVIDIA's CUDA programming guide)."""
    pretend_gpus(monkeypatch, capability=capability)
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        if precision in refused:
            with pytest.raises(MachineError, match=r"training\.precision: .* capability 8\.0"):
                choose_device(spec(precision=precision))
        else:
            assert choose_device(spec(precision=precision)) == torch.device("cuda", 0)


def test_every_process_takes_the_gpu_of_its_rank_and_a_process_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, capability=(9, 0), number=2)
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert choose_device(spec()) == torch.device("cuda", rank)
        assert choose_device(spec(device="cpu")) == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(MachineError, match=r"launch\.num_processes: process 2 has no GPU of its own, there are 2"):
        choose_device(spec())


@pytest.mark.usefixtures("numerics")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("precision", "products", "convolutions"),
    [("fp32", "highest", False), ("tf32", "high", True), ("bf16", "highest", True), ("fp16", "highest", True)],
)
def test_fp32_products_and_convolutions_use_no_tf32(precision: str, products: str, convolutions: bool, device: str) -> None:
    """Whatever was set before, torch's own default for convolutions included."""
    torch.set_float32_matmul_precision("highest" if products == "high" else "high")
    torch.backends.cudnn.allow_tf32 = not convolutions
    prepare_numerics(spec(precision=precision), torch.device(device))
    assert torch.get_float32_matmul_precision() == products
    assert torch.backends.cudnn.allow_tf32 is convolutions


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="tf32 is computed on GPUs alone")
@pytest.mark.usefixtures("numerics")
@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0.0, 2e-6), ("tf32", 1e-5, 2e-3)])
def test_a_gpu_computes_as_precisely_as_asked_for(precision: str, least: float, most: float) -> None:
    """Relative error against fp64: a mantissa of 23 bits rounds to 6e-8, tf32's of 10 bits to 5e-4."""
    prepare_numerics(spec(precision=precision), torch.device("cuda"))
    one, two = torch.randn(2, 512, 512, device="cuda")
    image, kernel = torch.randn(8, 64, 32, 32, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    for computed, exact in (
        (one @ two, one.double() @ two.double()),
        (
            torch.nn.functional.conv2d(image, kernel),
            torch.nn.functional.conv2d(image.double(), kernel.double()),
        ),
    ):
        error = float((computed - exact).norm() / exact.norm())
        assert least <= error <= most


@pytest.mark.usefixtures("numerics")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_a_cpu_pays_for_the_same_bits_every_time(device: str) -> None:
    """And does not pay for what torch adds to it: filling every new tensor."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    prepare_numerics(spec(), torch.device(device))
    assert torch.are_deterministic_algorithms_enabled() is (device == "cpu")
    assert torch.utils.deterministic.fill_uninitialized_memory is (device != "cpu")


@pytest.mark.parametrize(
    "text",
    [
        # as torch 2.11 to 2.15, cuBLAS, cuDNN and NCCL write them
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 B.",
        "[enforce fail at alloc_cpu.cpp:113] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "could not create a primitive",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "NCCL error: unhandled cuda error. Last error:\nCuda failure 2 'out of memory'",
    ],
)
def test_memory_that_runs_out_is_named_with_the_keys_to_change(text: str) -> None:
    for error in (RuntimeError(text), MemoryError()):
        known = known_failure(error, CPU)
        assert isinstance(known, RunFailed)
        for key in ("training.batch_size_per_gpu", "activation_checkpointing", "evaluation.retrieval.batch_size"):
            assert key in str(known)
    assert known_failure(RuntimeError("shape '[2]' is invalid for input of size 3"), CPU) is None
