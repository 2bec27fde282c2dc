"""What does a caption look like before it is tokenised?"""

from __future__ import annotations

import re

_DROPPED = re.compile(r"[,.'!?\"()*#:;~]+")
_REPEATED_SPACES = re.compile(r"\s{2,}")


def clean_caption(caption: str, *, max_words: int) -> str:
    """Lower-case text without sentence punctuation, its first `max_words` words.

    Hyphens and slashes separate words, `<person>` (Conceptual Captions' stand-in for a name) becomes a plain word. A caption of
    punctuation alone becomes the empty string.

    Args:
        caption: any text.
        max_words: >= 1; words are what single spaces separate.

    Source: the official caption preprocessing of TCL and ALBEF, reproduced string by string.
    """
    text = _DROPPED.sub("", caption.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    # A lone tab or newline inside stays, as in the official code: the tokenizer separates words there anyway.
    words = _REPEATED_SPACES.sub(" ", text).rstrip("\n").strip(" ").split(" ")
    return " ".join(words[:max_words])


def clean_question(question: str, *, max_words: int) -> str:
    """As `clean_caption`, but as the published code treats questions: spaces, line breaks and `<person>` stay.

    Source: the official question preprocessing of TCL and ALBEF, reproduced string by string.
    """
    text = _DROPPED.sub("", question.lower()).replace("-", " ").replace("/", " ").rstrip(" ")
    words = text.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else text
