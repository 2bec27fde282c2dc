"""Text encoders of other families than BERT's: what `ADAPTED` says of each is found again on a tiny random model.

A sample is tried here; every model type that transformers knows is tried by `just faults`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BartConfig,
    ConvBertConfig,
    GPT2Config,
    LongformerConfig,
    PretrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from tclx.errors import InputError
from tclx.model.adapted import ADAPTED, COUNTED_FROM_PADDING, PADDING_LEAKS
from tclx.model.text import BERT_LIKE, TextParts, build_text
from tclx.spec.model import FusionEncoderSpec, TextEncoderSpec

VOCAB_SIZE, LENGTH = 61, 9
TINY = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "embedding_size": 16,
    "vocab_size": VOCAB_SIZE, "max_position_embeddings": 40, "type_vocab_size": 2, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "num_key_value_heads": 3, "head_dim": 8,
    "input_embedding_size": 16, "intra_bottleneck_size": 24,
}  # fmt: skip
SAMPLE = ("modernbert", "deberta-v2", "mpnet", "distilbert", "albert", "nomic_bert", "eurobert", "roformer")


def tiny(family: str) -> PretrainedConfig:
    kind = CONFIG_MAPPING[family]
    defaults = kind()
    sizes = {name: value for name, value in TINY.items() if hasattr(defaults, name)}
    if family == "mpnet":  # whose own code takes no other
        sizes["pad_token_id"] = 1
    return kind(**sizes)


def parts(folder: Path, *, weights: bool = False, max_tokens: int = LENGTH, **options: Any) -> TextParts:
    spec = TextEncoderSpec(name=str(folder), num_layers=2, weights=str(folder) if weights else None, dropout=0.25)
    fusion = FusionEncoderSpec(num_layers=1)
    sizes = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "image_width": 12, "mlm": True, "max_tokens": max_tokens}
    torch.manual_seed(0)
    return build_text(spec, fusion, **sizes, **options)


def captions(pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two captions, of 9 and 5 tokens."""
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [5]])
    ids = torch.randint(5, VOCAB_SIZE, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    return ids.where(mask, pad), mask


@torch.no_grad()
def shaken(encoder: nn.Module) -> nn.Module:
    """Far from its start, where biases are 0 and everything is small."""
    for parameter in encoder.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


@torch.no_grad()
def reads_both_ways_and_no_padding(encoder: nn.Module, pad: int = 0) -> tuple[bool, bool]:
    """Whether [CLS] changes with the last token; whether a caption has the same features whatever stands in its padding."""
    ids, mask = captions(pad)
    states = encoder(ids, mask)
    other_end, other_padding = ids.clone(), ids.clone()
    other_end[0, -1] = (ids[0, -1] - 4) % 50 + 6
    other_padding[1, 6] = 33
    both_ways = (encoder(other_end, mask) - states)[0, 0].abs().max() > 1e-5
    alone = encoder(ids[1:, :5], mask[1:, :5])
    leaks = max((encoder(other_padding, mask) - states)[1, :5].abs().max(), (alone[0] - states[1, :5]).abs().max())
    return bool(both_ways), bool(leaks < 1e-5)


@pytest.mark.parametrize("family", SAMPLE)
def test_a_family_is_the_transformers_model_and_learns_with_fusion_and_mlm(tmp_path: Path, family: str) -> None:
    theirs = shaken(AutoModelForMaskedLM.from_config(tiny(family)))
    theirs.save_pretrained(tmp_path)
    ours = parts(tmp_path, weights=True)
    ids, mask = captions(theirs.config.pad_token_id)
    with torch.no_grad():
        expected = theirs.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(ours.text_encoder.eval()(ids, mask)[mask], expected[mask])
    assert reads_both_ways_and_no_padding(ours.text_encoder, theirs.config.pad_token_id) == (True, True)
    together = nn.ModuleList(part for part in ours if part is not None).train()
    assert ours.fusion_encoder is not None
    assert ours.mlm_head is not None
    states = ours.text_encoder(ids, mask)
    fused = ours.fusion_encoder(states, mask, ours.fusion_encoder.keys_values(torch.randn(2, 5, 12)))
    logits = ours.mlm_head(fused[mask])
    assert logits.shape == (int(mask.sum()), VOCAB_SIZE)
    logits.logsumexp(1).sum().backward()
    silent = [name for name, one in together.named_parameters() if one.requires_grad and one.grad is None]
    assert silent == []


@pytest.mark.parametrize("family", SAMPLE)
def test_dropout_is_the_specs_in_every_family(tmp_path: Path, family: str) -> None:
    tiny(family).save_pretrained(tmp_path)
    encoder = parts(tmp_path).text_encoder
    found = {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)}
    assert found <= {0.25}
    ids, mask = captions()
    assert not torch.equal(encoder.train()(ids, mask), encoder(ids, mask))


@pytest.mark.parametrize("family", SAMPLE)
def test_a_plan_can_count_every_family_without_memory(tmp_path: Path, family: str) -> None:
    tiny(family).save_pretrained(tmp_path)
    with torch.device("meta"):
        ids = torch.zeros(2, LENGTH, dtype=torch.int64)
        assert parts(tmp_path).text_encoder(ids, ids.bool()).shape == (2, LENGTH, 24)


@pytest.mark.parametrize("family", ["mpnet", "data2vec-text", "distilbert", "albert"])
def test_the_longest_caption_is_the_tables_last_position(tmp_path: Path, family: str) -> None:
    tiny(family).save_pretrained(tmp_path)
    longest = 40 - (1 if family in COUNTED_FROM_PADDING else 0)
    encoder = parts(tmp_path, max_tokens=longest).text_encoder
    ids = torch.full((1, longest), 7)
    assert encoder(ids, ids.bool()).shape == (1, longest, 24)
    with pytest.raises(InputError, match=rf"{longest + 1}, but the text model has positions for {longest} tokens"):
        parts(tmp_path, max_tokens=longest + 1)


def test_mpnet_counts_positions_from_the_tokenizers_padding(tmp_path: Path) -> None:
    """Its own code takes 1 for padding, which in a tokenizer trained here is [UNK]."""
    tiny("mpnet").save_pretrained(tmp_path)
    encoder = parts(tmp_path).text_encoder.eval()
    ids = torch.tensor([[2, 1, 7, 8]])
    seen: list[torch.Tensor] = []
    encoder.body.embeddings.position_embeddings.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    encoder(ids, ids.bool())
    assert seen[0].tolist() == [[1, 2, 3, 4]]


def test_activation_checkpointing_computes_the_same_or_is_refused(tmp_path: Path) -> None:
    tiny("modernbert").save_pretrained(tmp_path / "modernbert")
    tiny("mpnet").save_pretrained(tmp_path / "mpnet")
    ids, mask = captions()
    gradients = []
    for recompute in (False, True):
        encoder = parts(tmp_path / "modernbert", activation_checkpointing=recompute).text_encoder.train()
        torch.manual_seed(1)
        encoder(ids, mask).square().sum().backward()
        gradients.append(encoder.word_embeddings.weight.grad)
    torch.testing.assert_close(*gradients)
    with pytest.raises(InputError, match=r"training\.activation_checkpointing: transformers' mpnet cannot"):
        parts(tmp_path / "mpnet", activation_checkpointing=True)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BartConfig(), "an encoder with a decoder"),
        (ConvBertConfig(), "depend on the padding beside it"),
        (GPT2Config(), "which reads from left to right alone"),
        (LongformerConfig(), "which is not among those found to read captions in both directions"),
    ],
)
def test_what_cannot_read_captions_is_refused_with_the_reason(tmp_path: Path, config: PretrainedConfig, reason: str) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"model\.text_encoder\.name: .*{reason} \(these work: bert"):
        parts(tmp_path)


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [family for family in CONFIG_MAPPING_NAMES if family in MODEL_MAPPING_NAMES])
def test_every_model_type_is_what_the_tables_say_or_refused_in_a_line(tmp_path: Path, family: str) -> None:
    try:
        config = tiny(family)
        config.save_pretrained(tmp_path)
    except Exception as error:  # not one that tiny sizes can be given to
        pytest.skip(f"no tiny configuration: {type(error).__name__}")
    if family in (*BERT_LIKE, *ADAPTED):
        encoder = shaken(parts(tmp_path).text_encoder)
        assert reads_both_ways_and_no_padding(encoder) == (True, True)
        encoder(*captions()).square().sum().backward()
        assert [name for name, one in encoder.named_parameters() if one.requires_grad and one.grad is None] == []
        return
    with pytest.raises(InputError) as refused:
        parts(tmp_path)
    assert "\n" not in str(refused.value)
    if family in PADDING_LEAKS:
        body = AutoModel.from_config(config)

        def read(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = body(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            return states

        wrapped = nn.Module()
        wrapped.body, wrapped.forward = body, read
        assert reads_both_ways_and_no_padding(shaken(wrapped)) != (True, True)
