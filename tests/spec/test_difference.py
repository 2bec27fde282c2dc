"""Promises of comparing specs that run folders hold."""

from __future__ import annotations

from tclx.spec.difference import identity, with_defaults
from tests.train.toy import toy_spec


def test_a_spec_of_an_earlier_version_is_that_of_this_one() -> None:
    """It lacks keys that came later, at the root and inside its sections."""
    now = toy_spec().model_dump(mode="json")
    earlier = {key: value for key, value in now.items() if key != "task"}
    earlier["objectives"] = {key: value for key, value in now["objectives"].items() if key != "sigmoid"}
    earlier["evaluation"] = {
        key: value for key, value in now["evaluation"].items() if key not in ("classification", "grounding")
    }
    assert earlier != now
    assert with_defaults(earlier) == now
    assert identity(earlier) == identity(now)


def test_seed_hardware_and_the_seed_of_what_it_starts_from_are_not_its_identity() -> None:
    def run(**changes: object) -> str:
        return identity(toy_spec(**changes).model_dump(mode="json"))

    same = {"seed": 7, "launch": {"backend": "slurm", "gpus_per_node": 0}, "data.num_workers": 2, "tracking": {}}
    assert run(**same) == run()
    assert run(**{"training.steps": 13}) != run()
    first, second, other = (f"/runs/toy-{name}/checkpoints" for name in ("s0-01234567", "s1-89abcdef", "b-s0-01234567"))
    assert run(init={"checkpoint": first}) == run(init={"checkpoint": second}) != run(init={"checkpoint": other})
