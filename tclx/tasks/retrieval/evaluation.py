"""Zero-shot image-text retrieval as TCL does it: cosine similarity finds candidates, image-text matching sorts them.

1. Captions and images go through their encoders; their embeddings are compared and each query keeps its `top_k` best keys.
2. Each candidate pair goes through the fusion encoder, once even where image and caption both asked for it. Its score is the
   ITM logit of "matched" (not a probability). Keys that are no candidates score -100.

Memory stays small at COCO's 5,000 images and 25,000 captions. Token features of images are never kept (5,000 x 577 x 768
in fp32 would be 8.9 GB) but computed again for the pairs of `batch_size` images at a time, at 1 % of the matching's cost.
Those of captions stay on the device, cut to the longest caption (2.3 GB at 30 tokens in fp32, half under bf16). Score matrices
exist for a chunk of queries at a time. Padding changes nothing, so captions and pairs are sorted by length; the captions of one
image that go through the fusion encoder together attend to one copy of its keys and values.

With several processes, images, queries and pairs are divided among them in consecutive parts and gathered as objects in that
order, without the repeated samples of a distributed sampler.

Source: Yang et al. 2022, arXiv:2202.10401; evaluation of the published retrieval script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tclx import distributed
from tclx.data.batch import normalise
from tclx.data.dataset import EvaluationSet, open_evaluation_set
from tclx.errors import InputError, Problem
from tclx.model.fusion import FusionEncoder, grouped
from tclx.model.precision import autocast
from tclx.tasks.evaluating import evaluating, gather_parts, my_part, require_finite
from tclx.tasks.outcomes import Outcome, Queries, fingerprint
from tclx.tasks.retrieval import QUALITIES
from tclx.tasks.retrieval.positives import Positives, quality_by_chance, quality_of, read_positives
from tclx.tasks.retrieval.ranks import DEFAULT_CHUNK, chunks, rank_of_best_relevant, summarise_ranks

if TYPE_CHECKING:
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL, Encoded, MomentumModel
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.retrieval.task import RetrievalSpec
    from tclx.tasks.task import Split

UNSCORED = -100.0
"""The score of keys that are not among a query's candidates, as in the official score matrices."""
SIMILARITY_BINS = 100
"""Of the histograms of cosine similarities; each is 0.02 wide."""
PAIRS_PER_IMAGE_OF_A_BATCH = 4
"""A pair costs the fusion encoder about a quarter of what an image costs the image encoder."""

ImageBatches = Callable[[Sequence[int]], Iterator[Tensor]]
"""Normalised images [b, 3, S, S] on the device for the numbers asked for, in that order, `batch_size` at a time."""


class Captions(NamedTuple):
    """The texts of an evaluation set."""

    input_ids: Tensor
    """[T, L] int64"""
    attention_mask: Tensor
    """[T, L] bool, False at padding"""
    image_of_caption: Tensor
    """[T] int64, the number of the image that each describes"""


class EncodedCaptions(NamedTuple):
    """What the text encoder makes of them."""

    tokens: Tensor
    """[T, L, D]"""
    attention_mask: Tensor
    """[T, L] bool"""
    embedding: Tensor
    """[T, E] L2-normalised fp32"""


class Shortlist(NamedTuple):
    """What the dual encoder says of every query."""

    ranks: Tensor
    """[Q] rank of the best relevant key, from 0"""
    candidates: Tensor
    """[Q, k] the best keys, best first"""
    similarities: Tensor
    """[Q, k] their cosine similarities to the query"""
    quality: Tensor | None = None
    """[Q, 3] as `quality_of`; None without positives beyond a caption's own image"""


class Retrieval(NamedTuple):
    """Dual-encoder shortlists and, with an ITM head, the scores of their pairs."""

    image_to_text: Shortlist
    text_to_image: Shortlist
    pair_ids: Tensor | None
    """[P] int64 ascending: image x T + caption, every candidate pair once"""
    pair_scores: Tensor | None
    """[P] fp32 ITM logits of "matched\""""
    image_queries: Tensor
    """[Q] numbers of the images that ask: those with a caption"""
    image_of_caption: Tensor
    """[T] int64"""
    similarity_counts: Tensor
    """[2, SIMILARITY_BINS] int64: matched pairs, then unmatched ones, by their cosine similarity from -1 to 1"""


class Ranks(NamedTuple):
    """Where the best right key of each query stands, from 0."""

    image_to_text: Tensor
    """[Q] of the images that ask"""
    text_to_image: Tensor
    """[T]"""


class RetrievalEvaluation(NamedTuple):
    """A model's retrieval on one split."""

    metrics: dict[str, float]
    """As `figures_of`, with `num_images` and `num_captions`."""
    found: Retrieval
    ranks: dict[str, Ranks]
    """As `ranks_of`."""
    source: EvaluationSet
    """The images and captions that were asked about."""
    positives: Positives | None = None
    """Those of the task's file."""
    quality: Mapping[str, Tensor] = {}
    """[Q, 3] of each order and direction, as `qualities_of`."""


def evaluate_retrieval(
    model: TCL,
    spec: ExperimentSpec,
    split: Split,
    *,
    settings: RetrievalSpec,
    tokenizer: CaptionTokenizer,
    device: torch.device,
) -> RetrievalEvaluation:
    """Retrieval of a model on `data.val` or `data.test`; every process of a run calls this and gets the same.

    Args:
        model: on `device`.
        spec: data and precision.
        settings: of the task.
        tokenizer: the one that the model was trained with.

    Raises:
        InputError: the spec has no such split, its files are wrong, or the model has no common embedding space.
        RunFailed: an image cannot be read, or the model's output is not finite.
    """
    source = open_evaluation_set(spec, split)
    path = settings.positives_file(split)
    positives = read_positives(path, spec.data, split, source) if path is not None else None

    def image_batches(numbers: Sequence[int]) -> Iterator[Tensor]:
        for images in source.image_batches(numbers, batch_size=settings.batch_size):
            yield normalise(images.to(device), spec.data.normalization)

    found = retrieve(
        model,
        image_batches=image_batches,
        num_images=source.num_images,
        captions=Captions(*source.encode_captions(tokenizer), torch.from_numpy(source.image_of_caption)),
        top_k=settings.top_k,
        batch_size=settings.batch_size,
        precision=spec.training.precision,
        positives=positives,
    )
    counts = {"num_images": float(source.num_images), "num_captions": float(source.num_captions)}
    ranks = ranks_of(found, num_images=source.num_images)
    if positives is None:
        return RetrievalEvaluation(figures_of(ranks) | counts, found, ranks, source)
    quality = qualities_of(found, positives)
    figures = figures_of(ranks) | counts | _figures_of_positives(positives, quality)
    return RetrievalEvaluation(figures, found, ranks, source, positives, quality)


def outcomes_of(evaluation: RetrievalEvaluation) -> dict[str, Outcome]:
    """The rank, from 0, of each query of both directions; under `dual/` that of the cosine similarity alone."""
    found, source = evaluation.found, evaluation.source
    image_of_caption, asking = found.image_of_caption.tolist(), found.image_queries.tolist()
    # A query is told by what is asked and by what it is looked for among; an image by its captions.
    said = [source.num_images, image_of_caption, source.captions]
    queries = {
        "image_to_text": Queries(fingerprint("images", *said), asking),
        "text_to_image": Queries(fingerprint("captions", *said), image_of_caption),
    }
    outcomes = {
        f"{pathway}{direction}": Outcome(queries[direction], getattr(ranks, direction).tolist())
        for pathway, ranks in evaluation.ranks.items()
        for direction in queries
    }
    for name, quality in evaluation.quality.items():
        direction = name.rpartition("/")[2]
        asked = [row for row, right in enumerate(getattr(evaluation.positives, direction)) if right]
        clusters = asked if direction == "image_to_text" else [image_of_caption[row] for row in asked]
        those = Queries(fingerprint(direction, getattr(evaluation.positives, direction), *said), clusters)
        reached = quality[~quality[:, 0].isnan()].T.tolist()
        outcomes |= {f"{name}/{one}": Outcome(those, values) for one, values in zip(QUALITIES, reached, strict=True)}
    return outcomes


@torch.no_grad()
def retrieve(
    model: TCL,
    *,
    image_batches: ImageBatches,
    num_images: int,
    captions: Captions,
    top_k: int,
    batch_size: int,
    precision: str = "fp32",
    positives: Positives | None = None,
) -> Retrieval:
    """Rank all captions for every image and all images for every caption, with the online encoders in eval mode.

    Args:
        model: on the device that computes; its train/eval modes are put back afterwards.
        image_batches: loads and normalises images by number.
        num_images: I; numbers run from 0 to I - 1.
        captions: T captions, on any device.
        top_k: candidates per query that are matched by the fusion encoder; all keys where there are fewer.
        batch_size: images or captions per forward pass.
        precision: of the encoders, as `training.precision`.
        positives: right keys beyond the own ones, to measure with the same features.

    Raises:
        InputError: the model has no common embedding space to compare in.
        RunFailed: an embedding or a score is not finite.
    """
    if model.online.image_projection is None:
        raise InputError(
            Problem("evaluation.retrieval", "this model has no common space to find candidates in", "switch on objectives.cma")
        )
    device = next(model.parameters()).device
    with evaluating(model), autocast(device, precision):
        texts = _encode_captions(model, captions, batch_size=batch_size, device=device)
        embeddings = _encode_images(model, image_batches, num_images=num_images, device=device)
        require_finite(texts.embedding, "embedding of a caption")
        require_finite(embeddings, "embedding of an image")
        image_of_caption = captions.image_of_caption.to(device)
        numbers = torch.arange(num_images, device=device)
        asking = numbers[torch.isin(numbers, image_of_caption)]
        of_images = [positives.image_to_text[image] for image in asking.tolist()] if positives is not None else None
        of_texts = positives.text_to_image if positives is not None else None
        image_to_text = _shortlist(embeddings[asking], texts.embedding, asking, image_of_caption, top_k, of_images)
        text_to_image = _shortlist(texts.embedding, embeddings, image_of_caption, numbers, top_k, of_texts)
        counts = _similarity_counts(texts.embedding, embeddings, image_of_caption)
        found = Retrieval(image_to_text, text_to_image, None, None, asking, image_of_caption, counts)
        if model.head("itm") is None:
            return found
        pair_ids = _candidate_pairs(found)
        scores = _match_pairs(model, pair_ids, texts, image_batches, batch_size=batch_size)
        require_finite(scores, "matching score")
        return found._replace(pair_ids=pair_ids, pair_scores=scores)


def reranked_scores(found: Retrieval, *, direction: str, queries: slice, num_keys: int) -> Tensor:
    """Rows of the official score matrix: ITM logits at the candidates, -100 elsewhere.

    Args:
        found: with pair scores.
        direction: `image_to_text` or `text_to_image`.
        queries: which rows.
        num_keys: columns.

    Returns:
        [rows, num_keys] fp32.
    """
    if found.pair_ids is None or found.pair_scores is None:
        raise ValueError("no pair was matched: the model has no ITM head")
    num_captions = found.image_of_caption.shape[0]
    if direction == "image_to_text":
        candidates = found.image_to_text.candidates[queries]
        ids = found.image_queries[queries, None] * num_captions + candidates
    else:
        candidates = found.text_to_image.candidates[queries]
        rows = torch.arange(num_captions, device=candidates.device)[queries]
        ids = candidates * num_captions + rows[:, None]
    scores = found.pair_scores[torch.searchsorted(found.pair_ids, ids)]
    return torch.full((candidates.shape[0], num_keys), UNSCORED, device=scores.device).scatter_(1, candidates, scores)


def ranks_of(found: Retrieval, *, num_images: int) -> dict[str, Ranks]:
    """The ranks of the re-ranked order under no name, and under `dual/` those of the dual encoder.

    Without an ITM head there is one order, and both names give it.
    """
    dual = Ranks(found.image_to_text.ranks, found.text_to_image.ranks)
    if found.pair_scores is None:
        return {"": dual, "dual/": dual}
    numbers = torch.arange(num_images, device=found.image_of_caption.device)
    image_to_text = _reranked_ranks(found, "image_to_text", found.image_queries, found.image_of_caption)
    text_to_image = _reranked_ranks(found, "text_to_image", found.image_of_caption, numbers)
    return {"": Ranks(image_to_text, text_to_image), "dual/": dual}


def qualities_of(found: Retrieval, positives: Positives) -> dict[str, Tensor]:
    """[Q, 3] as `quality_of` by `positives/<direction>` of the re-ranked order, under `dual/` of the dual encoder's."""
    qualities = {}
    for direction in positives._fields:
        dual: Tensor | None = getattr(found, direction).quality
        if dual is None:
            raise ValueError("retrieve was not told of positives")
        qualities[f"dual/positives/{direction}"] = qualities[f"positives/{direction}"] = dual
        if found.pair_scores is None:
            continue
        right = getattr(positives, direction)
        if direction == "image_to_text":
            right = [right[image] for image in found.image_queries.tolist()]
        num_keys = len(positives.text_to_image if direction == "image_to_text" else positives.image_to_text)
        parts = [
            quality_of(reranked_scores(found, direction=direction, queries=rows, num_keys=num_keys), right[rows])
            for rows in chunks(len(right), DEFAULT_CHUNK)
        ]
        qualities[f"positives/{direction}"] = torch.cat(parts)
    return qualities


def _figures_of_positives(positives: Positives, quality: Mapping[str, Tensor]) -> dict[str, float]:
    """In percent, with what a random order reaches and the number of queries."""
    figures = {
        f"{name}/{one}": value
        for name, found in quality.items()
        for one, value in zip(QUALITIES, (100.0 * found.nanmean(dim=0)).tolist(), strict=True)
    }
    num_keys = {"image_to_text": len(positives.text_to_image), "text_to_image": len(positives.image_to_text)}
    for direction in positives._fields:
        right = getattr(positives, direction)
        chance = quality_by_chance(right, num_keys=num_keys[direction])
        figures |= {f"positives/{direction}/{name}": value for name, value in chance.items()}
        figures[f"positives/{direction}/num_queries"] = float(sum(map(bool, right)))
    return figures


def figures_of(ranks: Mapping[str, Ranks]) -> dict[str, float]:
    """Metrics as `summarise_ranks` names them, each behind the name of its order."""
    return {
        f"{pathway}{name}": value
        for pathway, one in ranks.items()
        for name, value in summarise_ranks(one.image_to_text, one.text_to_image).items()
    }


def _reranked_ranks(found: Retrieval, direction: str, image_of_query: Tensor, image_of_key: Tensor) -> Tensor:
    return torch.cat(
        [
            rank_of_best_relevant(
                reranked_scores(found, direction=direction, queries=rows, num_keys=image_of_key.shape[0]),
                image_of_query[rows, None] == image_of_key,
            )
            for rows in chunks(image_of_query.shape[0], DEFAULT_CHUNK)
        ]
    )


def _encode_captions(model: TCL, captions: Captions, *, batch_size: int, device: torch.device) -> EncodedCaptions:
    """All captions, on every process: they cost a hundredth of the matching, and every process needs most of them."""
    longest = int(captions.attention_mask.sum(dim=1).max())
    input_ids, attention_mask = captions.input_ids[:, :longest].to(device), captions.attention_mask[:, :longest].to(device)
    tokens = torch.zeros(*input_ids.shape, model.online.text_encoder.width, dtype=kept_dtype(device), device=device)
    embeddings = torch.empty(0)
    for rows, encoded in caption_batches(model, input_ids, attention_mask, batch_size=batch_size):
        embedding = _embedding(encoded)
        if not len(embeddings):
            embeddings = embedding.new_empty(len(input_ids), embedding.shape[1])
        tokens[rows, : encoded.tokens.shape[1]] = encoded.tokens.to(tokens.dtype)
        embeddings[rows] = embedding
    return EncodedCaptions(tokens, attention_mask, embeddings)


def caption_batches(
    model: MomentumModel, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int
) -> Iterator[tuple[Tensor, Encoded]]:
    """Captions through the text encoder, the shortest first, each batch cut to its longest.

    Args:
        input_ids, attention_mask: [T, L] on the device that computes; bool, False at padding.

    Returns:
        [b] numbers of the captions on that device, and what the encoder makes of them, until every one was there once.
    """
    lengths = attention_mask.sum(dim=1).cpu()
    order = lengths.argsort(stable=True)
    for part in chunks(len(order), batch_size):
        length = int(lengths[order[part]].max())
        rows = order[part].to(input_ids.device)
        yield rows, model.online.encode_text(input_ids[rows, :length], attention_mask[rows, :length])


def _encode_images(model: TCL, image_batches: ImageBatches, *, num_images: int, device: torch.device) -> Tensor:
    """[I, E] embeddings; this process encodes its part and gets the others'."""
    mine = my_part(torch.arange(num_images)).tolist()
    parts = [_embedding(model.online.encode_image(images)).cpu() for images in image_batches(mine)] if mine else []
    return gather_parts(torch.cat(parts) if parts else None, device)


def _embedding(encoded: Encoded) -> Tensor:
    if encoded.embedding is None:
        raise ValueError("the model has no projections")
    return encoded.embedding


def _shortlist(
    queries: Tensor,
    keys: Tensor,
    image_of_query: Tensor,
    image_of_key: Tensor,
    top_k: int,
    positives: Sequence[Sequence[int]] | None = None,
) -> Shortlist:
    """Compare this process's part of the queries with all keys, chunk by chunk."""
    ranks, candidates, similarities, quality = [], [], [], []
    mine = my_part(torch.arange(queries.shape[0], device=queries.device))
    for part in chunks(len(mine), DEFAULT_CHUNK):
        rows = mine[part]
        with torch.autocast(queries.device.type, enabled=False):
            similarity = queries[rows] @ keys.T
        ranks.append(rank_of_best_relevant(similarity, image_of_query[rows, None] == image_of_key).cpu())
        if positives is not None:
            quality.append(quality_of(similarity, [positives[row] for row in rows.tolist()]))
        best = similarity.topk(min(top_k, keys.shape[0]), dim=1)
        candidates.append(best.indices.cpu())
        similarities.append(best.values.cpu())
    return Shortlist(
        gather_parts(torch.cat(ranks) if ranks else None, queries.device),
        gather_parts(torch.cat(candidates) if candidates else None, queries.device),
        gather_parts(torch.cat(similarities) if similarities else None, queries.device),
        None if positives is None else gather_parts(torch.cat(quality) if quality else None, torch.device("cpu")),
    )


def _similarity_counts(captions: Tensor, images: Tensor, image_of_caption: Tensor) -> Tensor:
    """[2, bins] how similar pairs that belong together are, and all others; each process counts its part of the captions."""
    counts = torch.zeros(2, SIMILARITY_BINS, dtype=torch.int64)
    mine = my_part(torch.arange(len(captions), device=captions.device))
    for part in chunks(len(mine), DEFAULT_CHUNK):
        rows = mine[part]
        with torch.autocast(captions.device.type, enabled=False):
            similarity = (captions[rows] @ images.T).clamp(-1, 1)  # rounding may leave the range, where nothing is counted
        matched = _histogram(similarity.gather(1, image_of_caption[rows, None]))
        counts += torch.stack([matched, _histogram(similarity) - matched])
    return torch.stack(distributed.all_gather_object(counts)).sum(dim=0)


def _histogram(similarity: Tensor) -> Tensor:
    return torch.histc(similarity, bins=SIMILARITY_BINS, min=-1, max=1).long().cpu()


def _candidate_pairs(found: Retrieval) -> Tensor:
    """[P] every pair that either side asked for, once, in the order of images."""
    num_captions = found.image_of_caption.shape[0]
    rows = torch.arange(num_captions, device=found.image_of_caption.device)
    wanted_by_images = found.image_queries[:, None] * num_captions + found.image_to_text.candidates
    wanted_by_texts = found.text_to_image.candidates * num_captions + rows[:, None]
    wanted: Tensor = torch.unique(torch.cat([wanted_by_images.flatten(), wanted_by_texts.flatten()]))
    return wanted


def _match_pairs(
    model: TCL, pair_ids: Tensor, texts: EncodedCaptions, image_batches: ImageBatches, *, batch_size: int
) -> Tensor:
    """[P] ITM logit of "matched" of every pair; this process matches its part and gets the others'."""
    mine = my_part(pair_ids)
    num_captions = texts.tokens.shape[0]
    image, caption = mine // num_captions, mine % num_captions
    numbers, counts = torch.unique(image, return_counts=True)
    parts, start = [], 0
    batches = image_batches(numbers.tolist()) if len(numbers) else iter(())
    for images, group in zip(batches, chunks(len(counts), batch_size), strict=True):
        pairs_per_image = counts[group]
        stop = start + int(pairs_per_image.sum())
        image_rows = torch.arange(len(pairs_per_image), device=image.device).repeat_interleave(pairs_per_image)
        logits = match_batch(
            model, images, image_rows, caption[start:stop], texts.tokens, texts.attention_mask, batch_size=batch_size
        )
        parts.append(logits[:, 1].cpu())
        start = stop
    return gather_parts(torch.cat(parts) if parts else None, pair_ids.device)


def match_batch(
    model: TCL,
    images: Tensor,
    image_rows: Tensor,
    caption_rows: Tensor,
    tokens: Tensor,
    attention_mask: Tensor,
    *,
    batch_size: int,
) -> Tensor:
    """The matching head's logits of pairs of a few images, whose keys and values are computed once.

    Args:
        images: [b, 3, S, S], normalised.
        image_rows, caption_rows: [R] int64, the image and the caption of each pair.
        tokens, attention_mask: [T, L, D] of the text encoder and [T, L] bool, of all captions.
        batch_size: `PAIRS_PER_IMAGE_OF_A_BATCH` times as many pairs go through the fusion encoder at once.

    Returns:
        [R, 2] fp32 logits of "not matched" and "matched".
    """
    fusion, head = model.online.fusion_encoder, model.head("itm")
    if not isinstance(fusion, FusionEncoder) or head is None:
        raise ValueError("matching needs a fusion encoder and an ITM head")
    keys_values = fusion.keys_values(model.online.encode_image(images).tokens)
    lengths = attention_mask.sum(dim=1)[caption_rows]
    logits = torch.empty(len(caption_rows), 2, device=images.device)
    order = lengths.argsort(stable=True)  # and of one length by image, whose captions then share its keys and values
    for part in chunks(len(order), batch_size * PAIRS_PER_IMAGE_OF_A_BATCH):
        rows = order[part]
        captions, length = caption_rows[rows], int(lengths[rows].max())
        states = fusion(tokens[captions, :length], attention_mask[captions, :length], keys_values, grouped(image_rows[rows]))
        logits[rows] = head(states[:, 0]).float()
    return logits


def kept_dtype(device: torch.device) -> torch.dtype:
    """Under autocast the fusion encoder's first product rounds to half precision anyway, so tokens are kept in that."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
