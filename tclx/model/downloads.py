"""What does a run take from the model hub? Weights of its encoders, and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from tclx import hub
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


def ask_no_hub(spec: ExperimentSpec) -> None:
    """Tell the hub's client that there is no network, where the cache has all that a run takes: it would ask whether files have
    changed, and without a network wait for an answer, again and again.
    """
    wanted = list(hub_files(spec, with_image=True))
    if wanted and all(map(hub.in_cache, wanted)):
        hub.go_offline()
