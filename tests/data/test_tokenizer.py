from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tclx.data.scenes import Scenes
from tclx.data.tokenizer import BERT_SPECIAL_TOKENS, CaptionTokenizer, build_tokenizer, train_wordpiece
from tclx.errors import InputError
from tclx.spec.data import HubTokenizer, ScenesSource, TrainedTokenizer

VOCABULARY = [*BERT_SPECIAL_TOKENS.values(), "a", "dog", "play", "##ing", "##s", "red"]


def scene_captions() -> list[str]:
    captions = Scenes(ScenesSource(source="scenes", num_images=80, split="train")).captions
    return [caption for captions_of_one in captions for caption in captions_of_one]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    return tmp_path


def test_captions_become_cls_and_words_without_sep(folder: Path) -> None:
    encoded = CaptionTokenizer.load(folder).encode(["a dog playing", "Dogs", ""], max_tokens=9)
    assert encoded.input_ids.tolist() == [[2, 5, 6, 7, 8], [2, 6, 9, 0, 0], [2, 0, 0, 0, 0]]
    assert encoded.attention_mask.sum(axis=1).tolist() == [5, 3, 1]
    assert encoded.input_ids.dtype == np.int64


def test_long_captions_are_cut_and_a_fixed_length_is_kept(folder: Path) -> None:
    tokenizer = CaptionTokenizer.load(folder)
    assert tokenizer.encode(["a dog playing"], max_tokens=3).input_ids.tolist() == [[2, 5, 6]]
    assert tokenizer.encode(["a"], max_tokens=4, fixed_length=True).input_ids.tolist() == [[2, 5, 0, 0]]


def test_no_captions_give_an_empty_batch(folder: Path) -> None:
    assert CaptionTokenizer.load(folder).encode([], max_tokens=4).input_ids.shape == (0, 1)


def test_special_ids_are_told_from_the_vocabulary(folder: Path) -> None:
    tokenizer = CaptionTokenizer.load(folder)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.mask_id) == (0, 1, 2, 4)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.vocab_size == len(VOCABULARY)


def test_a_saved_tokenizer_comes_back_the_same(tmp_path: Path) -> None:
    captions = scene_captions()
    trained = train_wordpiece(captions, vocab_size=200)
    trained.save(tmp_path / "tokenizer")
    loaded = CaptionTokenizer.load(tmp_path / "tokenizer")
    assert np.array_equal(*(one.encode(captions, max_tokens=30).input_ids for one in (trained, loaded)))
    assert loaded.special_ids == trained.special_ids


def test_a_trained_tokenizer_keeps_within_its_vocabulary_and_knows_the_captions() -> None:
    captions = scene_captions()
    for vocab_size in (64, 120, 8192):
        tokenizer = train_wordpiece(captions, vocab_size=vocab_size)
        assert tokenizer.vocab_size <= vocab_size
        assert not (tokenizer.encode(captions, max_tokens=60).input_ids == tokenizer.unk_id).any()
        # Also from the pieces of words, of which a small vocabulary makes many.
        assert tokenizer.decode(tokenizer.encode(captions[:1], max_tokens=60).input_ids[0].tolist()) == captions[0]


def test_training_is_the_same_in_every_process_and_for_every_order(tmp_path: Path) -> None:
    captions = [*scene_captions(), "naïve façade 日本", "x1 y2 z3"]
    (tmp_path / "captions.json").write_text(json.dumps(captions[::-1]))
    code = (
        "import json, pathlib, sys; from tclx.data.tokenizer import train_wordpiece\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "train_wordpiece(json.loads((folder / 'captions.json').read_text()), vocab_size=150).save(folder / 'other')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    train_wordpiece(captions, vocab_size=150).save(tmp_path / "own")
    own, other = (json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("own", "other"))
    assert own == other


def test_rare_letters_become_unknown_when_the_vocabulary_is_small() -> None:
    tokenizer = train_wordpiece(["abab " * 50, "".join(chr(0x4E00 + number) for number in range(200))], vocab_size=64)
    assert tokenizer.vocab_size <= 64
    assert (tokenizer.encode(["abab"], max_tokens=9).input_ids != tokenizer.unk_id).all()


def test_a_spec_picks_the_origin(folder: Path) -> None:
    assert build_tokenizer(HubTokenizer(source="pretrained", name=str(folder)), []).vocab_size == len(VOCABULARY)
    assert build_tokenizer(TrainedTokenizer(source="captions", vocab_size=64), ["a red dog"]).vocab_size < 64


def test_a_folder_without_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither tokenizer.json nor vocab.txt"):
        CaptionTokenizer.load(tmp_path)


def test_a_broken_tokenizer_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="is not a tokenizer"):
        CaptionTokenizer.load(tmp_path)


def test_a_vocabulary_without_special_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\na\nb")
    with pytest.raises(InputError, match="has no pad and no cls and no mask token"):
        CaptionTokenizer.load(tmp_path)


def test_transformers_reads_what_was_saved(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_wordpiece(["a red dog"] * 3, vocab_size=64)
    tokenizer.save(tmp_path)
    pretrained = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = pretrained("a red dog", add_special_tokens=False)["input_ids"]
    assert [tokenizer.cls_id, *ids] == tokenizer.encode(["a red dog"], max_tokens=9).input_ids[0].tolist()


def test_words_are_spelled_as_in_the_caption_and_know_their_places(folder: Path) -> None:
    tokenizer = CaptionTokenizer.load(folder)
    assert tokenizer.words("a Dog, playing", max_tokens=9) == [("a", (1,)), ("Dog", (2,)), (",", (3,)), ("playing", (4, 5))]
    assert tokenizer.words("a Dog, playing", max_tokens=5)[-1] == ("play", (4,))
    assert tokenizer.words("a Dog, playing", max_tokens=3) == [("a", (1,)), ("Dog", (2,))]
    assert tokenizer.words("", max_tokens=3) == []


def test_words_of_a_byte_level_tokenizer_have_no_blanks_around_them(tmp_path: Path) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = ["<s>", "<pad>", "<unk>", "</s>", "<mask>", *sorted(alphabet), "Ġd", "Ġdo", "Ġdog"]
    merges = [("Ġ", "d"), ("Ġd", "o"), ("Ġdo", "g")]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert CaptionTokenizer.load(tmp_path).words("a dog", max_tokens=9) == [("a", (1,)), ("dog", (2,))]
