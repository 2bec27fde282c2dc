"""Which answer does a model give? Ranked from a list, or written; and how many people agree."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tclx import distributed
from tclx.data.batch import normalise
from tclx.data.forms.vqa import answers_of
from tclx.data.items import ItemSet, open_items
from tclx.data.sources.opening import open_source
from tclx.model.fusion import grouped
from tclx.model.precision import autocast
from tclx.spec.data import FilesSource
from tclx.tasks.evaluating import evaluating, my_part, require_finite
from tclx.tasks.outcomes import Outcome
from tclx.tasks.task import Evaluation, Split
from tclx.tasks.thumbnails import NUM_SHOWN, jpeg, small, spaced
from tclx.tasks.vqa.answers import most_frequent, normalised, read_answer_list, vqa_accuracy

if TYPE_CHECKING:
    from tclx.data.tokenizer import CaptionTokenizer, EncodedCaptions
    from tclx.model.downstream import Answerer
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.vqa.task import VqaEvaluation

SHOWN_ANSWERS = 3


class Ranked(NamedTuple):
    """The answers of B questions, the most likely first."""

    numbers: Tensor
    """[B, k] int64: which of the list."""
    shares: Tensor
    """[B, k] probabilities among these k."""


def evaluate_answers(
    model: Answerer,
    spec: ExperimentSpec,
    split: Split,
    *,
    settings: VqaEvaluation,
    max_answer_tokens: int,
    tokenizer: CaptionTokenizer,
    device: torch.device,
) -> Evaluation:
    """VQA's accuracy; arguments and errors as `EvaluationTask.evaluate`."""
    items = open_items(spec, split)
    listed = answer_list(spec, settings)
    candidates = tokenizer.encode_answers(listed, max_tokens=max_answer_tokens)
    mine = my_part(torch.arange(items.num_items)).tolist()
    found: list[list[tuple[str, float]]] = []
    with torch.no_grad(), evaluating(model), autocast(device, spec.training.precision):
        for batch in items.image_batches(mine, batch_size=settings.batch_size) if mine else ():
            ids, mask = (one.to(device) for one in items.encode(tokenizer, mine[len(found) : len(found) + len(batch)]))
            images = normalise(batch.to(device), spec.data.normalization)
            questions = model.read(model.online, images, ids, mask)
            require_finite(questions, "state of a question")
            if settings.answer == "generate":
                found += generate(model, questions, mask, tokenizer=tokenizer, max_tokens=max_answer_tokens)
                continue
            ranked = rank(model, questions, mask, candidates, top_k=settings.top_k, official=spec.compat == "official")
            best = zip(ranked.numbers[:, :SHOWN_ANSWERS].tolist(), ranked.shares[:, :SHOWN_ANSWERS].tolist(), strict=True)
            found += [[(listed[number], share) for number, share in zip(*each, strict=True)] for each in best]
    given = [answers for part in distributed.all_gather_object(found) for answers in part]
    known = [answers_of(item.target) for item in items.items]
    scores = [
        (vqa_accuracy(answers[0][0], one.given), float(normalised(answers[0][0]) == most_frequent(one.given)))
        for answers, one in zip(given, known, strict=True)
        if one.given
    ]
    told = [number for number, one in enumerate(known) if one.given]
    outcomes = None
    if told:  # a test set whose answers only a server has gives none
        queries = items.queries(told)
        accuracy, exact = zip(*scores, strict=True)
        outcomes = {"accuracy": Outcome(queries, accuracy), "exact": Outcome(queries, exact)}
    return Evaluation(
        {"num_questions": float(len(known)), **_metrics(scores, [known[number].given for number in told], listed)},
        partial(_examples, items, given),
        outcomes,
        [{"question_id": one.question_id, "answer": answers[0][0]} for answers, one in zip(given, known, strict=True)],
    )


def rank(
    model: Answerer,
    questions: Tensor,
    question_mask: Tensor,
    candidates: EncodedCaptions,
    *,
    top_k: int,
    official: bool = False,
) -> Ranked:
    """Order answers of a list by their likelihood.

    Args:
        model: what answers.
        questions: [B, N, width] fused states.
        question_mask: [B, N] bool.
        candidates: C answers, `[CLS] answer [SEP]`.
        top_k: answers whose whole likelihood is computed, those with the most likely first word; all where there are fewer.
        official: count the first word twice, as the published code does.
    """
    device, num_questions = questions.device, len(questions)
    ids = torch.from_numpy(candidates.input_ids).to(device)
    mask = torch.from_numpy(candidates.attention_mask).to(device)
    start = ids[:1, :1].expand(num_questions, 1)
    first = model.write(model.online, start, torch.ones_like(start, dtype=torch.bool), questions, question_mask)[:, 0]
    likelihood = first.float().log_softmax(dim=1)[:, ids[:, 1]]
    likelihood, numbers = likelihood.topk(min(top_k, len(ids)), dim=1)
    scores = likelihood + _of_further_words(model, questions, question_mask, ids, mask.sum(dim=1), numbers)
    shares = (scores + likelihood if official else scores).softmax(dim=1)
    shares, order = shares.sort(dim=1, descending=True, stable=True)
    return Ranked(numbers.gather(1, order), shares)


MOST_LOGITS = 2**25
"""At once; 128 MiB in fp32."""


def _of_further_words(
    model: Answerer, questions: Tensor, question_mask: Tensor, ids: Tensor, lengths: Tensor, numbers: Tensor
) -> Tensor:
    """[B, k] log-likelihood of all words of an answer but its first, answers of a length at a time: nothing is computed at
    padding, where most of a list is when one of its answers is long.

    Args:
        ids: [C, L] int64, the answers.
        lengths: [C] int64, their words with [CLS] and [SEP].
        numbers: [B, k] int64, which of them for each question.
    """
    rows = torch.arange(len(questions), device=questions.device).repeat_interleave(numbers.shape[1])
    chosen, found = numbers.flatten(), torch.zeros(numbers.numel(), device=questions.device)
    for length in torch.unique(lengths[chosen]).tolist():
        if length <= 2:  # an empty answer ends with its first word
            continue
        num_logits = (length - 2) * model.online.text_encoder.word_embeddings.num_embeddings
        for part in (lengths[chosen] == length).nonzero()[:, 0].split(max(1, MOST_LOGITS // num_logits)):
            words = ids[chosen[part], :length]
            written, everything = words[:, :-1], torch.ones_like(words[:, :-1], dtype=torch.bool)
            logits = model.write(
                model.online, written, everything, questions, question_mask, grouped(rows[part]), first_place=1
            )
            losses = functional.cross_entropy(logits.flatten(0, 1).float(), words[:, 2:].flatten(), reduction="none")
            found[part] = -losses.view(len(part), -1).sum(dim=1)
    return found.view(numbers.shape)


def generate(
    model: Answerer, questions: Tensor, question_mask: Tensor, *, tokenizer: CaptionTokenizer, max_tokens: int
) -> list[list[tuple[str, float]]]:
    """The answer written word after word, each the most likely one, with the probability of the whole."""
    end, num = tokenizer.sep_id, len(questions)
    ids = torch.full((num, 1), tokenizer.cls_id, device=questions.device)
    total, ended = torch.zeros(num, device=questions.device), torch.zeros(num, dtype=torch.bool, device=questions.device)
    for _ in range(max_tokens - 1):
        logits = model.write(model.online, ids, torch.ones_like(ids, dtype=torch.bool), questions, question_mask)[:, -1]
        likelihood, word = logits.float().log_softmax(dim=1).max(dim=1)
        total += torch.where(ended, torch.zeros_like(likelihood), likelihood)
        ids = torch.cat([ids, torch.where(ended, tokenizer.pad_id, word)[:, None]], dim=1)
        ended |= word == end
        if bool(ended.all()):
            break
    return [[(tokenizer.decode(row), share)] for row, share in zip(ids.tolist(), total.exp().tolist(), strict=True)]


def answer_list(spec: ExperimentSpec, settings: VqaEvaluation) -> list[str]:
    """The answers to choose from, and of which it is told whether they hold the right one."""
    if settings.answer_list is not None:
        return read_answer_list(settings.answer_list)
    files = spec.data.train.files if isinstance(spec.data.train, FilesSource) else ()
    states = tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in map(os.stat, files))
    return list(_trained_answers(spec, states))


@lru_cache(maxsize=1)
def _trained_answers(spec: ExperimentSpec, states: tuple[tuple[int, ...], ...]) -> tuple[str, ...]:
    """All answers of `data.train`, the most frequent first: read once a run, and anew if a file changed."""
    rows: Any = open_source(spec.data.train, key="data.train").rows(spec)
    counts: Counter[str] = Counter()
    for row in range(rows.num_rows):
        counts.update(answers_of(rows.item(row).target).weights)
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer)))


def _metrics(scores: Sequence[tuple[float, float]], known: Sequence[Sequence[str]], listed: Sequence[str]) -> dict[str, float]:
    """In percent; nothing where no answer is known.

    Args:
        scores: of each question with known answers VQA's accuracy, and whether the answer given most often was met.
        known: the answers of these questions.
        listed: those that were chosen from.
    """
    if not scores:
        return {}
    names = {normalised(one) for one in listed}
    # What one answer would reach on every question, by the answers that are right somewhere.
    by_answer: defaultdict[str, float] = defaultdict(float)
    for right in known:
        for one in {normalised(answer) for answer in right}:
            by_answer[one] += vqa_accuracy(one, right)
    percent = 100.0 / len(scores)
    return {
        "accuracy": percent * sum(accuracy for accuracy, _ in scores),
        "exact": percent * sum(exact for _, exact in scores),
        "majority": percent * max(by_answer.values()),
        "random": percent * sum(by_answer.get(name, 0.0) for name in names) / len(names),
        "unlisted": percent * sum(names.isdisjoint(map(normalised, right)) for right in known),
    }


def _examples(items: ItemSet, given: Sequence[Sequence[tuple[str, float]]]) -> dict[str, Any]:
    """`JudgedItems`: a few questions with what was answered."""
    shown = spaced(items.num_items, NUM_SHOWN)
    return {
        "score": "probability",
        "items": [
            {
                "images": [number],
                "text": items.items[number].text,
                "right": list(dict.fromkeys(answers_of(items.items[number].target).given)),
                "answers": [{"text": text, "score": share} for text, share in given[number]],
            }
            for number in shown
        ],
        "pictures": {str(number): jpeg(small(items.images(number)[0])) for number in shown},
    }
