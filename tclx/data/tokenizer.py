"""How does a caption become token ids? `[CLS] x` without `[SEP]`, whichever tokenizer makes the x.

Three origins (the hub, a local folder, or WordPiece trained on the captions) end in one thing: a Rust tokenizer plus the names
of its special tokens, which a run keeps in its folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tclx import hub
from tclx.errors import InputError, Problem
from tclx.files import machine_error
from tclx.foreign import reading
from tclx.packaged import model_folder
from tclx.spec.data import HubTokenizer, TokenizerSpec

BERT_SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA_SPECIAL_TOKENS = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
KEY = "data.tokenizer.name"


class EncodedCaptions(NamedTuple):
    """B captions padded to a common length L."""

    input_ids: NDArray[np.int64]
    """[B, L]"""
    attention_mask: NDArray[np.bool_]
    """[B, L] False at padding."""


class Word(NamedTuple):
    """A word of a caption."""

    text: str
    """As the caption spells it."""
    places: tuple[int, ...]
    """Of its tokens in the sequence, in which [CLS] has place 0."""


class CaptionTokenizer:
    """Encodes captions; the same in every process that loads the same folder.

    Attributes:
        vocab_size: largest id + 1.
        pad_id, unk_id, cls_id, mask_id: the special ids that training uses.
        special_ids: every special id, ascending; never a random word of MLM outside `compat: official`.
    """

    def __init__(self, backend: Tokenizer, special_tokens: Mapping[str, str]) -> None:
        self._backend = backend
        self._special_tokens = dict(special_tokens)
        backend.no_padding()
        backend.no_truncation()
        # Registered, they are recognised when they stand in a text, as the official tokenizer does.
        backend.add_special_tokens(list(special_tokens.values()))
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.pad_id, self.unk_id, self.cls_id, self.mask_id = (
            vocabulary[special_tokens[role]] for role in ("pad", "unk", "cls", "mask")
        )
        self.special_ids = tuple(sorted(vocabulary[token] for token in special_tokens.values()))

    def encode(self, captions: Sequence[str], *, max_tokens: int, fixed_length: bool = False) -> EncodedCaptions:
        """Ids of `[CLS] caption`, cut at the end and padded.

        Args:
            captions: B cleaned captions; an empty one becomes [CLS] alone.
            max_tokens: longest sequence, [CLS] included.
            fixed_length: pad to `max_tokens` instead of to the longest of the batch.
        """
        # One by one: the batch call starts a thread pool, which forked loader processes must not inherit.
        rows = [
            [self.cls_id, *self._backend.encode(caption, add_special_tokens=False).ids][:max_tokens] for caption in captions
        ]
        length = max_tokens if fixed_length else max((len(row) for row in rows), default=1)
        input_ids = np.full((len(rows), length), self.pad_id, np.int64)
        attention_mask = np.zeros((len(rows), length), np.bool_)
        for number, row in enumerate(rows):
            input_ids[number, : len(row)] = row
            attention_mask[number, : len(row)] = True
        return EncodedCaptions(input_ids, attention_mask)

    def encode_answers(self, answers: Sequence[str], *, max_tokens: int) -> EncodedCaptions:
        """Ids of `[CLS] answer [SEP]`, padded; an answer that is cut keeps its end.

        Raises:
            InputError: the tokenizer has no token for the end of a text.
        """
        end = self.sep_id
        if end is None:
            raise InputError(
                Problem(KEY, "the tokenizer has no sep token, with which answers end", "that of a BERT-like model")
            )
        encoded = self.encode(answers, max_tokens=max_tokens - 1)
        lengths = encoded.attention_mask.sum(axis=1)
        input_ids = np.pad(encoded.input_ids, ((0, 0), (0, 1)), constant_values=self.pad_id)
        mask = np.pad(encoded.attention_mask, ((0, 0), (0, 1)))
        input_ids[np.arange(len(lengths)), lengths] = end
        mask[np.arange(len(lengths)), lengths] = True
        return EncodedCaptions(input_ids, mask)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token and its id."""
        found: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return found

    @property
    def sep_id(self) -> int | None:
        """Of the end of a text; None where the tokenizer has none."""
        found: int | None = self._backend.token_to_id(self._special_tokens.get("sep", ""))
        return found

    def words(self, caption: str, *, max_tokens: int) -> list[Word]:
        """The words of a cleaned caption and where `encode` puts their tokens; what it cuts off is left out."""
        encoding = self._backend.encode(caption, add_special_tokens=False)
        tokens = zip(encoding.word_ids, encoding.offsets, range(1, max_tokens), strict=False)
        words = []
        for number, group in groupby(tokens, key=lambda token: token[0]):
            _, spans, places = zip(*group, strict=True)
            if number is not None:
                words.append(Word(caption[spans[0][0] : spans[-1][1]].strip(), places))
        return words

    def decode(self, input_ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._backend.decode(list(input_ids), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `special_tokens_map.json`, which transformers reads too.

        Raises:
            MachineError: the folder cannot be written.
        """
        names = {f"{role}_token": token for role, token in self._special_tokens.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=1), encoding="utf-8")
            (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        except OSError as error:
            raise machine_error(error, f"could not write the tokenizer to {folder}") from error

    @classmethod
    def load(cls, folder: Path) -> CaptionTokenizer:
        """A saved tokenizer, or any local folder with `tokenizer.json` or a WordPiece `vocab.txt`.

        Raises:
            InputError: no such file, it cannot be read, or its special tokens cannot be told.
        """
        backend = _read_backend(folder)
        return cls(backend, _special_tokens(backend, _read_settings(folder), where=str(folder)))


def build_tokenizer(spec: TokenizerSpec, captions: Iterable[str]) -> CaptionTokenizer:
    """The tokenizer that a spec asks for.

    Args:
        captions: cleaned training captions; read only when a tokenizer is trained on them.

    Raises:
        InputError: the tokenizer does not exist or has no Rust version.
        MachineError: the hub cannot be reached.
    """
    if not isinstance(spec, HubTokenizer):
        return train_wordpiece(captions, vocab_size=spec.vocab_size)
    name = model_folder(spec.name, key=KEY)
    return CaptionTokenizer.load(Path(name)) if Path(name).is_dir() else _from_hub(name)


def train_wordpiece(captions: Iterable[str], *, vocab_size: int) -> CaptionTokenizer:
    """A lower-case WordPiece vocabulary of the captions; the same captions in any order give the same ids.

    Args:
        captions: cleaned captions.
        vocab_size: upper bound, >= 64; characters beyond half of it, rarest first, become [UNK].
    """
    texts = list(captions)
    backend = _bert_pipeline(models.WordPiece(unk_token="[UNK]"), lowercase=True)
    special = list(BERT_SPECIAL_TOKENS.values())
    letters = _frequent_letters(texts, backend, most=(vocab_size - len(special)) // 2)
    # The trainer numbers inner letters (##a) in the order of a randomised hash map, and ties between merges follow the numbers,
    # so that two runs differ. Naming all letters as special tokens fixes their numbers; only the vocabulary is taken over.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special, *letters, *(f"##{letter}" for letter in letters)],
        limit_alphabet=0,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    wordpiece = models.WordPiece(backend.get_vocab(with_added_tokens=True), unk_token="[UNK]")
    return CaptionTokenizer(_bert_pipeline(wordpiece, lowercase=True), BERT_SPECIAL_TOKENS)


def _frequent_letters(texts: Iterable[str], backend: Tokenizer, *, most: int) -> list[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(backend.normalizer.normalize_str(text))
    letters = [letter for letter in counts if not letter.isspace()]
    return sorted(sorted(letters, key=lambda letter: (-counts[letter], letter))[:most])


def _bert_pipeline(model: models.Model, *, lowercase: bool) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _read_backend(folder: Path) -> Tokenizer:
    packed, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    if packed.is_file():
        try:
            return Tokenizer.from_file(str(packed))
        except Exception as error:  # the Rust reader raises plain Exception
            raise InputError(Problem(KEY, f"{packed} is not a tokenizer: {error}")) from error
    if vocabulary.is_file():
        tokens = _read_text(vocabulary).splitlines()
        wordpiece = models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]")
        return _bert_pipeline(wordpiece, lowercase=bool(_read_settings(folder).get("do_lower_case", True)))
    raise InputError(Problem(KEY, f"the folder {folder} holds neither tokenizer.json nor vocab.txt"))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        raise InputError(Problem(KEY, message, "save it as UTF-8, or fetch it again")) from error
    except OSError as error:
        raise machine_error(error, f"could not read {path}") from error


def _read_settings(folder: Path) -> dict[str, Any]:
    """What transformers wrote beside the vocabulary; empty where it wrote nothing."""
    settings: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file():
            try:
                content = json.loads(_read_text(path))
            except (ValueError, RecursionError) as error:
                raise InputError(Problem(KEY, f"{path} is not JSON: {error}", "fetch it again, or remove it")) from error
            if not isinstance(content, dict):
                message = f"{path} holds {content!r:.40}, where settings by name are expected"
                raise InputError(Problem(KEY, message, "fetch it again, or remove it"))
            settings |= content
    return settings


def _special_tokens(backend: Tokenizer, settings: Mapping[str, Any], *, where: str) -> dict[str, str]:
    """Special tokens by role: as the settings name them, else BERT's or RoBERTa's where the vocabulary has them."""
    found: dict[str, str] = {}
    for role in BERT_SPECIAL_TOKENS:
        named = settings.get(f"{role}_token")
        named = named.get("content") if isinstance(named, dict) else named
        if not isinstance(named, str | None):
            message = f"{where}: {role}_token is {named!r:.40}, where the token's text is expected"
            raise InputError(Problem(KEY, message, "correct tokenizer_config.json or special_tokens_map.json"))
        candidates = (named, BERT_SPECIAL_TOKENS[role], ROBERTA_SPECIAL_TOKENS[role])
        known = [token for token in candidates if token and backend.token_to_id(token) is not None]
        if known:
            found[role] = known[0]
    missing = [role for role in ("pad", "unk", "cls", "mask") if role not in found]
    if missing:
        raise InputError(
            Problem(KEY, f"{where} has no {' and no '.join(missing)} token", "choose the tokenizer of a BERT-like model")
        )
    return found


def _from_hub(name: str) -> CaptionTokenizer:
    from transformers import AutoTokenizer

    hub.require(hub.tokenizer_files(name, key=KEY))
    with reading(name, key=KEY):
        pretrained = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not pretrained.is_fast:
        raise InputError(Problem(KEY, f"{name} has no tokenizer.json", "choose a tokenizer with a fast version"))
    backend = pretrained.backend_tokenizer
    return CaptionTokenizer(backend, _special_tokens(backend, pretrained.special_tokens_map, where=name))
