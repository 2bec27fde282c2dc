"""What runs take from the model hub at their start: is it on this machine, or can it be had?

A job on a compute node finds out after hours in a queue; `tclx plan` and `tclx doctor SPEC` find out now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tclx import hub
from tclx.errors import InputError, MachineError, Problem, placed
from tclx.hub import HubFiles
from tclx.model.downloads import hub_files
from tclx.spec.data import DatasetsSource
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.load import Experiment


def check_downloads(specs: Iterable[ExperimentSpec], *, with_image: bool) -> list[str]:
    """See to it that what runs take from the hub is in the cache or can be fetched.

    Args:
        specs: of the runs.
        with_image: as in `hub_files`.

    Returns:
        Warnings: what SLURM jobs would have to download.

    Raises:
        InputError: as `hub_files`.
        MachineError: something is neither in the cache nor to be had; all of it is named.
    """
    wanted: dict[HubFiles, bool] = {}
    for spec in specs:
        for needed in hub_files(spec, with_image=with_image):
            wanted[needed] = wanted.get(needed, False) or spec.launch.backend == "slurm"
    lacking = {needed: by_job for needed, by_job in wanted.items() if not hub.in_cache(needed)}
    missing = [problem for needed in lacking if (problem := why_not(needed)) is not None]
    if missing:
        raise MachineError("\n".join(missing))
    return [
        f"{needed.key}: {needed.repository} is not in this machine's cache, and compute nodes seldom have a network; "
        f"`hf download {needed.repository}` here, into an HF_HOME that they share, fetches it before the job starts"
        for needed, by_job in lacking.items()
        if by_job
    ]


def fetch_all(experiments: Sequence[Experiment], *, say: Callable[[str], None]) -> bool:
    """Fetch what runs take from the hub and the cache lacks, and prepare their data sets; returns whether they take anything.

    Args:
        experiments: of the runs.
        say: is told of every repository.

    Raises:
        InputError: as `hub_files`, or a data set is none that can be read.
        MachineError: something cannot be fetched.
    """
    from tclx.data.formats.entry import Unreadable  # only here is a data set touched
    from tclx.data.hosted import Place, prepare

    data_sets = set[Place]()
    for spec, origins in experiments:
        for key, source in spec.data.single_sources():
            if isinstance(source, DatasetsSource) and (place := Place.of(source)) not in data_sets:
                data_sets.add(place)
                try:
                    prepare(place, say)
                except Unreadable as error:
                    problem = Problem(f"{key}.name", f"{place.name}{error.message}", error.hint)
                    raise InputError(placed(problem, origins)) from error
    wanted = dict.fromkeys(needed for one in experiments for needed in hub_files(one.spec, with_image=True))
    for needed in wanted:
        if hub.in_cache(needed):
            say(f"{needed.repository}: is in the cache already ({needed.key})")
            continue
        num_bytes = hub.fetch(needed)
        say(f"{needed.repository}: {num_bytes / 2**20:,.1f} MiB fetched ({needed.key})")
    return bool(wanted or data_sets)


def why_not(needed: HubFiles) -> str | None:
    """Why files cannot be had; None where they can."""
    try:
        hub.require(needed)
    except MachineError as error:
        return str(error)
    return None
