"""A table of a paper or a page: which runs are its rows, which metrics its columns. One file is one table."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tclx.section import Conflict, LocalPath, Section
from tclx.spec.experiment import SafeName
from tclx.spec.sweep import KeyPath, Scalar

Words = Annotated[str, Field(min_length=1, max_length=200)]


class RowSpec(Section):
    """Runs that differ in their seed: one row, or one for each variant of the experiment."""

    label: Words | None = None
    """What the row is called; null takes the variant's name, or the experiment's."""
    experiment: LocalPath | None = None
    """The experiment file whose runs these are. Give this or `runs`."""
    variant: SafeName | None = None
    """Which of its variants; null is a row for each."""
    changes: dict[KeyPath, Scalar] = Field(default_factory=dict)
    """Keys of the experiment that these runs have otherwise, as `--set` has them."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] | None = None
    """Which seeds; null takes the experiment's own."""
    runs: Annotated[tuple[Words, ...], Field(min_length=1)] | None = None
    """Instead of an experiment: run ids, or whatever `tclx results` takes. Nothing says then when they are out of date."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.experiment is None) == (self.runs is None):
            raise Conflict("give exactly one of `experiment` and `runs`", "experiment", "runs")
        if self.runs is not None:
            for key in ("variant", "changes", "seeds"):
                if getattr(self, key):
                    raise Conflict(f"`{key}` is of an experiment; `runs` are there as they are", key, "runs")
        return self


class DifferenceSpec(Section):
    """A last column: what each row has more or less than one of them, with its 95 % interval."""

    against: Words
    """The row that differences are taken from, by what it is called."""
    metric: Words
    """Of which metric."""


class TableSpec(Section):
    """A table whose numbers come from run folders, and which of them no longer do."""

    title: Words
    """What it shows, in a sentence."""
    rows: Annotated[tuple[RowSpec, ...], Field(min_length=1)]
    """Its rows, from the top."""
    columns: Annotated[tuple[Words, ...], Field(min_length=1)]
    """Metrics by the names of `tclx results --metric`: `text_to_image/r1`, `r_mean`."""
    split: Literal["test", "val"] = "test"
    """What the runs were evaluated on."""
    intervals: bool = False
    """95 % intervals in every cell; otherwise where there is one seed."""
    differences: DifferenceSpec | None = None
    """A last column of differences; null has none."""
    document: LocalPath | None = None
    """A Markdown file that holds the table between two comments; null is in none."""
