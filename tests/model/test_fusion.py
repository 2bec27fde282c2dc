"""The fusion encoder: one pass for many pairs, the same as a pass for each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig

from tclx.model.fusion import Blocks, CrossAttention, Groups, KeysValues, MaskedLanguageModelHead, grouped
from tclx.model.tcl import TCL
from tests.model.tiny import VOCAB_SIZE, tiny_spec


def model(*, training: dict[str, bool] | None = None) -> TCL:
    return TCL(tiny_spec(training=training), vocab_size=VOCAB_SIZE, pad_token_id=0)


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Text states of 4 captions, the shortest of one token; their mask; tokens of 4 images."""
    torch.manual_seed(0)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
    return torch.randn(4, 6, 24), mask, torch.randn(4, 17, 24)


def test_one_pass_equals_separate_passes(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    states, mask, images = pairs
    fusion = model().online.fusion_encoder.eval()
    texts, rows = torch.tensor([0, 1, 2, 3, 2, 0]), torch.tensor([0, 1, 2, 3, 0, 3])
    together = fusion(states[texts], mask[texts], fusion.keys_values(images), rows)
    for number, (text, row) in enumerate(zip(texts.tolist(), rows.tolist(), strict=True)):
        alone = fusion(states[text : text + 1], mask[text : text + 1], fusion.keys_values(images[row : row + 1]))
        torch.testing.assert_close(together[number], alone[0])


def test_without_rows_texts_and_images_pair_up_in_order(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    states, mask, images = pairs
    fusion = model().online.fusion_encoder.eval()
    keys_values = fusion.keys_values(images)
    torch.testing.assert_close(fusion(states, mask, keys_values), fusion(states, mask, keys_values, torch.arange(4)))


@pytest.mark.parametrize("rows", [[0, 0, 0, 1, 1, 3], [3, 0, 1, 0, 3, 0], [2, 2, 2, 2, 2, 2], [0, 1, 2, 3, 1, 1], [3]], ids=str)
def test_texts_grouped_by_image_are_fused_as_texts_with_copies_of_it(
    rows: list[int], pairs: tuple[Tensor, Tensor, Tensor]
) -> None:
    states, mask, images = pairs
    fusion = model().online.fusion_encoder.eval()
    keys_values, numbers = fusion.keys_values(images), torch.tensor(rows)
    texts = torch.tensor([0, 1, 2, 3, 2, 0])[: len(rows)]
    copied = fusion(states[texts], mask[texts], keys_values, numbers)
    together = fusion(states[texts], mask[texts], keys_values, Groups.of(numbers))
    torch.testing.assert_close(together, copied, atol=1e-6, rtol=1e-6)


BLOCKS = [(None,), (None, [3, 0, 1, 2], None, None), ([2, 2, 2, 2], None), ([1, 0, 3, 2], [0, 0, 1, 1])]


def in_blocks(rows: tuple[list[int] | None, ...]) -> tuple[Blocks, Tensor]:
    """And the same text by text, of four images."""
    flat = [row for each in rows for row in (each if each is not None else range(4))]
    return Blocks(tuple(None if each is None else torch.tensor(each) for each in rows)), torch.tensor(flat)


@pytest.mark.parametrize("rows", BLOCKS, ids=str)
@pytest.mark.parametrize("others", [0, 3])
def test_texts_in_blocks_are_fused_as_texts_with_copies_of_their_image_gradients_included(
    rows: tuple[list[int] | None, ...], others: int, pairs: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Also where there are further images behind those of the batch."""
    blocks, flat = in_blocks(rows)
    states, mask, images = pairs[0].repeat(len(rows), 1, 1), pairs[1].repeat(len(rows), 1), torch.randn(4 + others, 17, 24)
    if others and rows[0] is not None:
        flat, blocks = flat.clone(), Blocks((blocks.rows[0] + others, *blocks.rows[1:]))  # type: ignore[operator]
        flat[:4] += others
    fusion = model().online.fusion_encoder.eval()
    found = []
    for image_rows in (blocks, flat):
        leaf = images.clone().requires_grad_()
        fused = fusion(states, mask, fusion.keys_values(leaf), image_rows)
        (fused * torch.linspace(-1, 1, fused.numel()).view_as(fused)).sum().backward()
        found.append((fused, leaf.grad))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_a_cpu_that_drops_weights_draws_as_for_texts_one_by_one(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    """A run that goes on has the same bits as before."""
    blocks, flat = in_blocks((None, [3, 0, 1, 2], None))
    states, mask, images = pairs[0].repeat(3, 1, 1), pairs[1].repeat(3, 1), pairs[2]
    fusion = model().online.fusion_encoder.train()
    found = []
    for image_rows in (blocks, flat):
        torch.manual_seed(1)
        found.append(fusion(states, mask, fusion.keys_values(images), image_rows))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], fusion.eval()(states, mask, fusion.keys_values(images), flat))


def test_blocks_copy_the_keys_of_no_image_that_stands_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU computes it, where dropout is on."""
    asked = []
    monkeypatch.setattr(KeysValues, "of_rows", lambda self, rows: asked.append(len(rows)) or self)
    attention = CrossAttention(BertConfig(hidden_size=24, num_attention_heads=2), image_width=24).train()
    with torch.device("meta"):
        attention = attention.to("meta")
        states, images = torch.empty(16, 6, 24), KeysValues(torch.empty(4, 2, 17, 12), torch.empty(4, 2, 17, 12))
        attention.of_blocks(states, images, Blocks((None, torch.empty(4, dtype=torch.int64), None, None)))
    assert asked == [4]


def test_groups_are_a_grid_of_images_by_texts() -> None:
    images, places, num_columns = Groups.of(torch.tensor([7, 2, 7, 7, 4]))
    assert images.tolist() == [2, 4, 7]
    assert (places.tolist(), num_columns) == ([6, 0, 7, 8, 3], 3)


@pytest.mark.parametrize(("rows", "is_grid"), [([0, 0, 1, 1], True), ([0, 0, 0, 1], True), ([0, 0, 0, 0, 0, 1, 2, 3], False)])
def test_a_grid_that_is_mostly_empty_is_not_used(rows: list[int], is_grid: bool) -> None:
    assert isinstance(grouped(torch.tensor(rows)), Groups) == is_grid


def test_grouped_texts_copy_no_keys_and_values(pairs: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    states, mask, images = pairs
    fusion = model().online.fusion_encoder.eval()
    given, real = [], functional.scaled_dot_product_attention

    def attention(queries: Tensor, keys: Tensor, values: Tensor, **options: object) -> Tensor:
        given.append((queries.shape, keys.shape))
        return real(queries, keys, values, **options)

    monkeypatch.setattr("tclx.model.fusion.functional.scaled_dot_product_attention", attention)
    texts = torch.arange(12) % 4
    fusion(states[texts], mask[texts], fusion.keys_values(images), Groups.of(torch.arange(12) % 2))
    of_images = [(queries, keys) for queries, keys in given if keys[2] == images.shape[1]]
    assert of_images
    assert all(queries[0] == keys[0] == 2 and queries[2] == 6 * states.shape[1] for queries, keys in of_images)


def test_padding_is_never_read(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    states, mask, images = pairs
    fusion = model().online.fusion_encoder.eval()
    noisy = torch.where(mask[:, :, None], states, 100 * torch.randn_like(states))
    clean, other = (fusion(each, mask, fusion.keys_values(images)) for each in (states, noisy))
    torch.testing.assert_close(clean[mask], other[mask])


def test_every_image_token_is_read(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    states, mask, images = pairs
    images.requires_grad_()
    fusion = model().online.fusion_encoder.eval()
    fusion(states, mask, fusion.keys_values(images))[:, 0].square().sum().backward()
    assert images.grad.abs().sum(dim=2).gt(0).all()


def some_loss(tcl: TCL) -> Tensor:
    """Of all encoders, with the same dropout at every call."""
    torch.manual_seed(3)
    online, mask = tcl.online, torch.ones(4, 5, dtype=torch.bool)
    image = online.encode_image(torch.linspace(-1, 1, 4 * 3 * 64 * 64).reshape(4, 3, 64, 64))
    text = online.encode_text(torch.arange(20).reshape(4, 5) + 5, mask)
    fused = online.fusion_encoder(text.tokens, mask, online.fusion_encoder.keys_values(image.tokens), torch.arange(4))
    return image.embedding.sum() + text.embedding.sum() + online.mlm_head(fused[:, 1]).square().mean()


def test_every_layer_of_the_cross_attention_starts_as_berts() -> None:
    """Its output layer, too: torch's own start would be three times as wide here, and drown the text it is added to."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=96, num_attention_heads=3, initializer_range=0.02)
    attention = CrossAttention(config, image_width=48)
    for name, linear in attention.named_children():
        if isinstance(linear, torch.nn.Linear):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert not linear.bias.any(), name


def test_the_mlm_head_starts_as_berts() -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=96, num_attention_heads=3, initializer_range=0.02)
    head = MaskedLanguageModelHead(torch.nn.Embedding(7, 96), config)
    assert head.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not head.dense.bias.any()
    assert not head.bias.any()


def test_recomputed_activations_give_the_same_gradients() -> None:
    plain, recomputed = model(), model(training={"activation_checkpointing": True})
    for each in (plain, recomputed):
        some_loss(each.train()).backward()
    for (name, ours), theirs in zip(plain.online.named_parameters(), recomputed.online.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=0, atol=0, msg=name)


def test_the_mlm_decoder_is_the_word_embeddings() -> None:
    online = model().online
    table = online.text_encoder.word_embeddings.weight
    states = torch.randn(3, 24)
    before = online.mlm_head(states)
    with torch.no_grad():
        table[7] = 0
    after = online.mlm_head(states)
    assert not torch.equal(before[:, 7], after[:, 7])
    torch.testing.assert_close(after[:, 7], torch.zeros(3))
    after.sum().backward()
    assert table.grad.abs().sum(dim=1).gt(0).all()
    assert [name for name in online.state_dict() if "word_embeddings" in name or "decoder" in name] == [
        "text_encoder.embeddings.word_embeddings.weight"
    ]


def test_explained_is_the_same_pass_with_weights_that_sum_to_one(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    states, mask, images = pairs
    fusion = model().online.fusion_encoder.eval()
    keys_values = fusion.keys_values(images)
    for layer in range(2):
        fused, weights = fusion.explained(states, mask, keys_values, layer=layer)
        torch.testing.assert_close(fused, fusion(states, mask, keys_values))
        torch.testing.assert_close(weights.sum(dim=3), torch.ones(4, 3, 6))
        (influence,) = torch.autograd.grad(fused[:, 0].square().sum(), weights)
        assert influence.shape == (4, 3, 6, 17)
        assert influence.abs().sum() > 0
    with pytest.raises(ValueError, match="has 2 layers, none of them number 2"):
        fusion.explained(states, mask, keys_values, layer=2)
