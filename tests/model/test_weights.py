"""Weights from files: safely read, completely reported, refused when they do not fit."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tclx.errors import InputError, MachineError
from tclx.model.queue import NO_IMAGE
from tclx.model.tcl import TCL
from tclx.model.weights import (
    export_official,
    from_official,
    import_official,
    load_initial_weights,
    load_official,
    official_state_dict,
    read_tensors,
    read_weights,
    resize_position_embedding,
    write_tensors,
)
from tests.model.tiny import ALL_TERMS, TEXT, VIT, VOCAB_SIZE, tiny_spec


def model(objectives: dict[str, Any] = ALL_TERMS, *, seed: int = 0, **changes: Any) -> TCL:
    return TCL(tiny_spec(objectives, seed=seed, **changes), vocab_size=VOCAB_SIZE, pad_token_id=0)


@pytest.fixture
def trained() -> TCL:
    """A model whose momentum encoders and queue are no longer as they started."""
    tcl = model(seed=5)
    with torch.no_grad():
        for parameter in tcl.momentum.parameters():
            parameter.add_(0.5)
    tcl.queue.enqueue(torch.randn(5, 16), torch.randn(5, 16), torch.arange(5))
    return tcl


@pytest.fixture
def file(trained: TCL, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_tensors(path, trained.state_dict())
    return path


def same(ours: TCL, theirs: TCL, *, but: str = "queue.image_index") -> None:
    expected = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]) or name == but, name


# ---------------------------------------------------------------------------------------------------------------- safe reading


class Malice:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "TCL.pth"
    torch.save({"model": {"temp": torch.ones(())}, "config": Malice(f"touch {marker}")}, path)
    with pytest.raises(InputError, match=r"init\.checkpoint: .* holds Python objects beside its tensors"):
        read_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"not a checkpoint", "could not be read|holds Python objects"),
        ("a.pth", b"", "could not be read"),
        ("a.safetensors", b"not a checkpoint", "could not be read as safetensors"),
        ("a.safetensors", b"", "could not be read as safetensors"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_tensors(tmp_path / name)


def test_a_truncated_file_is_refused(file: Path, trained: TCL, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "whole.pth")
    for whole in (file, tmp_path / "whole.pth"):
        half = tmp_path / f"half{whole.suffix}"
        half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(InputError, match="could not be read"):
            read_tensors(half)


def zipped(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", content)


STRANGE: dict[str, Callable[[Path], None]] = {
    "integer keys": lambda path: torch.save({0: torch.ones(2)}, path),
    "integer keys under model": lambda path: torch.save({"model": {0: torch.ones(2)}}, path),
    "one value without end": lambda path: torch.save({"temp": torch.zeros(1).expand(10**12)}, path),
    "sparse": lambda path: torch.save({"temp": torch.eye(3).to_sparse()}, path),
    "complex": lambda path: torch.save({"temp": torch.ones(2, dtype=torch.complex64)}, path),
    "a pickle that breaks off": lambda path: path.write_bytes(pickle.dumps({"a": list(range(100))})[:-20]) and None,
    "a pickle of nothing": lambda path: path.write_bytes(b"\x80\x02R.") and None,
    "a memo that is not there": lambda path: path.write_bytes(b"\x80\x02h\x05.") and None,
    "a text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n") and None,
    "an archive of something else": lambda path: zipped(path, b"x"),
    "a bomb": lambda path: zipped(path, bytes(10**8)),
}


@pytest.mark.parametrize("name", STRANGE)
def test_whatever_is_wrong_with_a_torch_file_is_one_line_with_its_path(tmp_path: Path, name: str) -> None:
    STRANGE[name](tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth") as caught:
        read_weights(tmp_path / "a.pth")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"image_queue": torch.zeros(3)},
        {"queue_ptr": torch.zeros(2)},
        {"text_encoder.bert.encoder.layer.99999999999.output.dense.weight": torch.zeros(1)},
        {"text_encoder.cls.predictions.decoder.weight": torch.zeros(1, dtype=torch.int8)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_official_file_with_one_impossible_tensor_is_refused_by_name(trained: TCL, changes: dict[str, Tensor]) -> None:
    official = official_state_dict(trained, form="pretrain") | changes
    with pytest.raises(InputError):
        from_official(official, source="official.pth")


@pytest.mark.parametrize("content", [{"model": {}}, {"epoch": 3}, [1, 2]])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds"):
        read_tensors(tmp_path / "a.pth")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_weights(tmp_path / "none.pth")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_what_is_written_is_read(trained: TCL, tmp_path: Path, name: str) -> None:
    write_tensors(tmp_path / name, trained.state_dict())
    torch.testing.assert_close(read_tensors(tmp_path / name), dict(trained.state_dict()), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_place_that_cannot_be_written_is_the_machines_fault(trained: TCL, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="could not write"):
        write_tensors(tmp_path / "none" / "a.pth", trained.state_dict())


# -- starting from weights


def test_a_file_of_ours_gives_everything_but_the_image_indices(file: Path, trained: TCL) -> None:
    tcl = model()
    report = load_initial_weights(tcl, read_weights(file), source=file)
    same(tcl, trained)
    assert report.missing == ("queue.image_index",)
    assert tcl.queue.image_index.unique().tolist() == [NO_IMAGE]


def test_a_state_dict_with_the_image_indices_goes_on_with_them(trained: TCL) -> None:
    tcl = model()
    load_official(tcl, official_state_dict(trained, form="retrieval") | official_state_dict(trained, form="pretrain"))
    assert torch.equal(tcl.queue.image_index, trained.queue.image_index)


def test_momentum_encoders_that_the_file_lacks_are_the_online_ones(trained: TCL, tmp_path: Path) -> None:
    flat = {name: tensor for name, tensor in official_state_dict(trained, form="pretrain").items() if "_m." not in name}
    torch.save(flat, tmp_path / "albef.pth")  # as ALBEF's released files: flat, without `model`
    tcl = model()
    load_initial_weights(tcl, read_weights(tmp_path / "albef.pth"), source=tmp_path / "albef.pth")
    online = tcl.online.state_dict()
    assert torch.equal(online["image_projection.weight"], trained.online.image_projection.weight)
    torch.testing.assert_close(dict(tcl.momentum.state_dict()), dict(online), rtol=0, atol=0)


def test_a_dual_encoder_starts_from_a_whole_model_and_the_other_way_round(file: Path, trained: TCL, tmp_path: Path) -> None:
    dual = model({"cma": {}})
    report = load_initial_weights(dual, read_weights(file), source=file)
    same(dual, trained)
    assert "online.mlm_head.bias" in report.unused
    write_tensors(tmp_path / "dual.safetensors", dual.state_dict())
    report = load_initial_weights(model(), read_weights(tmp_path / "dual.safetensors"), source=tmp_path / "dual.safetensors")
    assert {name.split(".")[1] for name in report.missing if name.startswith("online.")} == {"fusion_encoder", "mlm_head"}


def test_position_embeddings_are_interpolated_for_both_copies(file: Path) -> None:
    tcl = model(image_encoder={**VIT, "image_size": 96})
    report = load_initial_weights(tcl, read_weights(file), source=file)
    assert report.resized == tuple(f"{copy}.image_encoder.body.pos_embed" for copy in ("online", "momentum"))


def test_another_queue_size_starts_an_empty_queue(file: Path) -> None:
    tcl = model(queue_size=20)
    report = load_initial_weights(tcl, read_weights(file), source=file)
    assert not tcl.queue.valid.any()
    assert tcl.queue.pointer.item() == 0
    assert {name for name in report.missing if "queue" in name} == {name for name in tcl.state_dict() if "queue" in name}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_encoder": {**VIT, "width": 48}}, r"cls_token is \[1, 1, 24\] in .*, \[1, 1, 48\] in this model"),
        ({"text_encoder": {**TEXT, "num_layers": 4}}, r"lacks 32 of the 69 tensors of model\.text_encoder"),
        ({"image_encoder": {"name": "test_resnet", "image_size": 64}}, r"lacks \d+ of the \d+ tensors of model\.image_encoder"),
        ({"embed_dim": 8}, r"online\.image_projection\.weight is \[16, 24\]"),
    ],
)
def test_a_model_of_other_sizes_is_refused(file: Path, changes: dict[str, Any], message: str) -> None:
    tcl = model(**changes)
    before = {name: tensor.clone() for name, tensor in tcl.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_initial_weights(tcl, read_weights(file), source=file)
    torch.testing.assert_close(dict(tcl.state_dict()), before, rtol=0, atol=0)


# -------------------------------------------------------------------------------------------------------------- official files


def test_the_official_form_and_back_is_the_same_model(trained: TCL, tmp_path: Path) -> None:
    for name in ("tcl.pth", "tcl.safetensors"):
        export_official(trained, tmp_path / name, form="pretrain")
        imported = import_official(tmp_path / name)
        for key, tensor in trained.state_dict().items():
            if key not in ("queue.filled", "queue.image_index"):  # the official form has no place for them
                assert torch.equal(imported[key], tensor), key
        assert imported["queue.filled"].item() == 12


def test_a_wrapped_or_unwrapped_bert_is_the_same(trained: TCL) -> None:
    official = official_state_dict(trained, form="pretrain")
    bare = {name.replace(".bert.", "."): tensor for name, tensor in official.items()}
    torch.testing.assert_close(from_official(bare, source="bare"), from_official(official, source="wrapped"), rtol=0, atol=0)


def test_another_tasks_checkpoint_is_refused(trained: TCL) -> None:
    tensors: dict[str, Tensor] = {**official_state_dict(trained, form="retrieval"), "text_decoder.cls.bias": torch.zeros(2)}
    with pytest.raises(InputError, match=r"neither a checkpoint of tclx nor an official one .*text_decoder\.cls\.bias"):
        from_official(tensors, source="vqa.pth")


def test_a_decoder_that_is_not_tied_is_refused(trained: TCL) -> None:
    tensors = official_state_dict(trained, form="pretrain")
    tensors["text_encoder.cls.predictions.decoder.weight"] = tensors["text_encoder.cls.predictions.decoder.weight"] + 1
    with pytest.raises(InputError, match="is not tied"):
        from_official(tensors, source="untied.pth")


@pytest.mark.parametrize(
    ("objectives", "changes", "needs"),
    [
        ({"cma": {}}, {}, r"itm_head.*objectives\.itm"),
        ({"itm": {}, "mlm": {}}, {}, r"vision_proj\.weight.*objectives\.cma"),
        (ALL_TERMS, {"queue_size": 0}, "image_queue"),
        (ALL_TERMS, {"image_encoder": {"name": "test_resnet", "image_size": 64}}, "a ViT with a class token"),
        ({**ALL_TERMS, "imc": {"temperature": {}}}, {}, r"no place for temperatures\.imc"),
    ],
)
def test_a_model_without_an_official_counterpart_is_refused(
    objectives: dict[str, Any], changes: dict[str, Any], needs: str
) -> None:
    with pytest.raises(InputError, match=needs):
        official_state_dict(model(objectives, **changes), form="pretrain")


def test_what_an_official_checkpoint_has_and_a_model_lacks_is_named_with_where_it_comes_from() -> None:
    with pytest.raises(InputError) as refused:
        official_state_dict(model({**ALL_TERMS, "itm": None}), form="pretrain")
    messages = [str(problem) for problem in refused.value.problems]
    assert any(
        one.startswith("the official pretrain checkpoint has itm_head.") and "which this model does not (it comes with " in one
        for one in messages
    ), messages


def test_interpolating_a_position_embedding_keeps_prefix_tokens_and_constants() -> None:
    embedding = torch.cat([torch.arange(5.0)[None, :, None].expand(1, 5, 3), torch.full((1, 16, 3), 7.0)], dim=1)
    resized = resize_position_embedding(embedding, num_tokens=5 + 81)
    torch.testing.assert_close(resized[:, :5], embedding[:, :5])
    torch.testing.assert_close(resized[:, 5:], torch.full((1, 81, 3), 7.0))
