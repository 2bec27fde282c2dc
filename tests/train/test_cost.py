"""What a run costs, against sums that can be checked by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from tclx import distributed
from tclx.data.batch import longest_batch
from tclx.model.tcl import TCL
from tclx.plan import DataFacts, make_plan
from tclx.tasks.pretrain.features import HardNegatives
from tclx.tasks.pretrain.step import TrainingStep
from tclx.train.balancing import Balancing
from tclx.train.cost import GIB, Cost, estimate_cost
from tests.model.tiny import ALL_TERMS, TEXT, VIT, VOCAB_SIZE, tiny_spec

REAL_SIZE: dict[str, Any] = {
    "image_encoder": {"name": "vit_base_patch16_224", "image_size": 256},
    "text_encoder": {"name": "bert-base-uncased", "num_layers": 6},
    "fusion_encoder": {"num_layers": 6},
    "embed_dim": 256,
    "queue_size": 65536,
}


def cost(
    objectives: dict[str, Any] = ALL_TERMS,
    *,
    vocab_size: int = VOCAB_SIZE,
    training: dict[str, Any] | None = None,
    **model: Any,
) -> Cost:
    spec = tiny_spec(objectives, training=training, **model)
    plan = make_plan(spec, DataFacts(num_train_rows=1_000_000, num_train_images=1_000_000), without_data=True)
    return estimate_cost(spec, plan, vocab_size=vocab_size)


def dense(rows: float, *widths: int) -> float:
    """Operations of matrix products that lead `rows` vectors through these widths."""
    return sum(2 * rows * before * after for before, after in pairwise(widths))


def attention(queries: float, keys: float, width: int) -> float:
    return 2 * 2 * queries * keys * width


def test_parameters_are_the_built_models() -> None:
    tcl = TCL(tiny_spec(), vocab_size=VOCAB_SIZE, pad_token_id=0)
    estimate = cost()
    assert estimate.parameters_total == sum(parameter.numel() for parameter in tcl.parameters())
    assert estimate.parameters_trainable == sum(parameter.numel() for parameter in tcl.online.parameters()) + 2 * 24 + 2 + 1


def test_a_checkpoint_is_the_state_and_two_moments() -> None:
    tcl = TCL(tiny_spec(), vocab_size=VOCAB_SIZE, pad_token_id=0)
    state = sum(tensor.numel() * tensor.element_size() for tensor in tcl.state_dict().values())
    moments = sum(2 * 4 * parameter.numel() for parameter in tcl.parameters() if parameter.requires_grad)
    assert cost().checkpoint_gib == pytest.approx((state + moments) / GIB)


def test_arithmetic_of_the_published_model() -> None:
    batch, tokens, patches, width = 8, 30, 257, 768
    estimate = cost(vocab_size=30522, training={"batch_size_per_gpu": batch}, **REAL_SIZE)
    vit = dense(256, width, width) + 12 * (dense(patches, width, 4 * width, width) + 4 * dense(patches, width, width))
    vit += 12 * attention(patches, patches, width)
    layer = 4 * dense(tokens, width, width) + dense(tokens, width, 3072, width) + attention(tokens, tokens, width)
    text = 6 * layer
    keys_values = 6 * 2 * dense(patches, width, width)
    fusion = 6 * (layer + 2 * dense(tokens, width, width) + attention(tokens, patches, width))
    words = dense(0.15 * (tokens - 1), width, width, 30522)
    queue = 2 * 256 * 65536
    # Forward and twice that backward (no gradient reaches the pixels); the momentum encoders forward.
    trained = 3 * (vit + 2 * text + keys_values + 4 * fusion + words) - dense(256, width, width) + (3 * 4 - 4) * queue
    momentum = vit + 2 * text + keys_values + fusion + 2 * queue
    assert estimate.parameters_trainable == 209_937_725
    assert estimate.flops_per_step / batch == pytest.approx(trained + momentum, rel=0.01)


def test_accumulation_computes_more_and_holds_no_more_activations() -> None:
    once, twice = cost(), cost(training={"accumulation_steps": 2})
    assert twice.flops_per_step == 2 * once.flops_per_step
    assert twice.peak_memory_gib - once.peak_memory_gib <= 4 * once.parameters_trainable / GIB


def test_a_larger_batch_adds_its_activations() -> None:
    small, middle, large = (cost(training={"batch_size_per_gpu": size}, queue_size=0).peak_memory_gib for size in (16, 32, 48))
    assert large - middle == pytest.approx(middle - small, rel=0.05)
    assert middle > small


def test_half_precision_and_recomputation_hold_less() -> None:
    plain, half, recomputed = (
        cost(training={"batch_size_per_gpu": 64, **changes}, queue_size=0)
        for changes in ({}, {"precision": "bf16"}, {"activation_checkpointing": True})
    )
    assert half.peak_memory_gib < 0.8 * plain.peak_memory_gib
    assert recomputed.peak_memory_gib < half.peak_memory_gib
    assert half.flops_per_step == plain.flops_per_step
    assert 1.2 < recomputed.flops_per_step / plain.flops_per_step < 1.35


@pytest.mark.parametrize("objectives", [{"cma": {}}, {"imc": {}, "soft_labels": None}, {"lmi": {}}, {"itm": {}}, {"mlm": {}}])
def test_a_term_alone_costs_less_than_all(objectives: dict[str, Any]) -> None:
    alone, together = cost(objectives), cost()
    assert alone.flops_per_step < together.flops_per_step
    assert alone.peak_memory_gib < together.peak_memory_gib


def counted_on_the_cpu(objectives: dict[str, Any]) -> int:
    """Operations of a step's forward and backward passes as training takes them."""
    spec = tiny_spec(objectives)
    model, batch = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0), longest_batch(spec)
    with FlopCounterMode(display=False) as counter:
        output = TrainingStep(model, spec)(batch, soft_label_weight=0.4, draw=0, negatives=HardNegatives(batch.row, batch.row))
        balancing = Balancing(model.balance, [each for each in model.parameters() if each.requires_grad], [], done=1)
        if balancing.projects:
            balancing.add(output, scale=1.0)
        else:
            output.loss.backward()
    return counter.get_total_flops()


def test_projecting_gradients_takes_a_pass_and_a_gradient_for_each_term() -> None:
    objectives = {**ALL_TERMS, "balance": {"name": "pcgrad"}}
    projected, plain = cost(objectives), cost()
    times = counted_on_the_cpu(objectives) / counted_on_the_cpu(ALL_TERMS)
    assert 2 < times < len(ALL_TERMS)
    assert projected.flops_per_step / plain.flops_per_step == pytest.approx(times, rel=0.02)
    gradients = 4 * plain.parameters_trainable / GIB
    assert 3 * gradients <= projected.peak_memory_gib - plain.peak_memory_gib <= 7 * gradients


def test_a_frozen_image_encoder_is_run_forward_once() -> None:
    """Learning, it runs forward, twice that backward, and forward again as momentum encoder; frozen, forward alone."""
    sizes = {**REAL_SIZE, "fusion_encoder": None}
    image = {**REAL_SIZE["image_encoder"], "weights": "hub"}
    batch = {"batch_size_per_gpu": 4, "steps": 10, "accumulation_steps": 1}
    learning = cost({"cma": {}}, training=batch, **{**sizes, "image_encoder": image})
    frozen = cost({"cma": {}}, training=batch, **{**sizes, "image_encoder": {**image, "frozen": True}})
    layer = dense(257, 768, 2304) + attention(257, 257, 768) + dense(257, 768, 768) + dense(257, 768, 3072, 768)
    forward = 4 * (12 * layer + dense(256, 768, 768))
    assert learning.flops_per_step - frozen.flops_per_step == pytest.approx(3 * forward, rel=0.01)
    assert learning.parameters_trainable - frozen.parameters_trainable == pytest.approx(86e6, rel=0.01)
    assert frozen.peak_memory_gib < learning.peak_memory_gib


def test_activations_are_what_autograd_keeps_on_the_cpu() -> None:
    """A dual encoder without dropout, measured: the CPU keeps the same tensors as the estimate says, within a few percent."""
    text = {**TEXT, "dropout": 0.0}
    spec = tiny_spec({"cma": {}, "soft_labels": None}, text_encoder=text, training={"batch_size_per_gpu": 64}, queue_size=0)
    tcl = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    own = {tensor.untyped_storage().data_ptr() for tensor in tcl.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        image = tcl.online.encode_image(torch.randn(64, 3, 64, 64)).embedding
        caption = torch.ones(64, 30, dtype=torch.int64)
        words = tcl.online.encode_text(caption, caption.bool()).embedding
        loss = (image @ words.T).log_softmax(dim=1).sum() + (words @ image.T).log_softmax(dim=1).sum()
    loss.backward()
    plan = make_plan(spec, DataFacts(num_train_rows=1_000, num_train_images=1_000), without_data=True)
    estimate = estimate_cost(spec, plan, vocab_size=VOCAB_SIZE)
    activations = estimate.peak_memory_gib - estimate.checkpoint_gib
    assert activations * GIB == pytest.approx(sum(kept.values()), rel=0.1)


def test_deep_stacks_are_added_up_to_what_acting_them_out_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer of a stack costs what the one before it costs."""
    deep = {
        "image_encoder": {**VIT, "depth": 4},
        "text_encoder": {**TEXT, "num_layers": 5},
        "fusion_encoder": {"num_layers": 3},
    }
    whole = cost(**deep)
    monkeypatch.setattr("tclx.train.cost.MAX_ACTED_OUT", 2)
    added_up = cost(**deep)
    assert added_up.parameters_total == whole.parameters_total
    assert added_up.parameters_trainable == whole.parameters_trainable
    assert added_up.flops_per_step == whole.flops_per_step
    assert added_up.checkpoint_gib == pytest.approx(whole.checkpoint_gib)
    assert added_up.peak_memory_gib == pytest.approx(whole.peak_memory_gib, rel=1e-3)


def in_processes(number: int, objectives: dict[str, Any] = ALL_TERMS, **more: Any) -> Cost:
    spec = tiny_spec(objectives, **more)
    spec = spec.model_copy(update={"launch": spec.launch.model_copy(update={"num_processes": number})})
    return estimate_cost(spec, make_plan(spec, DataFacts(10**6, 10**6), without_data=True), vocab_size=VOCAB_SIZE)


def test_what_is_compared_across_processes_is_counted() -> None:
    """LMI has logits [B, G, N] with the locals of all processes, and autograd keeps some; none of it where all stay apart."""
    few, many = (in_processes(number, queue_size=4096) for number in (2, 66))
    spec = tiny_spec(ALL_TERMS)
    size, num_locals = spec.training.batch_size_per_gpu, 16 + spec.data.max_caption_tokens - 1
    more_logits = size * (66 - 2) * size * num_locals * 4 / GIB
    assert many.peak_memory_gib - few.peak_memory_gib > more_logits
    assert many.peak_memory_gib - few.peak_memory_gib < 12 * more_logits
    assert many.flops_per_step / 66 > few.flops_per_step / 2
    apart = {**ALL_TERMS, "in_batch_negatives": "local"}
    few, many = (in_processes(number, apart, queue_size=4096) for number in (2, 66))
    assert many.flops_per_step / 66 == few.flops_per_step / 2


def test_acting_as_one_of_several_ends_with_it() -> None:
    in_processes(3)
    assert distributed.world_size() == 1
    assert torch.equal(distributed.gather(torch.ones(2, 3)), torch.ones(2, 3))


def test_a_process_that_trains_with_others_acts_alone() -> None:
    """As the main process does for a GPU's utilisation: the others would wait for what it exchanged, for ever."""
    alone = in_processes(3)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert in_processes(3) == alone
        assert distributed.world_size() == 1
    finally:
        dist.destroy_process_group()
