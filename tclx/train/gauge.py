"""How busy is the machine? Read whenever a row of metrics is written, so that a slow run shows what it waits for."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

from tclx.foreign import first_line
from tclx.metrics import CPU_USE, GPU_MEMORY_USE, GPU_POWER, GPU_USE, MEMORY_USE
from tclx.system import own_cores
from tclx.track.jsonl import Row


class Gauge:
    """The machine of this process, all programs together, and its GPU.

    Args:
        device: that is trained on.
        say: told once where the GPU's driver does not say how busy it is.
    """

    def __init__(self, device: torch.device, say: Callable[[str], None]) -> None:
        self._device, self._say = device, say
        self._asks_gpu = device.type == "cuda"
        psutil.cpu_percent(percpu=True)  # from here on; what it returns first means nothing

    def read(self) -> Row:
        """In percent, and watts: of the cores that this process may use since the last call, of memory and GPU now."""
        cores = psutil.cpu_percent(percpu=True)
        mine = [cores[core] for core in own_cores() if core < len(cores)] or cores
        row: Row = {CPU_USE: sum(mine) / len(mine), MEMORY_USE: psutil.virtual_memory().percent}
        return row | (self._gpu() if self._asks_gpu else {})

    def _gpu(self) -> Row:
        try:
            free, total = torch.cuda.mem_get_info(self._device)
            return {
                GPU_USE: float(torch.cuda.utilization(self._device)),
                GPU_MEMORY_USE: 100 * (1 - free / total),
                GPU_POWER: torch.cuda.power_draw(self._device) / 1000,
            }
        except Exception as error:  # the driver's library raises its own; a part of a GPU (MIG) tells no use
            self._asks_gpu = False
            self._say(f"the driver does not say how busy the GPU is, so the run does not record it: {first_line(error)}")
            return {}
