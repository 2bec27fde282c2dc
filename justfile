export PATH := justfile_directory() / ".venv/bin:" + env("PATH")
export OMP_NUM_THREADS := env("OMP_NUM_THREADS", "1")

# what CI runs; with a real SLURM cluster and a real PostgreSQL where the machine can have them
check: format-check lint types layers
    python3 tests/slurm/cluster.py around python3 -m tests.postgres around pytest -n 2

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

# the documentation as a site, in site/
site:
    NO_MKDOCS_2_WARNING=1 mkdocs build --strict

test *ARGS:
    pytest {{ARGS}}

# a real SLURM cluster for tests/slurm (Debian, root)
slurm-up *ARGS:
    python3 tests/slurm/cluster.py up {{ARGS}}

slurm-down:
    python3 tests/slurm/cluster.py down

# a real PostgreSQL for tests/sweep (Debian)
postgres-up *ARGS:
    python3 -m tests.postgres up {{ARGS}}

postgres-down:
    python3 -m tests.postgres down

# what clusters, databases, disks and servers do to runs and sweeps, for minutes on end
faults:
    python3 tests/slurm/cluster.py around python3 -m tests.postgres around pytest -s -m faults

# every check that needs a GPU, in under ten minutes (docs/gpu.md)
gpu *ARGS:
    python -m benchmarks.gpu {{ARGS}}

# the ablation on real photos, twelve runs one after the other on one GPU (TCLX_DATA holds flickr8k; pip install 'tclx[pretrained]')
gpu-ablation *ARGS:
    tclx run experiments/ablation/photos.yaml --set training.device=cuda --set training.precision=bf16 --set data.num_workers=8 {{ARGS}}

# the tables of docs/performance.md from benchmarks/results/
gpu-page:
    python -m benchmarks.gpu.page

# one folder that runs them on a bare machine without a network
gpu-pack *ARGS:
    python -m benchmarks.gpu.pack {{ARGS}}

# break one line at a time and run the nearest tests: which lines does no test need?
mutate *ARGS:
    python benchmarks/mutate.py {{ARGS}}

# the page of all keys
reference:
    tclx explain --all -o docs/reference.md

# a training step against the same mathematics written plainly (benchmarks/plain.py)
bench-step *ARGS:
    python -m benchmarks.step {{ARGS}}

# images from a folder to a batch, against Pillow
bench-data *ARGS:
    python -m benchmarks.data_pipeline {{ARGS}}

# commands that people wait for, against a Python that does nothing
bench-cli *ARGS:
    python -m benchmarks.cli {{ARGS}}

# what a trial costs beside its training, against Hydra's Optuna sweeper
bench-sweep *ARGS:
    python -m benchmarks.sweep_overhead {{ARGS}}

# the fusion layers of a training step, with shared and with copied keys and values
bench-fusion *ARGS:
    python -m benchmarks.fusing {{ARGS}}

# ITM re-ranking, pairs grouped by image and not
bench-eval *ARGS:
    python -m benchmarks.reranking {{ARGS}}

# memory of a process with layers divided among processes and with whole copies
bench-fsdp *ARGS:
    python -m benchmarks.fsdp {{ARGS}}

# bytes between processes as batch and their number grow
bench-scale *ARGS:
    python -m benchmarks.wire {{ARGS}}
