export PATH := justfile_directory() / ".venv/bin:" + env("PATH")
export OMP_NUM_THREADS := env("OMP_NUM_THREADS", "2")

# what CI runs; with a real SLURM cluster where the machine can have one
check: format-check lint types layers
    python3 tests/slurm/cluster.py around pytest

# rewrite the files in the project's format
format:
    ruff format .
    ruff check --fix .

format-check:
    ruff format --check .

lint:
    ruff check .

types:
    mypy

layers:
    lint-imports

test *ARGS:
    pytest {{ARGS}}

# a real SLURM cluster for tests/slurm (Debian, root)
slurm-up *ARGS:
    python3 tests/slurm/cluster.py up {{ARGS}}

slurm-down:
    python3 tests/slurm/cluster.py down

# what a cluster and a server do to runs, for minutes on end: see tests/slurm/test_faults.py and tests/track/test_wandb.py
faults:
    python3 tests/slurm/cluster.py around pytest -s -m faults tests/slurm tests/track
