"""What is written down while it runs. metrics.jsonl in the run folder is always written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tclx.section import Count, Section, text_like

WandbName = Annotated[
    str,
    text_like(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", "letters, digits and `._-`, at most 128, the first a letter or digit"),
]
"""What W&B takes for a project or an entity in an address."""

ShortText = Annotated[str, Field(min_length=1, max_length=64)]
"""W&B refuses longer tags and cuts longer groups."""

Seconds = Annotated[int, Field(ge=1, le=86_400)]


class WandbSpec(Section):
    """Weights & Biases, as a copy of metrics.jsonl; the login comes from WANDB_API_KEY or netrc, never from a spec."""

    project: WandbName = "tclx"
    """The project its runs appear in."""
    entity: WandbName | None = None
    """The user or team that owns the project; null takes WANDB_ENTITY or the login's own."""
    mode: Literal["online", "offline", "disabled"] = "online"
    """`offline` writes into the run folder for `tclx sync`; `disabled` does nothing. WANDB_MODE, where it is set, wins."""
    group: ShortText | None = None
    """W&B group; null takes the experiment's name, so variants and seeds share it."""
    tags: tuple[ShortText, ...] = ()
    """W&B tags."""
    notes: str | None = None
    """W&B notes."""
    job_type: ShortText | None = None
    """W&B job type; null: `train`, or `finetune` where `init` names a trained model."""
    rows: Literal["live", "saved"] = "live"
    """`live`: rows go out as they are written; those that a resumed run writes again keep their first values there. `saved`:
    rows go out up to the newest checkpoint, so that W&B never shows what a resume takes back."""
    checkpoints: Literal["none", "best", "all"] = "none"
    """Which checkpoints become artifacts: none, the best at the end, or every one as it is saved."""
    checkpoint_files: Literal["upload", "reference"] = "upload"
    """`reference`: artifacts name the files where they lie (path, size, digest) and nothing is uploaded; for a file system that
    everybody sees, and checkpoints that `training.checkpoints` does not delete."""
    init_timeout_seconds: Seconds = 30
    """Seconds that W&B may take to answer before a warning; training does not wait for it."""
    finish_timeout_seconds: Seconds = 60
    """Seconds that a finished run waits for its last rows to arrive; `tclx sync` uploads the rest."""


class NotifySpec(Section):
    """Messages to people (chat, mail, telephone) through apprise, to the addresses in the environment's `TCLX_NOTIFY`."""

    on: Annotated[tuple[Literal["finished", "failed", "interrupted", "best"], ...], Field(min_length=1)] = (
        "finished",
        "failed",
        "best",
    )
    """Of what: a run that has `finished`, has `failed`, or was `interrupted` and does not go on by itself; a sweep's new `best`
    trial."""


class TrackingSpec(Section):
    """How often metrics are logged, and where besides metrics.jsonl."""

    log_every_steps: Count = 10
    """Optimizer steps between two rows of metrics.jsonl."""
    term_gradient_norms_every_steps: Count | None = None
    """Steps between two measurements of every term's own gradient norm; each costs one more backward pass per term."""
    term_gradients_every_steps: Count | None = 50
    """Steps between two comparisons of the terms' gradients at the last parameters of each encoder, which all terms share; null
    leaves it out. Such a step is written down as well."""
    tensorboard: bool = False
    """Whether rank 0 also keeps a copy of metrics.jsonl for TensorBoard, in `tensorboard/` of the run folder."""
    notify: NotifySpec | None = None
    """Messages when runs have ended; null sends none."""
    wandb: WandbSpec | None = None
    """Weights & Biases; null leaves it out, and wandb is never imported."""
