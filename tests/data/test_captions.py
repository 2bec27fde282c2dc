from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from tclx.data.captions import clean_caption


@given(st.text(max_size=80), st.integers(1, 10))
def test_no_caption_keeps_sentence_punctuation_or_too_many_words(caption: str, max_words: int) -> None:
    cleaned = clean_caption(caption, max_words=max_words)
    assert not set(cleaned) & set(",.'!?\"()*#:;~-/")
    assert len(cleaned.split(" ")) <= max_words


def test_punctuation_alone_becomes_nothing() -> None:
    assert clean_caption(string.punctuation.translate(str.maketrans("", "", "$%&+<=>@[\\]^_`{|}")), max_words=30) == ""


def test_hyphens_and_slashes_separate_words_before_they_are_counted() -> None:
    assert clean_caption("Black-and-white/grey, cat", max_words=4) == "black and white grey"
