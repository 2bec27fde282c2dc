"""The text encoder and the MLM head against the transformers models they are taken from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, ElectraConfig, GPT2Config, PreTrainedModel, RobertaConfig

from tclx.errors import InputError
from tclx.model import text
from tclx.model.text import TextParts, build_text
from tclx.spec.model import FusionEncoderSpec, TextEncoderSpec

VOCAB_SIZE = 61
SIZES = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": VOCAB_SIZE}
CONFIGS = {
    "bert": BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=32),
    "roberta": RobertaConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=34, pad_token_id=1),
    "electra": ElectraConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=32, embedding_size=16),
}


def saved(folder: Path, family: str = "bert") -> PreTrainedModel:
    """A random model of a family, written to `folder`."""
    torch.manual_seed(1)
    model = transformers.AutoModelForMaskedLM.from_config(CONFIGS[family], attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def built(*, fusion: int = 2, vocab_size: int = VOCAB_SIZE, max_tokens: int = 9, **spec: Any) -> TextParts:
    return build_text(
        TextEncoderSpec(**spec),
        FusionEncoderSpec(num_layers=fusion) if fusion else None,
        vocab_size=vocab_size,
        pad_token_id=0,
        image_width=12,
        mlm=fusion > 0,
        max_tokens=max_tokens,
    )


def captions(pad: int = 0) -> tuple[Tensor, Tensor]:
    """Three captions of 9, 4 and 1 tokens."""
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    ids = torch.randint(5, VOCAB_SIZE, (3, 9), generator=torch.Generator().manual_seed(0))
    return ids.where(mask, pad), mask


@pytest.mark.parametrize("family", CONFIGS)
def test_all_layers_as_text_encoder_are_the_transformers_model(tmp_path: Path, family: str) -> None:
    theirs = saved(tmp_path, family)
    ours = built(name=str(tmp_path), num_layers=2, fusion=0, weights=str(tmp_path)).text_encoder.eval()
    ids, mask = captions(pad=theirs.config.pad_token_id)
    expected = theirs.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(ours(ids, mask)[mask], expected[mask])


@pytest.mark.parametrize("family", CONFIGS)
def test_the_mlm_head_is_the_transformers_models(tmp_path: Path, family: str) -> None:
    theirs = saved(tmp_path, family)
    ours = built(name=str(tmp_path), num_layers=1, fusion=1, weights="hub").mlm_head
    states = torch.randn(5, 24)
    captured: list[Tensor] = []
    theirs.base_model.register_forward_hook(lambda _module, _inputs, output: captured.append(output.last_hidden_state))
    ids, mask = captions(pad=theirs.config.pad_token_id)
    logits = theirs(input_ids=ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(ours(captured[0]), logits)
    assert ours(states).shape == (5, VOCAB_SIZE)


def test_fusion_layers_start_from_the_next_layers_of_the_model(tmp_path: Path) -> None:
    theirs = saved(tmp_path)
    fusion = built(name=str(tmp_path), num_layers=1, fusion=1, weights=str(tmp_path)).fusion_encoder.layers[0]
    for part in ("attention", "intermediate", "output"):
        expected = theirs.bert.encoder.layer[1].get_submodule(part).state_dict()
        torch.testing.assert_close(fusion.get_submodule(part).state_dict(), expected, rtol=0, atol=0)


def test_fusion_layers_that_the_model_lacks_start_random(tmp_path: Path) -> None:
    theirs = saved(tmp_path)
    parts = built(name=str(tmp_path), num_layers=2, fusion=2, weights=str(tmp_path))
    last = theirs.bert.encoder.layer[1].intermediate.dense.weight
    assert torch.equal(parts.text_encoder.layers[1].intermediate.dense.weight, last)
    for layer in parts.fusion_encoder.layers:
        assert layer.intermediate.dense.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert torch.equal(layer.intermediate.dense.bias, torch.zeros(40))


def test_loading_writes_nothing_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    capfd.readouterr()
    built(name=str(tmp_path), num_layers=2, fusion=2, weights=str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_cross_attention_starts_normal_with_deviation_one_fiftieth() -> None:
    sizes = {"width": 96, "num_heads": 3, "intermediate_size": 40}
    layer = built(sizes=sizes, num_layers=1, fusion=1).fusion_encoder.layers[0].cross_attention
    assert layer.key.in_features == 12
    for linear in (layer.query, layer.key, layer.value, layer.dense):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not linear.bias.any()


def test_dropout_is_the_specs_everywhere(tmp_path: Path) -> None:
    saved(tmp_path)
    parts = built(name=str(tmp_path), num_layers=1, fusion=1, weights=str(tmp_path), dropout=0.25)
    dropouts = [module.p for part in parts[:2] for module in part.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    assert set(dropouts) == {0.25}
    assert parts.fusion_encoder.layers[0].cross_attention.attention_dropout == 0.25


@pytest.mark.parametrize(("name", "width"), [("bert-base-uncased", 768), ("google-bert/bert-large-uncased", 1024)])
def test_known_architectures_need_no_hub(monkeypatch: pytest.MonkeyPatch, name: str, width: int) -> None:
    monkeypatch.setattr(text.AutoConfig, "from_pretrained", lambda *_: pytest.fail("asked the hub"))
    with torch.device("meta"):
        assert built(name=name, num_layers=1, fusion=1).text_encoder.width == width


def test_without_weights_the_vocabulary_is_the_tokenizers() -> None:
    with torch.device("meta"):
        parts = built(name="bert-base-uncased", num_layers=1, fusion=1, vocab_size=100)
    assert parts.text_encoder.word_embeddings.num_embeddings == 100
    assert parts.mlm_head.bias.shape == (100,)


def test_weights_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(InputError, match=r"data\.tokenizer: its vocabulary has 62 entries, the weights of .* have 61"):
        built(name=str(tmp_path), num_layers=1, weights=str(tmp_path), vocab_size=62)


def test_weights_with_fewer_layers_than_the_text_encoder_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(InputError, match=r"num_layers: 3, but .* has 2 layers"):
        built(name=str(tmp_path), num_layers=3, weights=str(tmp_path))


def test_weights_without_the_text_encoder_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    other = BertForMaskedLM(BertConfig(**SIZES, num_hidden_layers=1, max_position_embeddings=32))
    other.save_pretrained(tmp_path / "shorter")
    with pytest.raises(InputError, match=r"weights: 16 tensors of the text encoder are not among these weights"):
        built(name=str(tmp_path), num_layers=2, weights=str(tmp_path / "shorter"))


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    sizes = {**SIZES, "hidden_size": 36}
    BertForMaskedLM(BertConfig(**sizes, num_hidden_layers=2, max_position_embeddings=32)).save_pretrained(tmp_path / "wider")
    with pytest.raises(InputError, match=r"model\.text_encoder\.weights"):
        built(name=str(tmp_path), num_layers=1, weights=str(tmp_path / "wider"))


def test_a_model_that_reads_in_one_direction_is_refused(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    message = r"model\.text_encoder\.name: .* is a gpt2 model, which reads from left to right alone \(these work: bert"
    with pytest.raises(InputError, match=message):
        built(name=str(tmp_path), num_layers=1)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.text_encoder\.name: the folder .* could not be read"):
        built(name=str(tmp_path), num_layers=1)


@pytest.mark.parametrize(("family", "longest"), [("bert", 32), ("roberta", 32)])
def test_captions_longer_than_the_positions_are_refused(tmp_path: Path, family: str, longest: int) -> None:
    saved(tmp_path, family)
    built(name=str(tmp_path), num_layers=1, weights=str(tmp_path), max_tokens=longest)
    with pytest.raises(InputError, match=rf"data\.max_caption_tokens: 33, but the text model has positions for {longest}"):
        built(name=str(tmp_path), num_layers=1, weights=str(tmp_path), max_tokens=longest + 1)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("bert-base-uncased", (768, 12, 12, 3072)),
        ("bert-base-cased", (768, 12, 12, 3072)),
        ("bert-large-uncased", (1024, 24, 16, 4096)),
        ("bert-large-cased", (1024, 24, 16, 4096)),
        ("google/bert_uncased_L-2_H-128_A-2", (128, 2, 2, 512)),
        ("google/bert_uncased_L-4_H-512_A-8", (512, 4, 8, 2048)),
    ],
)
def test_known_sizes_are_those_of_the_papers(name: str, sizes: tuple[int, ...]) -> None:
    """BERT (Devlin et al., 2019) and its miniatures (Turc et al., 2019): layers, heads and width are in the latter's names."""
    layers = sizes[1]
    spec = TextEncoderSpec(name=name, num_layers=layers)
    config = text.text_config(spec, num_layers=layers, vocab_size=100, pad_token_id=0)
    found = (config.hidden_size, text.KNOWN_SIZES[name][1], config.num_attention_heads, config.intermediate_size)
    assert found == sizes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 0}, "hidden_size 0"),
        ({"num_attention_heads": 5}, "hidden_size 24, no multiple of num_attention_heads 5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ({"hidden_act": "gleu"}, "hidden_act 'gleu'"),
    ],
)
def test_sizes_in_a_models_own_file_that_make_no_model_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **sizes, **change}))
    with pytest.raises(InputError, match=rf"model\.text_encoder\.name: .*its config\.json has {words}"):
        built(name=str(tmp_path), num_layers=1)
