"""The model card of an exported model: what it is, what it learned from, what it reaches, how it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, assert_never

import tclx
from tclx.metrics import of_one_split
from tclx.provenance import describe_code
from tclx.report.results import Selection, format_chance, format_spread, read_runs, summarise
from tclx.spec.data import (
    DatasetsSource,
    DataSource,
    FilesSource,
    FolderSource,
    HubTokenizer,
    MixtureSource,
    ScenesSource,
    ShardsSource,
)
from tclx.use.exported import PREPROCESSING, TOKENIZER

if TYPE_CHECKING:
    from tclx.use.loaded import VisionLanguageModel


def model_card(model: VisionLanguageModel, *, to: str, form: str | None) -> str:
    """Markdown. Paths of the machine that it was trained on are cut to their last part."""
    spec = model.spec
    blocks = [
        f"# {model.name}",
        f"A vision-language model of task `{spec.task.name}`, trained with tclx ({_origin(model)}). Weights: "
        + (f"step {model.step:,}." if model.step is not None else f"{model.saved.path.name}."),
        "## Use",
        _use(model, to, form),
        f"What happens to an image and a text before the encoders is in `{PREPROCESSING}`; the tokenizer is in `{TOKENIZER}/`.",
        "## Model",
        "\n".join(
            [
                f"- image encoder: {spec.model.image_encoder.name}, {spec.model.image_encoder.image_size} pixels",
                f"- text encoder: {spec.model.text_encoder.name or 'BERT of sizes given in the spec'}, "
                f"{spec.model.text_encoder.num_layers} layers",
                f"- fusion encoder: {spec.model.fusion_encoder.num_layers if spec.model.fusion_encoder else 'no'} layers",
                f"- embeddings: {spec.model.embed_dim if model.has_common_space else 'no'} dimensions",
                f"- terms of the loss: {', '.join(spec.objectives.terms) or 'those of the task'}",
                f"- parameters in the encoders: {sum(one.numel() for one in model.model.online.parameters()):,}",
            ]
        ),
        "## Data",
        "\n".join(f"- {name}: {_data(getattr(spec.data, name))}" for name in ("train", "val", "test")),
        "## Metrics",
        _metrics(model),
        "## Licence",
        "This card states no licence: check those of the training data"
        + _first_weights(model)
        + ", which may limit what may be done with weights that came of them.",
    ]
    return "\n\n".join(blocks) + "\n"


def _origin(model: VisionLanguageModel) -> str:
    commit = describe_code()["commit"]
    return f"exported by version {tclx.__version__}" + (f", commit {commit[:12]}" if commit else "")


def _use(model: VisionLanguageModel, to: str, form: str | None) -> str:
    if to == "official":
        return f"`{form}.pth` is read by the official code's {form} script."
    if to == "onnx":
        return (
            "`image_encoder.onnx`: `pixels` [N, 3, S, S] fp32, normalised, gives `image_embeds` [N, D].\n"
            "`text_encoder.onnx`: `input_ids` and `attention_mask` [N, L] int64 give `text_embeds` [N, D]. Texts are "
            "`[CLS] text` without `[SEP]`. Both are of length 1, so that products are cosine similarities."
        )
    answers = model.spec.task.name == "vqa"
    call = 'model.answer("photo.jpg", "what is it?")' if answers else 'model.embed_images(["photo.jpg"])'
    return f'```python\nimport tclx\n\nmodel = tclx.load("path/to/this/folder")\n{call}\n```'


def _data(source: DataSource | None) -> str:
    match source:
        case None:
            return "none"
        case FilesSource():
            return f"files ({source.form}): " + ", ".join(Path(name).name for name in source.files)
        case DatasetsSource():
            commit = f", commit {source.revision}" if source.revision is not None else ""
            return f"{source.name}{f', subset {source.subset}' if source.subset is not None else ''}{commit}"
        case FolderSource() | ShardsSource():
            return f"{source.source} ({source.form}): {Path(source.folder).name}"
        case MixtureSource():
            parts = [
                f"{name} ({_data(one.data)})" + f", share {one.share:g}" * bool(one.share)
                for name, one in source.sources.items()
            ]
            return "a mixture of " + "; ".join(parts)
        case ScenesSource():
            return f"generated scenes, {source.num_images:,} images"
        case _:
            assert_never(source)


def _first_weights(model: VisionLanguageModel) -> str:
    """What its weights began as, as far as the spec says."""
    image, text = model.spec.model.image_encoder, model.spec.model.text_encoder
    first = [
        f"the image encoder's first weights ({image.name if image.weights == 'hub' else Path(str(image.weights)).name})"
        if image.weights
        else "",
        f"the text encoder's first weights ({text.name if text.weights == 'hub' else Path(str(text.weights)).name})"
        if text.weights
        else "",
        "the checkpoint that training started from" if model.spec.init is not None else "",
        f"the tokenizer ({Path(model.spec.data.tokenizer.name).name})"
        if isinstance(model.spec.data.tokenizer, HubTokenizer)
        else "",
    ]
    return "".join(f", of {one}" for one in first if one)


def _metrics(model: VisionLanguageModel) -> str:
    """Of the run's final evaluation, with 95 % intervals over its queries where their outcomes were kept."""
    if model.saved.run is None:
        return "Not evaluated here."
    results = summarise(read_runs(Selection((model.saved.run.path,))))
    if not results.rows:
        return "The run has not finished: there is no final evaluation."
    (row,) = results.rows
    known = of_one_split()
    lines = [
        f"| {known[name].title if name in known else name} | `{name}` | {format_spread(row.metrics.get(name))} | "
        f"{format_chance(results, name) or '-'} |"
        for name in results.metrics
    ]
    head = f"| on {results.split} | name | value [95 % interval] | chance |\n|---|---|---|---|"
    remark = "Of the run's best weights by its validation metric; intervals are over queries, not over training runs."
    return "\n".join([head, *lines, "", remark])
