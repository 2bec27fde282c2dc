"""Promises of the launch section: what would break or leak in a job's script is refused in the spec, with the key to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tclx.spec.launch import TAKEN_OPTIONS, LocalLaunch, SlurmLaunch
from tests.spec.documents import GOOD, load_one, refusal


def slurm(folder: Path, launch: str) -> SlurmLaunch:
    found = load_one(folder, f"{GOOD}\nlaunch: {{backend: slurm, {launch}}}\n").spec.launch
    assert isinstance(found, SlurmLaunch)
    return found


def refused(folder: Path, launch: str) -> str:
    """The message without its place."""
    return refusal(folder, f"{GOOD}\nlaunch: {{backend: slurm, {launch}}}\n").partition(": ")[2]


NAME = "must be letters, digits and `._:@/+,=-`, the first a letter or digit, not "
OPTION = "an option of sbatch by its long name, without the dashes"


@pytest.mark.parametrize("key", ["partition", "account", "qos"])
@pytest.mark.parametrize("name", ["my lab", "a\\nb", "a\\n", "a;b", "$HOME", "a`b`", "a'b", "-a", "--wrap=x", "", "x" * 129])
def test_a_name_that_is_no_name_is_refused(tmp_path: Path, key: str, name: str) -> None:
    assert refused(tmp_path, f'{key}: "{name}"').startswith(f"launch.{key}: {NAME}")


@pytest.mark.parametrize("name", ["gpu", "a100-80gb", "gpu,cpu", "lab@site", "project/sub", "x" * 128])
def test_a_name_as_clusters_have_them_is_kept(tmp_path: Path, name: str) -> None:
    assert slurm(tmp_path, f'partition: "{name}"').partition == name


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ('constraint: "a100 nvlink"', "launch.constraint: must be node features joined with `&` or `|`, without blanks, not"),
        ('constraint: "a\\nb"', "launch.constraint: must be node features"),
        ('python: "/my env/bin/python"', "launch.python: must be the path of a Python, without blanks, not"),
        ('python: "python; rm x"', "launch.python: must be the path of a Python"),
        ('python: "$(x)"', "launch.python: must be the path of a Python"),
        ('network_interface: "ib0 ib1"', "launch.network_interface: must be a network interface such as `ib0`, not"),
        ('network_interface: "$(x)"', "launch.network_interface: must be a network interface"),
        ('setup: ["module load a\\nrm -r x"]', "launch.setup[0]: must be one line of shell, not"),
        ('setup: ["true", "a\\nb"]', "launch.setup[1]: must be one line of shell, not"),
        ('setup: ["a\\rb"]', "the text holds the control character U+000D"),
        ("setup: module load cuda", "launch.setup: must be a list, not"),
        (
            'sbatch_options: {exclude: "a\\n#SBATCH --uid=0"}',
            "launch.sbatch_options.exclude: must be one line without quotes or a whole number or `true`, not the text `a\n",
        ),
        ('sbatch_options: {exclude: "a\'b"}', "launch.sbatch_options.exclude: must be "),
        ("sbatch_options: {exclusive: false}", "launch.sbatch_options.exclusive: must be "),
        ("sbatch_options: {exclusive: null}", "launch.sbatch_options.exclusive: must be "),
        ('sbatch_options: {"--nice": 1}', f"launch.sbatch_options.--nice: must be {OPTION}, not `--nice`"),
        ('sbatch_options: {"a b": a}', f"launch.sbatch_options.a b: must be {OPTION}, not `a b`"),
        ("sbatch_options: {Exclude: a}", f"launch.sbatch_options.Exclude: must be {OPTION}, not `Exclude`"),
        ("num_nodes: 0", "launch.num_nodes: must be at least 1, not 0"),
        ("gpus_per_node: -1", "launch.gpus_per_node: must be at least 0, not -1"),
        ("time_limit_minutes: 1:00:00", "launch.time_limit_minutes: must be a whole number, not the text `1:00:00`"),
        ("signal_seconds: 5", "launch.signal_seconds: must be at least 10, not 5"),
        ("gpus: 2", "launch.gpus: unknown key (known here: backend, partition"),
        ("num_processes: 2", "launch.num_processes: unknown key"),
    ],
)
def test_a_value_that_would_break_the_script_is_refused_at_its_key(tmp_path: Path, launch: str, message: str) -> None:
    assert refused(tmp_path, launch).startswith(message)


@pytest.mark.parametrize("option", sorted(TAKEN_OPTIONS))
def test_an_option_that_tclx_sets_names_the_key_that_does(tmp_path: Path, option: str) -> None:
    message = refused(tmp_path, f'sbatch_options: {{{option}: "1"}}')
    assert message == f"launch.sbatch_options.{option}: is set elsewhere: {TAKEN_OPTIONS[option]}"


@pytest.mark.parametrize(
    ("abbreviated", "options"),
    [
        ("job-nam", "`--job-name`"),
        ("j", "`--job-name`"),
        ("part", "`--partition`"),
        ("gpus-per", "`--gpus-per-node` or `--gpus-per-task`"),
    ],
)
def test_an_abbreviation_of_such_an_option_is_refused_as_well(tmp_path: Path, abbreviated: str, options: str) -> None:
    message = refused(tmp_path, f'sbatch_options: {{{abbreviated}: "1"}}')
    assert message.startswith(f"launch.sbatch_options.{abbreviated}: is set elsewhere (sbatch reads it as {options}): ")


def test_all_wrong_options_are_named_each_at_its_line(tmp_path: Path) -> None:
    options = (
        "launch:\n  backend: slurm\n  sbatch_options:\n    time: 5\n    exclude: n1\n    nodes: 2\n    Tmp: 1\n    job-nam: x\n"
    )
    lines = refusal(tmp_path, f"{GOOD}{options}").splitlines()
    first = len(GOOD.splitlines()) + 4
    assert [line.split(": ")[0:2] for line in lines] == [
        [f"toy.yaml:{first}:5", "launch.sbatch_options.time"],
        [f"toy.yaml:{first + 2}:5", "launch.sbatch_options.nodes"],
        [f"toy.yaml:{first + 3}:5", "launch.sbatch_options.Tmp"],
        [f"toy.yaml:{first + 4}:5", "launch.sbatch_options.job-nam"],
    ]


def test_an_option_of_any_name_may_be_set_on_the_command_line(tmp_path: Path) -> None:
    overrides = ["launch={backend: slurm}", "launch.sbatch_options.tmp=100G", "launch.sbatch_options.exclusive=true"]
    found = load_one(tmp_path, overrides=overrides).spec.launch
    assert isinstance(found, SlurmLaunch)
    assert found.sbatch_options == {"tmp": "100G", "exclusive": True}


def test_every_key_that_stands_for_an_option_is_a_key() -> None:
    """The advice must not send anybody to a key that does not exist."""
    named = {words.split(";")[-1].split(":")[0].strip() for words in TAKEN_OPTIONS.values() if "launch." in words}
    keys = {name.removeprefix("launch.") for name in named if name.startswith("launch.")}
    assert keys
    assert keys <= set(SlurmLaunch.model_fields)


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("export WANDB_API_KEY=0123abc", "WANDB_API_KEY"),
        ("export HF_TOKEN='hf_abc'", "HF_TOKEN"),
        ("wandb_api_key=abc python", "wandb_api_key"),
        ("export MY2_TOKEN=abc", "MY2_TOKEN"),
        ("export HF_TOKEN2=abc", "HF_TOKEN2"),
        ("export AWS_SECRET_ACCESS_KEY=abc", "AWS_SECRET_ACCESS_KEY"),
        ("true; DB_PASSWORD=abc", "DB_PASSWORD"),
        ("login --token=abc", "token"),
    ],
)
def test_a_secret_that_is_written_out_is_refused_and_not_repeated(tmp_path: Path, line: str, secret: str) -> None:
    message = refused(tmp_path, f'setup: ["module load x", "{line}"]')
    assert message.startswith(
        f"launch.setup: `setup` writes the secret {secret} into the job's script; export it where you submit"
    )
    assert "abc" not in message


@pytest.mark.parametrize(
    "line",
    [
        "export WANDB_API_KEY=$(cat ~/.wandb)",
        "export WANDB_API_KEY=`cat ~/.wandb`",
        "export HF_TOKEN=$OTHER",
        'export HF_TOKEN=\\"$OTHER\\"',
        "export HF_TOKEN_PATH=/home/me/token",
        "export PASSWORD_FILE=/run/x",
        "export TOKENIZERS_PARALLELISM=false",
        "module load cuda/12.4 && source ~/env/bin/activate",
    ],
)
def test_a_line_without_a_secret_is_kept(tmp_path: Path, line: str) -> None:
    assert slurm(tmp_path, f'setup: ["{line}"]').setup == (line.replace('\\"', '"'),)


def test_a_secret_among_the_options_is_refused_too(tmp_path: Path) -> None:
    message = refused(tmp_path, 'sbatch_options: {export: "ALL,HF_TOKEN=hf_abc"}')
    assert message.startswith(
        "launch.sbatch_options.export: `sbatch_options.export` writes the secret HF_TOKEN into the job's script"
    )
    assert "abc" not in message


def test_all_secrets_are_named_at_once(tmp_path: Path) -> None:
    options = '{wckey: "TOKEN=abc"}'
    lines = f'setup: ["export PGPASSWORD=abc", "module load x", "export HF_TOKEN=abc"], sbatch_options: {options}'
    message = refused(tmp_path, lines)
    assert "`setup` writes the secret PGPASSWORD and `setup` writes the secret HF_TOKEN" in message
    assert "and `sbatch_options.wckey` writes the secret TOKEN into the job's script" in message
    assert "abc" not in message


@pytest.mark.parametrize(("signal_seconds", "minutes"), [(60, 1), (120, 2), (3600, 60)])
def test_a_time_limit_leaves_something_to_train_in(tmp_path: Path, signal_seconds: int, minutes: int) -> None:
    message = refused(tmp_path, f"signal_seconds: {signal_seconds}, time_limit_minutes: {minutes}")
    assert message == (
        f"launch.time_limit_minutes: `signal_seconds` {signal_seconds} leaves nothing of `time_limit_minutes` {minutes}; "
        f"below {60 * minutes}"
    )
    assert slurm(tmp_path, f"signal_seconds: {signal_seconds - 1}, time_limit_minutes: {minutes}").time_limit_minutes == minutes


def test_one_process_trains_on_one_gpu(tmp_path: Path) -> None:
    assert refused(tmp_path, "gpus_per_node: 4, tasks_per_node: 8").startswith(
        "launch.tasks_per_node: `tasks_per_node` is 8 and `gpus_per_node` 4: one process trains on one GPU; "
        "leave `tasks_per_node` out"
    )


@pytest.mark.parametrize(
    ("launch", "num_processes"),
    [
        ("gpus_per_node: 4", 4),
        ("gpus_per_node: 4, tasks_per_node: 4, num_nodes: 2", 8),
        ("gpus_per_node: 0", 1),
        ("gpus_per_node: 0, tasks_per_node: 3, num_nodes: 2", 6),
        ("num_nodes: 2", 2),
    ],
)
def test_processes_are_counted_over_nodes(tmp_path: Path, launch: str, num_processes: int) -> None:
    assert slurm(tmp_path, launch).num_processes == num_processes


def test_options_keep_their_kinds(tmp_path: Path) -> None:
    launch = slurm(tmp_path, 'sbatch_options: {exclude: "n[1-3]", exclusive: true, nice: 100, begin: "now+1hour"}')
    assert launch.sbatch_options == {"exclude": "n[1-3]", "exclusive": True, "nice": 100, "begin": "now+1hour"}


# ---------------------------------------------------------------------------------------------------------- switching backend


def test_the_default_is_this_machine(tmp_path: Path) -> None:
    assert load_one(tmp_path).spec.launch == LocalLaunch()
    text = f"{GOOD}\nlaunch: {{num_processes: 2}}\n"
    assert load_one(tmp_path, text).spec.launch == LocalLaunch(num_processes=2)


def test_set_switches_the_backend_and_drops_the_other_ones_keys(tmp_path: Path) -> None:
    text = f"{GOOD}\nlaunch: {{num_processes: 2, max_parallel_runs: 3}}\n"
    found = load_one(tmp_path, text, ["launch={backend: slurm}", "launch.partition=gpu", "launch.num_nodes=2"]).spec.launch
    assert found == SlurmLaunch(backend="slurm", partition="gpu", num_nodes=2)
    text = f"{GOOD}\nlaunch: {{backend: slurm, partition: gpu, setup: [module load cuda]}}\n"
    assert load_one(tmp_path, text, ["launch={backend: local}"]).spec.launch == LocalLaunch()


def test_another_backend_alone_keeps_nothing_that_it_does_not_know(tmp_path: Path) -> None:
    """Replacing the section and changing its tag say the same."""
    text = f"{GOOD}\nlaunch: {{backend: slurm, partition: gpu}}\n"
    assert load_one(tmp_path, text, ["launch.backend=local"]).spec.launch == LocalLaunch()


def test_an_unknown_backend_names_those_there_are(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"{GOOD}\nlaunch: {{backend: slrum}}\n")
    assert message.endswith("launch.backend: must be one of local, slurm, not `slrum` (did you mean `slurm`?)")


def test_a_key_of_the_other_backend_is_unknown_here(tmp_path: Path) -> None:
    assert "launch.partition: unknown key" in refusal(tmp_path, f"{GOOD}\nlaunch: {{partition: gpu}}\n")
