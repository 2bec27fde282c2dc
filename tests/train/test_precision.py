from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tclx.errors import MachineError, RunFailed
from tclx.spec.training import TrainingSpec
from tclx.train.loop import _known_failure
from tclx.train.precision import autocast, choose_device, gradient_scaler, prepare_numerics

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
CPU = torch.device("cpu")


def spec(**changes: str) -> TrainingSpec:
    return TrainingSpec(steps=1, batch_size_per_gpu=1, **changes)


@pytest.fixture
def numerics() -> Iterator[None]:
    """Puts the process-wide switches back."""
    deterministic, products = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision(products)


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
        known = _known_failure(error, mps)
        assert isinstance(known, RunFailed)
        assert str(known).startswith("training.device: mps: ")
        assert "device: cpu" in str(known)
        assert _known_failure(error, CPU) is None


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


@pytest.mark.usefixtures("numerics")
def test_a_cpu_gives_the_same_bits_every_time() -> None:
    prepare_numerics(spec(), CPU)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
