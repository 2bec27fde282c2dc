"""`tclx plan`: what would run."""

EXAMPLE = ""


def plan() -> None: ...
