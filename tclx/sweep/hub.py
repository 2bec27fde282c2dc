"""Samplers of OptunaHub's registry, or of a copy of it: other people's code, which a sweep file asks for by name and commit."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from optuna.samplers import BaseSampler

from tclx.errors import InputError, MachineError, Problem
from tclx.foreign import first_line
from tclx.spec.sweep import HubSampler

MISSING = Problem("sampler.name", "optunahub is not installed", "pip install 'tclx[optunahub]'")


def is_installed() -> bool:
    """Whether the extra is."""
    return find_spec("optunahub") is not None


def hub_sampler(spec: HubSampler, *, seed: int) -> BaseSampler:
    """The sampler, made with the arguments of the spec, and with the seed where it takes one.

    Raises:
        InputError: the extra is missing, there is no such package or class, it cannot be made so, or is no sampler.
        MachineError: the registry cannot be reached, and its package has not been fetched before.
    """
    if not is_installed():
        raise InputError(MISSING)
    module = _module(spec)
    made = getattr(module, spec.sampler, None)
    if not (inspect.isclass(made) and issubclass(made, BaseSampler)):
        there = [name for name, one in vars(module).items() if inspect.isclass(one) and issubclass(one, BaseSampler)]
        message = f"{spec.package} has no sampler `{spec.sampler}`"
        raise InputError(Problem("sampler.sampler", message, f"it has {', '.join(sorted(there)) or 'none'}"))
    takes_seed = "seed" in inspect.signature(made).parameters
    try:
        sampler: BaseSampler = made(**{**({"seed": seed} if takes_seed else {}), **spec.arguments})
    except Exception as error:  # whatever other people's constructors raise
        message = f"{spec.sampler} cannot be made with these: {first_line(error)}"
        raise InputError(Problem("sampler.arguments", message)) from error
    return sampler


def _module(spec: HubSampler) -> ModuleType:
    import optunahub

    try:
        if spec.registry is not None:
            return optunahub.load_local_module(spec.package, registry_root=str(Path(spec.registry) / "package"))
        return optunahub.load_module(spec.package, ref=spec.ref or "main")
    except (ImportError, FileNotFoundError) as error:
        message = f"{spec.package} cannot be loaded: {first_line(error)}"
        hint = "is it in that registry, and are the packages that it needs installed?"
        raise InputError(Problem("sampler.package", message, hint)) from error
    except Exception as error:  # of git, of GitHub, of the package itself while it is imported
        raise MachineError(
            f"{spec.package} could not be fetched from OptunaHub's registry, or not be loaded: {first_line(error)}; the same "
            "command fetches it into the cache where there is a network, or name a copy of the registry as `sampler.registry`"
        ) from error
