"""Answers as VQA compares them, and the list that is chosen from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tclx.errors import InputError, Problem
from tclx.files import Unreadable, read_texts

KEY = "evaluation.vqa.answer_list"

_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'd've I'm
I've isn't it'd it'll let's ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't she'd've
should've shouldn't somebody'd someone's something's that'd that's there'd there're there's they'd they'll they're
they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_CONTRACTIONS = {word.replace("'", "").lower(): word.lower() for word in _CONTRACTED.split()}
_PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")


def normalised(answer: str) -> str:
    """An answer as VQA's evaluation compares it: lower case, numbers as digits, no articles, no punctuation.

    Source: the rules that VQA's evaluation page states.
    """
    text = _COMMA_IN_NUMBER.sub("", answer.lower().strip())
    text = _PERIOD.sub("", _PUNCTUATION.sub(" ", text))
    words = (_NUMBERS.get(word, word) for word in text.split() if word not in _ARTICLES)
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """How much an answer agrees with those that people gave, 0 to 1.

    With ten given answers: the mean over them of min(1, others that say the same / 3), each left out in turn. With fewer than
    four the divisor is what is left, and a single one is matched or not.

    Args:
        answer: any text.
        given: one or more.

    Source: Antol et al. 2015, arXiv:1505.00468; the average over nine of ten is VQA's evaluation.
    """
    said, known = normalised(answer), [normalised(one) for one in given]
    if len(known) == 1:
        return float(said == known[0])
    needed = min(3, len(known) - 1)
    matches = sum(one == said for one in known)
    return sum(min(1.0, (matches - (one == said)) / needed) for one in known) / len(known)


def most_frequent(given: Sequence[str]) -> str:
    """The answer that was given most often, as compared; of several the first."""
    return Counter(normalised(one) for one in given).most_common(1)[0][0]


def read_answer_list(path: str) -> list[str]:
    """The answers to choose from.

    Raises:
        InputError: the file is no JSON list of different texts.
    """
    try:
        answers = read_texts(Path(path))
    except Unreadable as error:
        raise InputError(Problem(KEY, str(error), 'a JSON list of texts: ["yes", "no", ...]')) from None
    if not answers:
        raise InputError(Problem(KEY, f"{path} is an empty list", "at least one answer"))
    twice, count = Counter(answers).most_common(1)[0]
    if count > 1:
        raise InputError(Problem(KEY, f"{path}: {twice!r:.40} stands there {count} times", "once"))
    return answers
