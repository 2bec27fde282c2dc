"""Model folders of other people: whatever is in them ends in one line that names the folder, and none of it is run."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

from tclx.data.tokenizer import CaptionTokenizer
from tclx.errors import InputError, TclxError
from tclx.model.text import build_text
from tclx.model.vision import ImageEncoder
from tclx.spec.model import FusionEncoderSpec, ImageEncoderSpec, TextEncoderSpec

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]
SIZES: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": len(WORDS)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BERT with its tokenizer, as transformers writes them."""
    made = tmp_path / "model"
    config = BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=32)
    BertForMaskedLM(config).save_pretrained(made)
    (made / "vocab.txt").write_text("\n".join(WORDS))
    (made / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return made


def build(folder: Path) -> None:
    """What a run does with such a folder: the tokenizer, then the text model with its weights."""
    tokenizer = CaptionTokenizer.load(folder)
    build_text(
        TextEncoderSpec(name=str(folder), num_layers=2, weights=str(folder)),
        FusionEncoderSpec(num_layers=1),
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_id,
        image_width=12,
        mlm=True,
    )


def changed(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", r"holds \[1\], where settings by name are expected"),
        (b"null", "holds None, where settings by name"),
        (b'{"a": "\xff"}', "is not UTF-8 text: invalid start byte at byte 7"),
        (b'{"pad_token": ["x"]}', r"pad_token is \['x'\], where the token's text is expected"),
        (b'{"pad_token": {"content": 3}}', "pad_token is 3, where"),
        (b'{"pad_token": 7}', "pad_token is 7, where"),
    ],
)
def test_damaged_settings_of_a_tokenizer_are_refused_by_name(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"data\.tokenizer\.name: .*{message}") as refused:
        CaptionTokenizer.load(folder)
    assert str(folder) in str(refused.value)


def test_a_vocabulary_that_is_not_utf8_is_refused_by_name(folder: Path) -> None:
    (folder / "vocab.txt").write_bytes("\n".join([*WORDS, "Hündin"]).encode("latin-1"))
    with pytest.raises(InputError, match=r"vocab\.txt is not UTF-8 text"):
        CaptionTokenizer.load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": "x"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": -24}, "hidden_size -24"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"num_attention_heads": 5}, "hidden_size 24, no multiple of num_attention_heads 5"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"hidden_act": "no_such_function"}, "hidden_act 'no_such_function'"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"model_type": "no-such-model"}, "no-such-model"),
        ({"model_type": None}, ""),
        ({"model_type": ["bert"]}, ""),
        ({"layer_norm_eps": "tiny"}, ""),
        ({"max_position_embeddings": "far"}, ""),
        ({"intermediate_size": 0.5}, ""),
    ],
)
def test_an_impossible_configuration_is_refused_in_a_line(folder: Path, values: dict[str, Any], message: str) -> None:
    changed(folder, **values)
    with pytest.raises(InputError, match=rf"model\.text_encoder\.\w+: .*{message}") as refused:
        build(folder)
    assert str(folder) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"3"])
def test_a_configuration_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.text_encoder\.name: ") as refused:
        build(folder)
    assert str(folder) in str(refused.value)


def test_weights_that_want_to_run_code_are_not_opened_and_nobody_is_told_to_let_them(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"weights: the folder .* holds Python objects beside its tensors.*safetensors"
    ) as refused:
        build(folder)
    assert "weights_only" not in str(refused.value)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"model\.text_encoder\.weights: "):
        build(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["header", "truncated", "empty", "a folder"])
def test_damaged_weights_are_refused_by_name(folder: Path, damage: str) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    else:
        file.write_bytes({"header": b"\xff" * 8 + content[8:], "truncated": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.raises(InputError, match=r"model\.text_encoder\.weights: ") as refused:
        build(folder)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_weights_that_lack_half_of_the_text_encoder_are_refused(tmp_path: Path, family: str) -> None:
    config: Any = BertConfig(**SIZES, num_hidden_layers=1)
    model: Any = BertForMaskedLM(config)
    if family == "distilbert":
        config = DistilBertConfig(dim=24, n_heads=3, n_layers=1, hidden_dim=40, vocab_size=len(WORDS))
        model = DistilBertForMaskedLM(config)
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    changed(tmp_path, **{"num_hidden_layers" if family == "bert" else "n_layers": 2})
    with pytest.raises(InputError, match=r"weights: \d+ tensors of the text encoder are not among these weights"):
        build(tmp_path)


@pytest.mark.parametrize("weights", [False, True])
def test_a_folder_that_brings_code_is_refused_and_its_code_never_runs(folder: Path, tmp_path: Path, weights: bool) -> None:
    """Through the command, with somebody who answers yes to every question."""
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import BertConfig as C\n")
    changed(folder, model_type="evilbert", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.C"})
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.C", "evil.C"]}}')
    spec = {
        "name": "evil",
        "model": {
            "image_encoder": {"name": "test_vit", "image_size": 64},
            "text_encoder": {"name": str(folder), "num_layers": 1, **({"weights": str(folder)} if weights else {})},
            "queue_size": 0,
        },
        "objectives": {"cma": {}, "imc": None, "lmi": None, "itm": None, "mlm": None, "soft_labels": None},
        "data": {
            "train": {"source": "scenes", "num_images": 32, "split": "train"},
            "tokenizer": {"source": "pretrained", "name": str(folder)},
        },
        "optim": {"learning_rate": 1e-3},
        "training": {"steps": 1, "batch_size_per_gpu": 4},
        "evaluation": {"retrieval": None, "during_training": None, "at_end": None},
    }
    (tmp_path / "evil.yaml").write_text(json.dumps(spec))
    ended = subprocess.run(
        [sys.executable, "-m", "tclx.cli", "plan", str(tmp_path / "evil.yaml")],
        input="y\n" * 9, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "brings code of its own, which tclx never runs" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len([line for line in ended.stderr.splitlines() if line.startswith("error:")]) == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:timm/vit_base_patch16_224.augreg_in21k", r"write vit_base_patch16_224\.augreg_in21k: the name alone"),
        ("timm/resnet50", "write resnet50: the name alone"),
        ("hf_hub:someone/unheard-of", "timm has no model"),
        ("vit_base_patch16_224.no_such_tag", "timm's vit_base_patch16_224 has no weights called 'no_such_tag'.*augreg_in21k"),
        ("local-dir:/tmp", "timm has no model"),
        ("../../etc/passwd", "timm has no model"),
        (" ", "timm has no model"),
        ("résnet\x00", "timm has no model"),
    ],
)
def test_names_that_timm_does_not_take_are_refused_with_what_to_write(name: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=rf"(?s)model\.image_encoder\.name: .*{message}"):
        ImageEncoder(ImageEncoderSpec(name=name, image_size=64))


VALUES = (None, 0, -1, 3, 2.5, 10**30, "x", "", [], ["x"], {}, {"a": 1}, True)
DAMAGES = ("bits", "cut", "nothing", "key", "gone")


def damage_one(folder: Path, chance: random.Random) -> str:
    """Damage one file of a model folder in one way; returns what was done."""
    file = chance.choice(sorted(path for path in folder.iterdir()))
    how = chance.choice(DAMAGES)
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
        return f"{file.name} gone"
    if how == "key" and file.suffix == ".json":
        tree = json.loads(content)
        key = chance.choice([*tree, "pad_token", "model_type"])
        tree[key] = chance.choice(VALUES)
        file.write_text(json.dumps(tree))
        return f"{file.name} {key}={tree[key]!r}"
    if how == "nothing":
        content = bytearray()
    elif how == "cut":
        content = content[: chance.randrange(len(content))]
    else:
        # In the header as often as in the rest, where a bit of a weight changes nothing that could be noticed.
        for _ in range(3):
            content[chance.randrange(min(len(content), 2000))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return f"{file.name} {how}"


def campaign(folder: Path, scratch: Path, *, seed: int, trials: int) -> int:
    """Damage folder after folder and build from each; returns how many were refused. Anything but a refusal is an error."""
    chance, refused = random.Random(seed), 0
    for number in range(trials):
        copy = scratch / str(number)
        shutil.copytree(folder, copy)
        done = damage_one(copy, chance)
        answer = ""
        try:
            build(copy)
        except TclxError as error:
            answer = str(error)
        except Exception as error:
            raise AssertionError(f"trial {number} of seed {seed}: {done}") from error
        refused += bool(answer)
        assert answer.count("\n") <= 1, f"trial {number}, {done}: {answer}"
        shutil.rmtree(copy)
    return refused


def test_no_damaged_folder_ends_in_a_traceback(folder: Path, tmp_path: Path) -> None:
    assert campaign(folder, tmp_path / "damaged", seed=0, trials=25) >= 10


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 9))
def test_no_damaged_folder_of_many_ends_in_a_traceback(folder: Path, tmp_path: Path, seed: int) -> None:
    assert campaign(folder, tmp_path / "damaged", seed=seed, trials=250) >= 100
