"""Promises of the guard of job scripts: the ways in which people write secrets out are known, references are let through."""

from __future__ import annotations

import time

import pytest

from tclx.spec.secrets import written_secret

WRITTEN = {
    "export WANDB_API_KEY=0123abc": "WANDB_API_KEY",
    "export PGPASSWORD=hunter2": "PGPASSWORD",
    "export PGPASSWORD='hunter2'": "PGPASSWORD",
    "MYSQL_PWD=hunter2 mysql": "MYSQL_PWD",
    "export OPENAI_KEY=hunter2": "OPENAI_KEY",
    "PASS=hunter2": "PASS",
    "export DB_PASS=hunter2": "DB_PASS",
    "CREDENTIALS=hunter2": "CREDENTIALS",
    "export AWS_SECRET_ACCESS_KEY=hunter2": "AWS_SECRET_ACCESS_KEY",
    "export TS_AUTHKEY=hunter2": "TS_AUTHKEY",
    "export SSH_PASSPHRASE=hunter2": "SSH_PASSPHRASE",
    "HF_TOKEN+=hunter2": "HF_TOKEN",
    "export HF_TOKEN=${HF_TOKEN:-hunter2}": "HF_TOKEN",
    "export HF_TOKEN=$'hunter2'": "HF_TOKEN",
    "srun --export=ALL,HF_TOKEN=hunter2 true": "HF_TOKEN",
    "true;HF_TOKEN=hunter2": "HF_TOKEN",
    "env githubToken=hunter2 true": "githubToken",
    "wandb login hunter2": "wandb login",
    "wandb login --relogin hunter2": "wandb login",
    "wandb login --host https://wandb.lab hunter2": "wandb login",
    "python -m wandb login hunter2": "wandb login",
    "huggingface-cli login --token hunter2": "token",
    "hf auth login --token hunter2": "token",
    "hf auth login --token=hunter2": "token",
    "tool --api-key hunter2": "api-key",
    "tool --api-key=hunter2": "api-key",
    "tool --db-password 'hunter2'": "db-password",
    "docker login -u me -p hunter2 host": "docker login",
    "docker login -u me --password hunter2 host": "password",
    "sshpass -p hunter2 ssh host": "sshpass",
    "sshpass -phunter2 ssh host": "sshpass",
    "echo hunter2 | docker login --password-stdin": "given to a login",
    "echo -n 'hunter2' | wandb login": "given to a login",
    "printf '%s' hunter2 | wandb login --stdin": "given to a login",
    "wandb login <<< hunter2": "given to a login",
    "read -r WANDB_API_KEY <<< hunter2": "WANDB_API_KEY",
    "read OPENAI_KEY <<< 'hunter2' && export OPENAI_KEY": "OPENAI_KEY",
    "curl -H 'Authorization: Bearer hunter2' https://x": "Bearer",
    "curl -H 'Authorization: Basic hunter2' https://x": "Authorization",
    "curl -H 'X-Api-Key: hunter2' https://x": "X-Api-Key",
    "curl -u me:hunter2 https://x": "the password behind a user's name",
    "curl --user me:hunter2 https://x": "the password behind a user's name",
    "git clone https://me:hunter2@github.com/x/y": "in a https:// address",
    "export URL=postgresql+psycopg://me:hunter2@host/db": "in a postgresql+psycopg:// address",
    "export URL=redis://:hunter2@host": "in a redis:// address",
    "pip install --index-url https://__token__:hunter2@x/simple y": "in a https:// address",
    "echo machine api.wandb.ai login user password hunter2 >> ~/.netrc": "password",
    "aws configure set aws_secret_access_key hunter2": "aws_secret_access_key",
    "some-tool hf_hunter2hunter2hunter2": "hf_",
    "git clone https://ghp_hunter2hunter2hunter2@github.com/x/y": "ghp_",
}

REFERENCES = [
    "export WANDB_API_KEY=$(cat ~/.wandb)", "export WANDB_API_KEY=`cat ~/.wandb`", 'export WANDB_API_KEY="$(cat ~/.wandb)"',
    "export HF_TOKEN=$OTHER", 'export HF_TOKEN="${OTHER}"', "export HF_TOKEN=${HF_TOKEN:?is not set}", "export PGPASSWORD=$PW",
    "export PASS=$(pass show lab)", "unset HF_TOKEN; HF_TOKEN=", "HF_TOKEN='' true", "export HF_HUB_DISABLE_IMPLICIT_TOKEN=1",
    "export USE_TOKEN=false", "export HF_TOKEN_PATH=/home/me/token", "export PASSWORD_FILE=/run/x",
    "export SSH_KEY_PATH=/home/me/id",
    "export SSH_KEY=/home/me/.ssh/id_ed25519", "export SSH_PUBLIC_KEY=abc",
    "export GOOGLE_APPLICATION_CREDENTIALS=/home/me/key.json",
    "export GOOGLE_APPLICATION_CREDENTIALS=~/key.json", "export TOKENIZERS_PARALLELISM=false", "export MAX_TOKENS=512",
    "export TOKEN_LIMIT=512", "tool --token-file /home/me/token", "tool --token-file=/home/me/token", "tool --token $HF_TOKEN",
    'tool --token "$HF_TOKEN"', "tool --password-stdin < /run/secret", "wandb login", "wandb login --verify",
    "wandb login || true",
    "wandb login && true", "wandb login $WANDB_API_KEY", "wandb login --host https://wandb.lab", "wandb login < ~/.key",
    "cat ~/.key | wandb login", "cat ~/.key | docker login --password-stdin", "echo $KEY | docker login -u me --password-stdin",
    "read -r HF_TOKEN < ~/.token", 'read -r HF_TOKEN <<< "$(cat ~/.token)"', "read -r major minor <<< '12 4'",
    'curl -H "Authorization: Bearer $HF_TOKEN" https://x', "curl -u me:$PW https://x", "curl -u me https://x",
    "git clone https://github.com/x/y", "git clone git@github.com:x/y.git", "git clone ssh://git@host:22/x",
    "export URL=postgresql://me:$PW@host/db", "export URL=postgresql://me@host:5432/db", "export MASTER=tcp://host:29500",
    "module load cuda/12.4 && source ~/env/bin/activate", "export PYTHONPATH=$PWD:$PYTHONPATH", "cd $PWD; PWD=/x true",
    "export NCCL_DEBUG=INFO OMP_NUM_THREADS=4", "export BYPASS=1 COMPASS=north", "ulimit -l unlimited", "export SORT=key",
    "python -m pip install --user wandb", "rsync -a host:/data /tmp/data", "echo 'no password is needed'",
    "mkdir -p /tmp/token",
]  # fmt: skip


@pytest.mark.parametrize("line", WRITTEN)
def test_a_secret_that_is_written_out_is_found_and_not_repeated(line: str) -> None:
    name = written_secret(line)
    assert name == WRITTEN[line]
    assert "hunter2" not in name


@pytest.mark.parametrize("line", REFERENCES)
def test_what_only_refers_to_a_secret_or_is_none_is_let_through(line: str) -> None:
    assert written_secret(line) is None


@pytest.mark.parametrize("part", ["a", "_", "-", "A_", "TOKEN_", "--", "x:", "echo ", "read ", "wandb login ", "://:", "${A"])
def test_the_longest_line_takes_no_time(part: str) -> None:
    line = (part * 2000)[:2000]
    began = time.process_time()
    written_secret(line)
    assert time.process_time() - began < 1
