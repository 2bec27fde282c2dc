"""The image encoder: any timm model, as [CLS] and patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tclx.errors import InputError
from tclx.model.vision import ConvStem, ImageEncoder
from tclx.spec.model import ImageEncoderSpec

SMALL = {"width": 24, "depth": 1, "num_heads": 3}


def encoder(name: str = "vit_tiny_patch16_224", image_size: int = 64, **changes: Any) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(ImageEncoderSpec(name=name, image_size=image_size, **changes))


@pytest.mark.parametrize(
    ("name", "image_size", "grid"),
    [
        ("test_vit", 64, (4, 4)),
        ("test_vit2", 64, (4, 4)),  # average pooled, one register
        ("test_vit3", 64, (4, 4)),  # attention pooled
        ("test_vit_relpos", 64, (4, 4)),  # neither class token nor position embedding
        ("test_resnet", 64, (2, 2)),
        ("test_resnet", 72, (3, 3)),  # no multiple of its stride
        ("test_efficientnet", 96, (3, 3)),
        ("test_convnext", 64, (2, 2)),
        ("mobilenetv3_small_050", 64, (2, 2)),
    ],
)
def test_tokens_are_cls_and_one_a_patch_and_every_parameter_learns(name: str, image_size: int, grid: tuple[int, int]) -> None:
    model = encoder(name, image_size)
    tokens = model(torch.randn(2, 3, image_size, image_size))
    assert model.grid == grid
    assert tokens.shape == (2, 1 + grid[0] * grid[1], model.width)
    tokens.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("image_size", [64, 224, 384])
def test_any_size_that_the_patches_divide(image_size: int) -> None:
    model = encoder(image_size=image_size, **SMALL)
    assert model(torch.zeros(1, 3, image_size, image_size)).shape == (1, 1 + (image_size // 16) ** 2, 24)


def test_a_class_token_comes_first() -> None:
    model = encoder(**SMALL).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), model.body.forward_features(images))


def test_without_a_class_token_the_mean_of_the_patches_stands_for_the_image() -> None:
    tokens = encoder("test_resnet").eval()(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize("name", ["test_vit2", "beit_base_patch16_224"])
def test_a_norm_behind_the_pool_is_done_token_by_token(name: str) -> None:
    """Models that are pooled over their patches have no norm before the pool; without it features have no known size."""
    model = encoder(name, **({} if name == "test_vit2" else SMALL)).eval()
    images = torch.randn(2, 3, 64, 64)
    features = model.body.forward_features(images)[:, model.layout.num_prefix_tokens :]
    patches = model(images)[:, 1:]
    torch.testing.assert_close(
        patches, torch.nn.functional.layer_norm(features, features.shape[-1:], eps=model.body.fc_norm.eps)
    )
    assert "body.fc_norm.weight" in dict(model.named_parameters())


def test_registers_are_dropped() -> None:
    model = encoder("vit_small_patch14_reg4_dinov2", 28, **SMALL).eval()
    images = torch.randn(2, 3, 28, 28)
    features = model.body.forward_features(images)
    assert features.shape[1] == 1 + 4 + 4
    torch.testing.assert_close(model(images), torch.cat([features[:, :1], features[:, 5:]], dim=1))


def test_a_cnn_gives_its_cells_row_by_row() -> None:
    model = encoder("test_resnet").eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images)[0, 1 + 2 * 1 + 0], model.body.forward_features(images)[0, :, 1, 0])


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16])
def test_conv_stem_cuts_as_many_patches(patch_size: int) -> None:
    model = encoder(image_size=32, stem="conv", patch_size=patch_size, **SMALL)
    assert model.grid == (32 // patch_size, 32 // patch_size)
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == patch_size.bit_length()


def test_conv_stem_widens_as_it_halves() -> None:
    """As in "Early convolutions help transformers see better" (Xiao et al., 2021): 48, 96, 192, 384 before a ViT-B of 768."""
    stem = ConvStem(224, 16, embed_dim=768)
    assert [one.out_channels for one in stem.modules() if isinstance(one, torch.nn.Conv2d)] == [48, 96, 192, 384, 768]
    narrow = ConvStem(32, 16, embed_dim=24)
    assert [one.out_channels for one in narrow.modules() if isinstance(one, torch.nn.Conv2d)] == [8, 8, 8, 12, 24]


def test_conv_stem_does_not_depend_on_the_batch() -> None:
    stem = ConvStem(32, 8, embed_dim=24).train()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(stem(images)[1:2], stem(images[1:2]))


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(InputError, match=r"model\.image_encoder\.name.*vit_bose.*did you mean vit_base_patch16_224"):
        encoder("vit_bose_patch16_224")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"name": "test_resnet", "width": 24}, "width"),
        ({"name": "test_efficientnet", "depth": 2}, "depth"),
        ({"name": "test_convnext", "num_heads": 2}, "num_heads"),
        ({"name": "test_resnet", "patch_size": 8}, "patch_size"),
        ({"name": "test_resnet", "stem": "conv"}, "stem"),
        ({"name": "swin_tiny_patch4_window7_224", "image_size": 224, "stem": "conv"}, "stem"),
        ({"stem": "conv", "patch_size": 12, "image_size": 48}, "patch_size"),
        ({"image_size": 60}, "image_size"),
        ({"num_heads": 5}, "num_heads"),
        ({"name": "test_vit4", "weights": "hub"}, "weights"),
    ],
)
def test_what_a_model_does_not_take_is_refused_by_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        encoder(**changes)


def test_weights_from_a_file_are_the_models(tmp_path: Path) -> None:
    trained = encoder(**SMALL)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    save_file(trained.body.state_dict(), tmp_path / "vit.safetensors")
    torch.save(trained.body.state_dict(), tmp_path / "vit.pth")
    for file in ("vit.safetensors", "vit.pth"):
        loaded = encoder(weights=str(tmp_path / file), **SMALL)
        torch.testing.assert_close(loaded.state_dict(), trained.state_dict(), rtol=0, atol=0)


def test_position_embeddings_of_a_file_are_interpolated(tmp_path: Path) -> None:
    trained = encoder(image_size=64, **SMALL)
    with torch.no_grad():
        trained.body.pos_embed.fill_(0.5)
    save_file(trained.body.state_dict(), tmp_path / "vit.safetensors")
    loaded = encoder(image_size=96, weights=str(tmp_path / "vit.safetensors"), **SMALL)
    torch.testing.assert_close(loaded.body.pos_embed, torch.full((1, 37, 24), 0.5))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "resnet.safetensors"
    save_file(encoder("test_resnet").body.state_dict(), file)
    with pytest.raises(InputError, match=r"lacks \d+ of the model's \d+ tensors.*cls_token"):
        encoder(weights=str(file), **SMALL)


def test_one_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(encoder(patch_size=8, **SMALL).body.state_dict(), file)
    with pytest.raises(InputError, match=r"1 in another shape, for instance patch_embed\.proj\.weight"):
        encoder(weights=str(file), **SMALL)


def test_batch_counters_may_be_absent(tmp_path: Path) -> None:
    tensors = {name: value for name, value in encoder("test_resnet").body.state_dict().items() if value.ndim}
    save_file(tensors, tmp_path / "resnet.safetensors")
    encoder("test_resnet", weights=str(tmp_path / "resnet.safetensors"))


def test_a_frozen_encoder_learns_nothing_and_collects_no_statistics() -> None:
    model = encoder("test_efficientnet", 96, frozen=True).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = model(torch.randn(2, 3, 96, 96))
    assert not tokens.requires_grad
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    thawed = encoder("test_efficientnet", 96).train()
    thawed(torch.randn(2, 3, 96, 96))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in thawed.state_dict().items() if "running_mean" in name)
