"""Is a secret written out in a line of shell? Its words stay in job scripts and run folders, where others read them.

What only refers to one is none: `$(cat file)`, `$NAME`, `${NAME}`, the path of a file that holds it.
"""

from __future__ import annotations

import re

_REFERENCE = r"[\"']?(?:\$(?:\w|\(|\{\w+(?:\}|:?\?))|`)"
_SWITCH = r"[\"']?(?:0|1|true|false|yes|no|on|off|none|null)?[\"']?(?:[\s;&|,]|$)"
_VALUE = rf"(?!{_REFERENCE})(?!{_SWITCH})[\"']?[^\s;&|\"'<>]"
"""The beginning of a value that is written out; `1` or `false` switches something, and nothing empties it."""

_NO_PATH = r"(?![\"']?(?:/|~|\./|\.\./))"
_WORDS = r"API_?KEY|AUTH_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE"
_OF_SOMETHING_ELSE = r"FILE|PATH|DIR|FOLDER|NAME|TYPE|LEN|LIMIT|COUNT|SIZE|ID(?!\w)|TTL|URL|HOST"

_PATTERNS = (
    # export PGPASSWORD=, HF_TOKEN2=, AWS_SECRET_ACCESS_KEY=, --token=
    rf"(?<!\w)(?P<name>\w*(?:{_WORDS})\d*(?:_(?!{_OF_SOMETHING_ELSE})\w*)?)\+?={_VALUE}",
    # PASS=, DB_PASS=, MYSQL_PWD=; PWD alone is a folder
    rf"(?<!\w)(?P<name>(?:\w*_)?PASS|\w+_PWD)\+?={_VALUE}",
    # OPENAI_KEY=, CREDENTIALS=; both may name a file
    rf"(?<!\w)(?P<name>(?:(?!\w*PUB)\w*_)KEY\d*|(?:\w*_)?CREDENTIALS?)\+?={_NO_PATH}{_VALUE}",
    # --token abc, --api-key abc, --password=abc
    rf"(?<!\S)--?(?P<name>(?:[\w-]*-)?(?:api-?key|auth-?key|access-?key|token|secret|password|passwd|passphrase|pass))(?:=|\s+)"
    rf"(?!-){_VALUE}",
    # wandb login 0123abcd, docker login -u me -p abc
    rf"\b(?P<name>wandb login)(?:\s+--(?:host|base-url)(?:=|\s+)\S+|\s+--?[\w-]+(?:=\S+)?)*+\s+(?!-|#){_VALUE}",
    rf"\b(?P<name>\w+ login)\b[^;|&]*\s-p\s*(?!-){_VALUE}",
    rf"\b(?P<name>sshpass)\s+-p\s*{_VALUE}",
    # echo abc | wandb login, docker login --password-stdin <<< abc, read -r HF_TOKEN <<< abc
    rf"\b(?:echo|printf)\s+(?:-\w+\s+|[\"']?%s\S*\s+)*{_VALUE}[^|;&]*\|[^|;&]*(?P<name>\blogin\b|--password-stdin)",
    rf"(?P<name>\blogin\b|--password-stdin)[^|;&]*<<<\s*{_VALUE}",
    rf"\bread\b[^|;&<]*?\b(?P<name>\w*(?:{_WORDS}|_KEY|PASS|CREDENTIALS?)\w*)[^|;&<]*<<<\s*{_VALUE}",
    # Authorization: Bearer abc, X-Api-Key: abc
    rf"\b(?P<name>Bearer)\s+{_VALUE}",
    rf"(?<![\w{{-])(?P<name>Authorization|[\w-]*(?:Api-?Key|Token|Secret|Password))\s*:\s*(?:(?:Basic|Bearer|Token)\s+)?+{_VALUE}",
    # curl -u me:abc, postgres://me:abc@host
    rf"(?<!\S)(?:-u|--user|--proxy-user)(?:=|\s*)[\"']?[^\s:\"'$/]+(?P<name>:){_VALUE}",
    rf"(?P<name>\b[a-z][\w+.-]*://)[^\s/:@\"']*:{_VALUE}[^\s/@]*@",
    # what stands in a netrc file, or is configured
    rf"\bmachine\s+\S+.*\b(?P<name>password)\s+{_VALUE}",
    rf"\b(?P<name>aws_secret_access_key|aws_session_token|_authToken)\s+{_VALUE}",
    # what only a secret looks like
    r"(?-i:(?P<name>\bhf_|\bgh[opsur]_|\bgithub_pat_|\bglpat-|\bsk-(?:ant-|proj-)?|\bxox[abprs]-|\bAKIA)[A-Za-z0-9_-]{16,})",
)
_SECRETS = tuple(re.compile(pattern, re.IGNORECASE | re.ASCII) for pattern in _PATTERNS)

_WORDS_FOR = {":": "the password behind a user's name", "login": "given to a login", "--password-stdin": "given to a login"}


def written_secret(line: str) -> str | None:
    """What the secret that the line writes out is called, or None where it writes none. Never the secret itself."""
    for pattern in _SECRETS:
        if found := pattern.search(line):
            name = found["name"]
            return f"in a {name} address" if name.endswith("://") else _WORDS_FOR.get(name, name)
    return None
