"""A sweep: the experiment, the search space, the objective. One file is one study."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, field_validator, model_validator

from tclx.section import Commit, Conflict, Count, Fraction, LocalPath, Section, Sensible, text_like
from tclx.spec.experiment import SafeName

Scalar = bool | int | float | str | None
"""Values that a single key of an experiment may have."""

KeyPath = Annotated[str, text_like(r"^[a-z_0-9]+(\.[a-z_0-9]+)*$", "a dotted key path of the experiment")]

StorageUrl = Annotated[
    str, text_like(r"^(sqlite:///|postgresql(\+[a-z0-9]+)?://)[^\s]+$", "`postgresql://USER@HOST/DATABASE` or `sqlite:///FILE`")
]
"""Where Optuna keeps the study."""


class PriorSpec(Section):
    """Where the best value is believed to be. The sampler's first, random trials go there, later ones where it was measured."""

    value: Scalar | None = None
    """The best guess: one of the choices, true or false of a switch; in a range, what lies within a tenth of it. Give this or
    `between`."""
    between: tuple[float, float] | None = None
    """The best guess of a range: from the first to the second."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """So many of the first trials are drawn from there, the others from everywhere."""


class ParameterSpec(Section):
    """The distribution of one key: exactly one of these, and a prior if there is one."""

    uniform: tuple[float, float] | None = None
    """Uniform between the first and the second."""
    log_uniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """Uniform on a logarithmic scale between the first and the second."""
    integer: tuple[int, int] | None = None
    """Uniform over the integers from the first to the second, both included."""
    log_integer: tuple[Count, Count] | None = None
    """Integers, uniform on a logarithmic scale."""
    choices: Annotated[tuple[Scalar, ...], Field(min_length=2)] | None = None
    """Categorical: one of these values."""
    on_or_off: Literal[True] | None = None
    """A section that may be switched off (null). Keys inside it are sampled only while it is on."""
    prior: PriorSpec | None = None
    """Where the best value is believed to be; null knows nothing."""

    @property
    def kinds(self) -> list[str]:
        """Which distributions are given: one, once it is checked."""
        return [name for name in type(self).model_fields if name != "prior" and getattr(self, name) is not None]

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = self.kinds
        if len(given) != 1:
            names = [name for name in type(self).model_fields if name != "prior"]
            raise Conflict("give exactly one of " + ", ".join(f"`{name}`" for name in names), *names)
        limits = self.limits
        if limits is not None and not limits[0] < limits[1]:
            message = f"the first limit must be below the second: {given[0]}: [{limits[0]:g}, {limits[1]:g}]"
            raise Conflict(message, given[0])
        if self.choices is not None and len({repr(choice) for choice in self.choices}) != len(self.choices):
            raise Conflict("a choice stands here twice", "choices")
        if self.prior is not None:
            self._check_prior(self.prior)
        return self

    def _check_prior(self, prior: PriorSpec) -> None:
        limits, value, between = self.limits, prior.value, prior.between
        has_value = value is not None or (between is None and None in (self.choices or ()))
        if has_value == (between is not None):
            raise Conflict("give exactly one of `value` and `between`", "prior")
        if limits is None:
            known = self.choices or (True, False)
            if between is not None:
                raise Conflict("`between` is of a range: give the `value`", "prior.between")
            if not any(value == one and type(value) is type(one) for one in known):
                raise Conflict(f"`value` is none of {', '.join(map(str, known))}", "prior.value")
            return
        first, last = between if between is not None else (value, value)
        if isinstance(first, bool | str | None) or isinstance(last, bool | str | None):
            raise Conflict("`value` of a range is a number", "prior.value")
        key = "prior.value" if between is None else "prior.between"
        if not (limits[0] <= first <= last <= limits[1]) or (between is not None and first == last):
            raise Conflict(f"lies not within [{limits[0]:g}, {limits[1]:g}], the smaller one first", key)

    @property
    def limits(self) -> tuple[float, float] | None:
        """The smallest and the largest value of a range; None for choices and switches."""
        return self.uniform or self.log_uniform or self.integer or self.log_integer


class SimplexSpec(Section):
    """Weights with a fixed sum, uniform on the simplex."""

    keys: Annotated[tuple[KeyPath, ...], Field(min_length=2)]
    """Keys of the weights. One whose section is off is left out of the sum."""
    total: Annotated[float, Field(gt=0)] = 1.0
    """Their sum."""


class ObjectiveSpec(Section):
    """The metric to optimize."""

    metric: Annotated[str, Field(min_length=1)]
    """A name from metrics.jsonl such as `retrieval/val/r_mean` (its best evaluation), or `cost/process_hours`."""
    direction: Literal["maximize", "minimize"]
    """Direction of optimization."""

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.direction == "maximize" else -1


class ConstraintSpec(Section):
    """A constraint; trials that violate it are recorded and never chosen."""

    metric: Annotated[str, Field(min_length=1)]
    """As an objective's."""
    at_most: float | None = None
    """Give this or `at_least`."""
    at_least: float | None = None
    """Give this or `at_most`."""

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            raise Conflict("give exactly one of `at_most` and `at_least`", "at_most", "at_least")
        return self


class TpeSampler(Section):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate, with the constant liar for running trials."""

    name: Literal["tpe"] = "tpe"
    """The default."""
    startup_trials: Count = 10
    """Random trials before the model is used."""


class GpSampler(Section):
    """Gaussian process with expected improvement: few, expensive trials of up to about a dozen parameters."""

    name: Literal["gp"]
    """Bayesian optimisation."""
    startup_trials: Count = 10
    """Random trials before the model is used."""


class CmaesSampler(Section):
    """CMA-ES (Hansen 2016), for many trials over correlated numerical parameters; categorical ones are sampled at random."""

    name: Literal["cmaes"]
    """Evolution strategy."""
    startup_trials: Count = 1
    """Random trials before the model is used."""


class QmcSampler(Section):
    """Sobol' sequence: low-discrepancy points."""

    name: Literal["qmc"]
    """Quasi-Monte Carlo."""


class RandomSampler(Section):
    """Independent draws (Bergstra & Bengio 2012)."""

    name: Literal["random"]
    """The baseline of every sampler."""


class GridSampler(Section):
    """Grid search: every combination once."""

    name: Literal["grid"]
    """Exhaustive."""
    points: Annotated[int, Field(ge=2), Sensible(at_most=1000)] = 5
    """Grid points per range, its limits included."""


class Nsga2Sampler(Section):
    """NSGA-II (Deb et al. 2002), for several objectives."""

    name: Literal["nsga2"]
    """Genetic."""
    population_size: Annotated[int, Field(ge=2), Sensible(at_most=100_000)] = 50
    """Population size."""


class HubSampler(Section):
    """A sampler of OptunaHub's registry (hub.optuna.org), or of a copy of it: `tclx sweep` runs the code of that package."""

    name: Literal["optunahub"]
    """Needs `tclx[optunahub]`."""
    package: Annotated[str, text_like(r"^samplers/[A-Za-z0-9_]+$", "a package of samplers such as `samplers/auto_sampler`")]
    """Its folder in the registry."""
    sampler: Annotated[str, text_like(r"^[A-Za-z_][A-Za-z0-9_]*$", "the name of a class such as `AutoSampler`")]
    """The package's class."""
    ref: Commit | None = None
    """Commit of the registry, whose code you have read. Give this or `registry`."""
    registry: LocalPath | None = None
    """A copy of the registry, a folder with `package/samplers` in it; for machines without a network."""
    arguments: dict[SafeName, Scalar] = Field(default_factory=dict)
    """What the class is made with, beside the seed."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.ref is None) == (self.registry is None):
            raise Conflict("give exactly one of `ref` and `registry`", "ref", "registry")
        return self


Sampler = Annotated[
    TpeSampler | GpSampler | CmaesSampler | QmcSampler | RandomSampler | GridSampler | Nsga2Sampler | HubSampler,
    Field(discriminator="name"),
]


class HyperbandPruner(Section):
    """Hyperband (Li et al. 2018): brackets of successive halving, from aggressive to conservative."""

    name: Literal["hyperband"]
    """A good default where early evaluations tell something."""
    reduction_factor: Annotated[int, Field(ge=2), Sensible(at_most=1000)] = 3
    """Reduction factor: one of so many trials is promoted to the next rung."""


class AshaPruner(Section):
    """Asynchronous successive halving (Li et al. 2020)."""

    name: Literal["asha"]
    """One bracket of Hyperband, the most aggressive."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """Reduction factor: one of so many trials is promoted to the next rung."""
    first_evaluations: Count = 1
    """Evaluations before the first rung."""


class MedianPruner(Section):
    """Median rule: stops a trial whose best value is worse than the median of the others at the same evaluation."""

    name: Literal["median"]
    """Simple and conservative."""
    startup_trials: Count = 5
    """Number of first trials that are never pruned."""
    first_evaluations: Annotated[int, Field(ge=0)] = 0
    """Evaluations before anything is pruned."""


class WilcoxonPruner(Section):
    """Stops a trial whose seeds do worse than the best trial's, by a Wilcoxon signed-rank test over seeds."""

    name: Literal["wilcoxon"]
    """For `seeds`."""
    p: Annotated[Fraction, Field(gt=0)] = 0.1
    """p-value below which a trial is stopped; smaller prunes less."""


Pruner = Annotated[
    HyperbandPruner | AshaPruner | MedianPruner | WilcoxonPruner,
    Field(discriminator="name"),
]


class Stagnation(Section):
    """Ends a search that has found nothing better for a while."""

    name: Literal["stagnation"] = "stagnation"
    """Counts trials since the best."""
    trials: Annotated[int, Field(ge=1), Sensible(at_most=100_000)] = 20
    """Complete trials without a better one."""


class ConfirmSpec(Section):
    """After the search: the best trials and the experiment itself, trained with fresh seeds and compared seed by seed."""

    top: Annotated[int, Field(ge=1), Sensible(at_most=100)] = 3
    """Number of best trials that are trained again, each compared with the experiment itself."""
    seeds: Annotated[int, Field(ge=3), Sensible(at_most=200)] = 5
    """Seeds at most; they are added one at a time while they can still decide."""
    keep_changes: bool = False
    """Keep the sweep's `changes`, such as fewer steps; false trains at the experiment's own length."""


class SweepSpec(Section):
    """A study: trials of one experiment with keys sampled from `space`. Trial 0 is the unchanged experiment."""

    name: SafeName
    """What the study is called: the same name is the same study, and running it again continues it."""
    experiment: LocalPath
    """The experiment that is varied."""
    variant: SafeName | None = None
    """Which of its variants, where it has several."""
    variants: Literal["all"] | Annotated[tuple[SafeName, ...], Field(min_length=2)] | None = None
    """Instead of `variant`: these variants, each with a search and a confirmation of its own. Keys of a section that a variant
    has not are left out of its space."""
    changes: dict[KeyPath, Scalar] = Field(default_factory=dict)
    """Keys of the experiment set for all trials, trial 0 included: fewer steps, for instance."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] | None = None
    """Every trial is run with each of these seeds and scored by the mean; null takes the experiment's own seed."""
    objective: Annotated[tuple[ObjectiveSpec, ...], Field(min_length=1)]
    """One, or a list of several for a Pareto front."""
    constraints: tuple[ConstraintSpec, ...] = ()
    """Constraints on trials."""
    space: dict[KeyPath, ParameterSpec] = Field(default_factory=dict)
    """Search space: keys of the experiment and their distributions."""
    simplex: tuple[SimplexSpec, ...] = ()
    """Weights with a fixed sum, in addition to `space`."""
    points: tuple[dict[KeyPath, Scalar], ...] = ()
    """Initial trials after trial 0: values of some keys of the space; the others as in the experiment."""
    sampler: Sampler = TpeSampler()
    """Sampler of the next trial."""
    sampler_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the sampler; with several workers the order of their trials matters, too."""
    pruner: Pruner | None = None
    """Pruner, which stops unpromising trials early; null lets all finish."""
    num_trials: Annotated[int, Field(ge=1), Sensible(at_most=1_000_000)]
    """Number of trials of the study (of each variant), trial 0 and finished ones included."""
    confirm: ConfirmSpec | None = None
    """Is a trial better than the experiment itself? Asked with fresh seeds when the search has ended; null does not ask."""
    num_workers: Annotated[int, Field(ge=1), Sensible(at_most=10_000)] = 1
    """Number of parallel trials: processes on this machine, or tasks of a SLURM array, as the experiment's `launch` says."""
    trials_per_gpu: Annotated[int, Field(ge=1), Sensible(at_most=100)] = 1
    """Number of trials that share one GPU."""
    stop: Stagnation | None = None
    """Ends the search before `num_trials` where more trials promise little; null tries them all."""
    max_gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Ends the search (of each variant) once its trials have trained for so many GPU-hours, or hours of processes on a CPU:
    none starts after that, running ones finish. A confirmation comes on top."""
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """No new trial starts this many hours after `tclx sweep`; running ones finish."""
    storage: StorageUrl | None = None
    """Where Optuna keeps the study; null is a journal file in the study's folder."""

    @property
    def varied(self) -> list[str]:
        """The keys of the experiment that a trial may change."""
        return [*self.space, *(key for simplex in self.simplex for key in simplex.keys)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.space and not self.simplex:
            raise Conflict("a sweep needs a `space` (or a `simplex`): the keys that vary", "space", "simplex")
        if self.pruner is not None and len(self.objective) > 1:
            message = "a pruner needs a single objective: Optuna compares one value; give `pruner: null`"
            raise Conflict(message, "pruner", "objective")
        if isinstance(self.pruner, WilcoxonPruner) and len(self.seeds or ()) < 2:
            raise Conflict("the Wilcoxon pruner compares seeds: give at least two `seeds`", "pruner", "seeds")
        if self.confirm is not None and len(self.objective) > 1:
            raise Conflict("a confirmation compares one value: give a single objective", "confirm", "objective")
        if self.stop is not None and len(self.objective) > 1:
            raise Conflict("what more trials promise is known of one value: give a single objective", "stop", "objective")
        if any(one.prior is not None for one in self.space.values()) and self.sampler.name not in ("tpe", "gp", "random"):
            message = f"a `prior` is where a sampler's first, random trials go; `{self.sampler.name}` has no such trials"
            raise Conflict(message, "sampler", "space", hint="`tpe`, `gp` or `random`")
        if self.variant is not None and self.variants is not None:
            raise Conflict("`variant` is one of them, `variants` are several: give one of the two", "variant", "variants")
        if self.variants is not None and len(self.objective) > 1:
            raise Conflict("variants are compared by one value: give a single objective", "variants", "objective")
        return self

    @field_validator("storage", mode="after")
    @classmethod
    def _without_password(cls, storage: str | None) -> str | None:
        parts = urlsplit(storage or "")
        if parts.password is not None or "password" in parse_qs(parts.query):
            raise ValueError("a password never stands in a spec: take it out of the URL; PGPASSWORD or ~/.pgpass has it")
        return storage
