"""What does it cost to compare the gradients of the terms? A comparison against a whole step without its data, in alternating
turns, in processor time of one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.term_gradients [--spec FILE] [--turns 10]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

from tclx.data.dataset import training_captions
from tclx.data.tokenizer import build_tokenizer
from tclx.spec.load import load_experiments
from tclx.train.measure import term_relations
from tclx.train.optim import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, default=Path(__file__).resolve().parents[1] / "experiments" / "quickstart.yaml")
    parser.add_argument("--turns", type=int, default=10)
    asked = parser.parse_args()
    spec = load_experiments(asked.spec)[0].spec
    tokenizer = build_tokenizer(spec.data.tokenizer, training_captions(spec.data))
    task = spec.task
    model = task.build_model(spec, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    step, optimizer = task.build_step(model, spec), build_optimizer(model, spec.optim, official=False)
    batches = task.batches(spec, tokenizer=tokenizer, rank=0, world_size=1, start_micro_step=0)
    plain, compared = [], []
    for turn in range(asked.turns):
        batch = next(batches)
        started = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        output = step(batch, draw=turn, measure=False, soft_label_weight=0.0)
        before = time.process_time()
        term_relations(output, model.online.last_parameters(), scale=1.0)
        between = time.process_time() - before
        output.loss.backward()
        optimizer.step()
        task.after_update(model, spec, [output.keys])
        compared.append(between)
        plain.append(time.process_time() - started - between)
    share = median(one / other for one, other in zip(compared, plain, strict=True))
    every = spec.tracking.term_gradients_every_steps
    print(
        json.dumps(
            {
                "milliseconds of a step": round(1000 * median(plain)),
                "of a comparison": round(1000 * median(compared)),
                "ratio, median of pairs": round(share, 3),
                "share of training at the spec's interval, %": round(100 * share / every, 2) if every else None,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
