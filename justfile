export PATH := justfile_directory() / ".venv/bin:" + env("PATH")
export OMP_NUM_THREADS := env("OMP_NUM_THREADS", "2")

# what CI runs
check: format-check lint types layers test

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
