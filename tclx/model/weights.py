"""Which weights a model starts from, and how official TCL and ALBEF checkpoints translate.

| official                                       | here, after `online.` (after `momentum.` for parts called `_m`)  |
|------------------------------------------------|------------------------------------------------------------------|
| visual_encoder.X                               | image_encoder.body.X                                             |
| text_encoder.[bert.]embeddings.X               | text_encoder.embeddings.X                                        |
| text_encoder.[bert.]encoder.layer.I.X          | text_encoder.layers.I.X below the first cross-attention, then    |
|                                                | fusion_encoder.layers.(I - first).X                              |
| ... .crossattention.self.X, .output.X          | ... .cross_attention.X                                           |
| text_encoder.cls.predictions.X                 | mlm_head.X; the tied decoder is not kept a second time           |
| vision_proj, text_proj                         | image_projection, text_projection                                |
| cls_head.X (entailment, NLVR2), ta_head.X      | head.X                                                           |
| text_decoder.[bert.]embeddings.X (VQA)         | decoder.embeddings.X                                             |
| text_decoder.[bert.]encoder.layer.I.X          | decoder.layers.I.X, cross-attention as above                     |
| text_decoder.cls.predictions.X                 | decoder.head.X, as mlm_head.X                                    |
| **official**                                   | **here**                                                         |
| itm_head, temp                                 | itm_head, temperatures.shared                                    |
| image_queue, text_queue [D, K], queue_ptr [1]  | queue.image, queue.text [K, D], queue.pointer                    |
| idx_queue [1, K], retrieval only               | queue.image_index [K]                                            |
"""

from __future__ import annotations

import math
import pickle
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from tclx.errors import InputError, Problem
from tclx.files import replacing
from tclx.model.lora import merged, plain_names
from tclx.model.queue import NO_IMAGE
from tclx.model.sharding import load_state

KEY = "init.checkpoint"

OfficialForm = Literal["pretrain", "retrieval", "entailment", "nlvr", "vqa"]
"""`pretrain`: model_pretrain.py, with an MLM head. `retrieval`: model_retrieval.py, with image indices in the queue.
`entailment`: model_ve.py, `nlvr`: model_nlvr.py, `vqa`: model_vqa.py."""


def on_meta() -> bool:
    """Whether modules are being built without memory, to be counted only; then no weights are read."""
    return torch.get_default_device().type == "meta"


def read_tensors(path: Path, *, key: str = KEY) -> dict[str, Tensor]:
    """A state dict from `.safetensors`, or from a torch file that holds one, flat or under `model`. Nothing in it is run.

    Raises:
        InputError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise InputError(Problem(key, f"there is no file {path}"))
    content = _read_safetensors(path, key) if path.suffix == ".safetensors" else _read_torch(path, key)
    for wrapper in ("model", "state_dict"):
        wrapped = content.get(wrapper)
        content = wrapped if isinstance(wrapped, dict) else content
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(Problem(key, f"{path} holds no tensors, neither at the top nor under `model`"))
    for name, tensor in tensors.items():
        if (what := _unusable(name, tensor, num_bytes=path.stat().st_size)) is not None:
            raise InputError(Problem(key, f"{path} is no state dict of a model: {what}"))
    return tensors


def _unusable(name: object, tensor: Tensor, *, num_bytes: int) -> str | None:
    """Why an entry cannot be a weight; such files raise anything where they are used."""
    if not isinstance(name, str):
        return f"its keys are not names, for instance {name!r}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        return f"{name} is sparse, quantized, complex or without values"
    if tensor.numel() * tensor.element_size() > num_bytes:  # one value, said to be repeated for ever
        return f"{name} is {list(tensor.shape)}, which is more than the file holds"
    return None


def _read_safetensors(path: Path, key: str) -> dict[str, object]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(Problem(key, f"{path} could not be read as safetensors: {error}")) from error


def _read_torch(path: Path, key: str) -> dict[str, object]:
    try:
        _refuse_bomb(path, key)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            Problem(
                key,
                f"{path} holds Python objects beside its tensors, and reading those could run foreign code; it was not opened",
                "save its tensors alone: torch.save(checkpoint['model'], ...) where you trust the file",
            )
        ) from error
    except InputError:
        raise
    except Exception as error:  # a malformed pickle raises whatever its last instruction runs into
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(Problem(key, f"{path} could not be read as a torch file: {what}")) from error
    if not isinstance(content, dict):
        raise InputError(Problem(key, f"{path} holds a {type(content).__name__}, not a state dict"))
    return content


def _refuse_bomb(path: Path, key: str) -> None:
    """torch.save stores without compression, so an archive whose entries are larger than itself was made to fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        num_bytes = sum(entry.file_size for entry in archive.infolist())
    if num_bytes > path.stat().st_size:
        raise InputError(Problem(key, f"{path} is compressed ({num_bytes} bytes once unpacked); torch.save does not do that"))


def fit_tensor(name: str, tensor: Tensor, target: Tensor) -> Tensor:
    """A ViT's position embedding is interpolated to the size of `target`; anything else comes back as it is."""
    if not name.endswith("pos_embed") or tensor.ndim != 3 or tensor.shape == target.shape or target.ndim != 3:
        return tensor
    return resize_position_embedding(tensor, num_tokens=target.shape[1])


def resize_position_embedding(embedding: Tensor, *, num_tokens: int) -> Tensor:
    """Interpolate a square grid of position embeddings, bicubic; [CLS] and other prefix tokens stay.

    Args:
        embedding: [1, P + n * n, D], P < 2n + 1 prefix tokens.
        num_tokens: P + m * m, of the new grid.

    Returns:
        [1, num_tokens, D]; `embedding` itself where no P makes both grids square, or it is of another shape.

    Source: official `interpolate_pos_embed`, which knows P = 1.
    """
    num_old = embedding.shape[1]
    prefixes = [p for p in range(8) if _is_square(num_old - p) and _is_square(num_tokens - p)]
    if not prefixes or embedding.shape[0] != 1 or not embedding.shape[2]:
        return embedding
    prefix = prefixes[0]
    side = math.isqrt(num_tokens - prefix)
    old_side = math.isqrt(num_old - prefix)
    grid = embedding[:, prefix:].reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid.float(), size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :prefix], resized.to(embedding.dtype).flatten(2).transpose(1, 2)], dim=1)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


# ------------------------------------------------------------------------------------------------------- starting from weights


class LoadReport(NamedTuple):
    """What of a model came from a file; names are the model's."""

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    """Position embeddings that were interpolated; they count as loaded, too."""
    missing: tuple[str, ...]
    """Not in the file: as random as before, except momentum encoders, which are equal to the online ones."""
    unused: tuple[str, ...]
    """In the file, but not in the model."""


def load_initial_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, source: Path | str, key: str = KEY) -> LoadReport:
    """Start a TCL model from a checkpoint: all of the model that it has.

    Momentum encoders that it lacks are set to the online ones. Queued features are taken over where the queues have the same
    size, without their image indices: those count the images of other data.

    Args:
        model: a TCL.
        tensors: under our names.
        source: where they are from, for errors.
        key: the spec key that errors name.

    Raises:
        InputError: the tensors have other shapes, or most of an encoder is not among them.
    """
    kept = {name: tensor for name, tensor in tensors.items() if name != "queue.image_index"}
    return _load(model, kept, source=source, key=key)


def load_official(model: nn.Module, tensors: Mapping[str, Tensor], *, source: Path | str = "the state dict") -> LoadReport:
    """Continue an official model: as `load_initial_weights`, from a state dict at hand and with the queue's image indices.

    Raises:
        InputError: as there.
    """
    return _load(model, from_official(tensors, source=source), source=source, key=KEY)


def _load(model: nn.Module, tensors: Mapping[str, Tensor], *, source: Path | str, key: str) -> LoadReport:
    # What adapters have learned there is the weights' here.
    own, tensors = model.state_dict(), merged(tensors, source=source, key=key)
    plain = plain_names(own)
    found = {name: tensors[theirs] for name, theirs in plain.items() if theirs in tensors}
    fitted = {name: fit_tensor(name, tensor, own[name]) for name, tensor in found.items()}
    other_shape = [name for name, tensor in fitted.items() if tensor.shape != own[name].shape]
    if any(name.startswith("queue.") for name in other_shape):  # of another size, or of another width: it fills anew
        fitted = {name: tensor for name, tensor in fitted.items() if not name.startswith("queue.")}
    _check_fit(source, {name: own[name] for name in plain}, fitted, [name for name in other_shape if name in fitted], key=key)
    load_state(model, own | fitted | _momentum_from_online(own, fitted))
    used = {plain[name] for name in fitted}
    return LoadReport(
        loaded=tuple(fitted),
        resized=tuple(name for name, tensor in fitted.items() if tensor is not found[name]),
        missing=tuple(name for name in plain if name not in fitted),
        unused=tuple(name for name in tensors if name not in used),
    )


def read_weights(path: Path, *, key: str = KEY) -> dict[str, Tensor]:
    """A state dict with our names, from a file with our names or an official file.

    Raises:
        InputError: it cannot be read safely, or is no checkpoint of TCL.
    """
    tensors = read_tensors(path, key=key)
    if any(name.startswith("online.") for name in tensors):
        return tensors
    return from_official(tensors, source=path, key=key)


def _check_fit(
    source: Path | str, own: Mapping[str, Tensor], fitted: Mapping[str, Tensor], other_shape: list[str], *, key: str
) -> None:
    problems = [
        Problem(key, f"{name} is {list(fitted[name].shape)} in {source}, {list(own[name].shape)} in this model")
        for name in other_shape[:5]
    ]
    for part in ("image_encoder", "text_encoder"):
        names = [name for name in own if name.startswith(f"online.{part}.")]
        lacking = [name for name in names if name not in fitted]
        if len(lacking) > 0.1 * len(names):
            message = f"{source} lacks {len(lacking)} of the {len(names)} tensors of model.{part}, for instance {lacking[0]}"
            problems.append(Problem(key, message, f"model.{part} must describe the model that was trained there"))
    if problems:
        raise InputError(*problems)


def _momentum_from_online(own: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values for the momentum tensors that the file lacks."""
    lacking = [name.removeprefix("momentum.") for name in own if name.startswith("momentum.") and name not in fitted]
    online = {name: f"online.{name}" for name in lacking}
    return {f"momentum.{name}": fitted.get(source, own[source]) for name, source in online.items()}


# --------------------------------------------------------------------------------------------------------- official checkpoints

_PART = re.compile(r"(visual_encoder|text_encoder|text_decoder|vision_proj|text_proj|cls_head)(_m)?\.(?:bert\.)?(.+)")
_CROSS_ATTENTION = re.compile(r"text_encoder\.encoder\.layer\.(\d{1,4})\.crossattention\.")
_MLM = "text_encoder.cls.predictions."
_WORDS = "text_encoder.embeddings.word_embeddings.weight"
_DECODER = "text_decoder.cls.predictions."
_REPEATED: dict[str, str | None] = {
    f"{_MLM}decoder.weight": _WORDS,
    f"{_MLM}decoder.bias": f"{_MLM}bias",
    f"{_DECODER}decoder.weight": "text_decoder.embeddings.word_embeddings.weight",
    f"{_DECODER}decoder.bias": f"{_DECODER}bias",
    "text_encoder.embeddings.position_ids": None,
    "text_decoder.embeddings.position_ids": None,
}
"""Written down twice, and what they repeat: the decoder is the word embeddings and the bias; position ids count from 0."""
_WHOLE = {
    "ta_head.weight": "online.head.weight",
    "ta_head.bias": "online.head.bias",
    "itm_head.weight": "itm_head.weight",
    "itm_head.bias": "itm_head.bias",
    "temp": "temperatures.shared",
    "image_queue": "queue.image",
    "text_queue": "queue.text",
    "queue_ptr": "queue.pointer",
    "idx_queue": "queue.image_index",
}
_EVERYWHERE = {"visual_encoder.cls_token": "a ViT with a class token"}
_CONTRASTIVE = _EVERYWHERE | {
    "vision_proj.weight": "one of objectives.cma, imc and lmi",
    "temp": "a shared objectives.temperature",
    "image_queue": "objectives.cma or imc, and a model.queue_size",
    "itm_head.weight": "objectives.itm",
}
_EXPECTED: dict[OfficialForm, dict[str, str]] = {
    "pretrain": _CONTRASTIVE | {f"{_MLM}bias": "objectives.mlm"},
    "retrieval": _CONTRASTIVE,
    "entailment": _EVERYWHERE | {"cls_head.0.weight": "task: {name: entailment}"},
    "nlvr": _EVERYWHERE | {"cls_head.0.weight": "task: {name: nlvr}"},
    "vqa": _EVERYWHERE | {f"{_DECODER}bias": "task: {name: vqa}"},
}
"""What an official checkpoint of a form always has, and what builds it here."""


def import_official(path: Path, *, key: str = KEY) -> dict[str, Tensor]:
    """Read an official TCL or ALBEF checkpoint under our names.

    Raises:
        InputError: it cannot be read safely, or is another model's.
    """
    return from_official(read_tensors(path, key=key), source=path, key=key)


def official_state_dict(model: nn.Module, *, form: OfficialForm) -> dict[str, Tensor]:
    """A TCL's state under official names.

    Raises:
        InputError: as `to_official`.
    """
    return to_official(merged(model.state_dict()), form=form)


def export_official(model: nn.Module, path: Path, *, form: OfficialForm) -> None:
    """Write a TCL as the official code would: `.pth` with the tensors under `model`, or `.safetensors`.

    Raises:
        InputError: the model has no counterpart in the official code.
        MachineError: the file cannot be written.
    """
    write_tensors(path, official_state_dict(model, form=form))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state dict: `.safetensors`, or else a torch file with it under `model`. Replaces `path` once it is complete.

    Raises:
        MachineError: the file cannot be written.
    """
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            file.write(save({name: tensor.clone() for name, tensor in tensors.items()}))  # tied ones, too, once each
        else:
            torch.save({"model": dict(tensors)}, file)


def from_official(tensors: Mapping[str, Tensor], *, source: Path | str, key: str = KEY) -> dict[str, Tensor]:
    """Official names -> ours. Nothing is lost: `to_official` gives the same tensors back.

    Raises:
        InputError: a tensor is of another model, or the MLM decoder is not the word embeddings.
    """
    plain = _without_twins({_plain(name): tensor for name, tensor in tensors.items()})
    first = min((int(found[1]) for _, name in plain if (found := _CROSS_ATTENTION.match(name))), default=sys.maxsize)
    prefixes = _prefixes(_num_layers(name for _, name in plain), first_fusion=first)
    result, strange = {}, []
    for (copy, name), tensor in plain.items():
        renamed = _renamed(name, prefixes)
        if name in _REPEATED:
            _check_repeated(name, tensor, plain.get((copy, _REPEATED[name] or "")), source=source, key=key)
        elif name in _WHOLE:
            if not _fits_queue(name, tensor):
                raise InputError(Problem(key, f"{name} is {list(tensor.shape)} in {source}, which no official checkpoint has"))
            result[_WHOLE[name]] = _queue_entry(name, tensor)
        elif renamed is not None:
            result[f"{copy}.{renamed}"] = tensor
        else:
            strange.append(name)
    if strange or "online.image_encoder.body.pos_embed" not in result:
        message = f"{source} is neither a checkpoint of tclx nor an official one of TCL or ALBEF"
        raise InputError(Problem(key, message, f"it holds {', '.join((strange or list(tensors))[:4])}"))
    if "queue.image" in result:  # nothing in the file says how much was ever written; the official code uses all of it
        result["queue.filled"] = torch.tensor(len(result["queue.image"]), device=result["queue.image"].device)
    return result


def to_official(tensors: Mapping[str, Tensor], *, form: OfficialForm) -> dict[str, Tensor]:
    """Our names -> official ones; what the momentum encoders do not have is taken from the online ones.

    Raises:
        InputError: the model lacks a part that an official checkpoint has, or has one that it cannot hold.
    """
    online = _under(tensors, "online.")
    num_text = _num_layers(f"{name}." for name in online if name.startswith("text_encoder.layers."))
    num_fusion = _num_layers(f"{name}." for name in online if name.startswith("fusion_encoder.layers."))
    if form == "nlvr":
        tensors = _with_twins(tensors)
        online = _under(tensors, "online.")
    num_decoder = _num_layers(f"{name}." for name in online if name.startswith("decoder.layers."))
    num_layers = max(num_text + num_fusion, num_decoder)
    prefixes = [(ours, official) for official, ours in _prefixes(num_layers, first_fusion=num_text)]
    result = {official: _official_entry(official, tensors[ours]) for official, ours in _WHOLE.items() if ours in tensors}
    strange = [name for name in tensors if name.startswith("temperatures.") and name != _WHOLE["temp"]]
    for suffix, parts in (("", online), ("_m", online | _under(tensors, "momentum."))):
        renamed = {name: _renamed(name, prefixes) for name in parts}
        strange += [name for name, official in renamed.items() if official is None]
        named = {official: parts[name] for name, official in renamed.items() if official is not None}
        result |= {_decorated(name, suffix, form): tensor for name, tensor in _with_repeated(named, form).items()}
    _check_exportable(result, strange, form)
    return _in_form(result, form)


def _plain(name: str) -> tuple[str, str]:
    """An official name -> which encoders it is of, and its name without the marks of the copy and of BERT's wrapper."""
    found = _PART.fullmatch(name)
    return ("momentum" if found[2] else "online", f"{found[1]}.{found[3]}") if found else ("online", name)


def _decorated(name: str, suffix: str, form: OfficialForm) -> str:
    """The marks put back."""
    part, _, rest = name.partition(".")
    wrapped = (form == "pretrain" and part == "text_encoder") or part == "text_decoder"
    wrapper = "bert." if wrapped and not rest.startswith("cls.") else ""
    return f"{part}{suffix}.{wrapper}{rest}"


def _prefixes(num_layers: int, *, first_fusion: int) -> list[tuple[str, str]]:
    """Beginnings of plain official names and of ours, the more special first."""
    pairs = [
        ("visual_encoder.", "image_encoder.body."),
        ("vision_proj.", "image_projection."),
        ("text_proj.", "text_projection."),
        ("text_encoder.embeddings.", "text_encoder.embeddings."),
        ("text_decoder.embeddings.", "decoder.embeddings."),
        ("cls_head.", "head."),
    ]
    for official, ours in ((_MLM, "mlm_head."), (_DECODER, "decoder.head.")):
        pairs += [
            (f"{official}transform.dense.", f"{ours}dense."),
            (f"{official}transform.LayerNorm.", f"{ours}norm."),
            (f"{official}bias", f"{ours}bias"),
        ]
    for index in range(num_layers):
        official = f"text_encoder.encoder.layer.{index}."
        if index < first_fusion:
            pairs.append((official, f"text_encoder.layers.{index}."))
            continue
        pairs += _of_fusion_layer(official, f"fusion_encoder.layers.{index - first_fusion}.")
    for index in range(num_layers):
        pairs += _of_fusion_layer(f"text_decoder.encoder.layer.{index}.", f"decoder.layers.{index}.")
    return sorted(pairs, key=lambda pair: -max(map(len, pair)))


def _of_fusion_layer(official: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"{official}crossattention.self.", f"{ours}cross_attention."),
        (f"{official}crossattention.output.dense.", f"{ours}cross_attention.dense."),
        (f"{official}crossattention.output.LayerNorm.", f"{ours}cross_attention.norm."),
        (official, ours),
    ]


_KEYS_VALUES = re.compile(r"(text_encoder\.encoder\.layer\.)(\d{1,4})(\.crossattention\.self\.(?:key|value)\.(?:weight|bias))")
_OUR_KEYS_VALUES = re.compile(
    r"((?:online|momentum)\.fusion_encoder\.layers\.)(\d+)(\.cross_attention\.(?:key|value)\.(?:weight|bias))"
)


def _without_twins(plain: dict[tuple[str, str], Tensor]) -> dict[tuple[str, str], Tensor]:
    """Of a model of two images the keys and values once: both layers of a pair look through the first one's."""
    found = {place: match for place in plain if (match := _KEYS_VALUES.fullmatch(place[1])) is not None}
    first = min((int(match[2]) for match in found.values()), default=0)
    second = {
        place: plain[place[0], f"{match[1]}{int(match[2]) - 1}{match[3]}"]
        for place, match in found.items()
        if (int(match[2]) - first) % 2 and (place[0], f"{match[1]}{int(match[2]) - 1}{match[3]}") in plain
    }
    paired = bool(second) and all(
        not plain[place].is_meta and plain[place].shape == twin.shape and torch.equal(plain[place], twin)
        for place, twin in second.items()
        if place[1].endswith("weight")
    )
    return {place: tensor for place, tensor in plain.items() if not (paired and place in second)}


def _with_twins(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each pair's keys and values a second time, as the published model of two images names them."""
    twins = {
        f"{match[1]}{int(match[2]) + 1}{match[3]}": tensor
        for name, tensor in tensors.items()
        if (match := _OUR_KEYS_VALUES.fullmatch(name)) is not None
    }
    return twins | dict(tensors)


def _renamed(name: str, prefixes: list[tuple[str, str]]) -> str | None:
    return next((new + name.removeprefix(old) for old, new in prefixes if name.startswith(old)), None)


def _num_layers(names: Iterable[str]) -> int:
    return max((int(found[1]) + 1 for name in names if (found := re.search(r"\.layers?\.(\d{1,4})\.", name))), default=0)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fits_queue(name: str, tensor: Tensor) -> bool:
    if name in ("image_queue", "text_queue"):
        return tensor.ndim == 2
    return name != "queue_ptr" or tensor.numel() == 1


def _queue_entry(name: str, tensor: Tensor) -> Tensor:
    if name in ("image_queue", "text_queue"):
        return tensor.T.contiguous()
    return tensor.flatten() if name == "idx_queue" else tensor.reshape(()) if name == "queue_ptr" else tensor


def _official_entry(name: str, tensor: Tensor) -> Tensor:
    if name in ("image_queue", "text_queue"):
        return tensor.T.contiguous()
    return tensor[None] if name in ("idx_queue", "queue_ptr") else tensor


def _with_repeated(named: dict[str, Tensor], form: OfficialForm) -> dict[str, Tensor]:
    if form != "pretrain":
        named = {name: tensor for name, tensor in named.items() if not name.startswith(_MLM)}
    result = dict(named)
    for name, twin in _REPEATED.items():
        if twin is not None and twin in named and (name.startswith("text_decoder.") or form == "pretrain"):
            result[name] = named[twin]
    for part in ("text_encoder", "text_decoder"):
        if (positions := named.get(f"{part}.embeddings.position_embeddings.weight")) is not None:
            result[f"{part}.embeddings.position_ids"] = torch.arange(len(positions), device=positions.device)[None]
    return result


def _in_form(result: dict[str, Tensor], form: OfficialForm) -> dict[str, Tensor]:
    """`idx_queue` only where the form has it."""
    without = {name: tensor for name, tensor in result.items() if name != "idx_queue"}
    if form != "retrieval":
        return without
    size, device = result["image_queue"].shape[1], result["image_queue"].device
    return without | {"idx_queue": result.get("idx_queue", torch.full((1, size), NO_IMAGE, device=device))}


def _check_repeated(name: str, tensor: Tensor, twin: Tensor | None, *, source: Path | str, key: str) -> None:
    same = twin is None or tensor.is_meta or (tensor.dtype == twin.dtype and torch.equal(tensor, twin))
    if not same:
        raise InputError(Problem(key, f"in {source}, {name} differs from the tensor that it should repeat; it is not tied"))


def _check_exportable(result: Mapping[str, Tensor], strange: list[str], form: OfficialForm) -> None:
    lacking = [
        Problem("", f"the official {form} checkpoint has {name}, which this model does not", f"it comes with {what}")
        for name, what in _EXPECTED[form].items()
        if name not in result
    ]
    foreign = [Problem("", f"the official {form} checkpoint has no place for {name}") for name in strange[:4]]
    if lacking or foreign:
        raise InputError(*lacking, *foreign)
