"""What runs take from the model hub at their start: is it on this machine, or can it be had?

A job on a compute node finds out after hours in a queue; `tclx plan` and `tclx doctor SPEC` find out now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tclx import hub
from tclx.errors import MachineError
from tclx.hub import HubFiles
from tclx.spec.data import HubTokenizer
from tclx.spec.experiment import ExperimentSpec


def hub_files(spec: ExperimentSpec, *, with_image: bool) -> Iterator[HubFiles]:
    """What a run takes from the hub.

    Args:
        with_image: also of the image encoder, for which timm has to be imported.

    Raises:
        InputError: timm does not know the image encoder.
    """
    text, image, tokenizer = spec.model.text_encoder, spec.model.image_encoder, spec.data.tokenizer
    if isinstance(tokenizer, HubTokenizer) and hub.is_hub_name(tokenizer.name):
        yield hub.tokenizer_files(tokenizer.name, key="data.tokenizer.name")
    if spec.init is not None:  # the weights are another run's
        return
    if text.weights == "hub" and text.name and hub.is_hub_name(text.name):
        yield hub.text_files(text.name, key="model.text_encoder.weights", weights=True)
    if with_image and image.weights == "hub":
        from tclx.model.vision import hub_files as image_files

        if (needed := image_files(image.name)) is not None:
            yield needed


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


def why_not(needed: HubFiles) -> str | None:
    """Why files cannot be had; None where they can."""
    try:
        hub.require(needed)
    except MachineError as error:
        return str(error)
    return None
