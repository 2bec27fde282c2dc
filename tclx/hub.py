"""Are a model's files on this machine, or can the model hub be asked for them? Answered in seconds, before anything waits.

The hub's own client asks six times with growing pauses before it says that there is no network. Here one request has
`SECONDS`, and none is made for what the cache (HF_HOME) holds already.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tclx.errors import MachineError
from tclx.foreign import first_line

SECONDS = 5.0
"""For the hub's one answer, the name's look-up included."""

TEXT_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model", "vocab.json")


_THERE, _NO_SUCH = "there", "the hub has no "


class HubFiles(NamedTuple):
    """What a spec needs of one repository on the hub."""

    key: str
    """The spec's key that asks for it."""
    repository: str
    """`owner/name`, or a name alone."""
    files: tuple[tuple[str, ...], ...]
    """One of each of these."""
    revision: str | None = None
    instead: str = "copy the files to a folder and name that"
    """What else would do."""


def is_hub_name(name: str) -> bool:
    """Whether a model's name means the hub: neither a folder nor `package:NAME`."""
    return not name.startswith(("/", "package:")) and not Path(name).is_dir()


def text_files(name: str, *, key: str, weights: bool) -> HubFiles:
    """Of a transformers model: its configuration, and its weights where they are wanted."""
    return HubFiles(key, name, (("config.json",), TEXT_WEIGHTS) if weights else (("config.json",),))


def tokenizer_files(name: str, *, key: str) -> HubFiles:
    """Of a tokenizer, whichever kind it is."""
    instead = "copy them to a folder and name that, or let tclx train one on the captions: data.tokenizer: {source: captions}"
    return HubFiles(key, name, (TOKENIZER,), instead=instead)


def in_cache(needed: HubFiles) -> bool:
    """Whether this machine's cache holds them all."""
    return not _lacking(needed)


def require(needed: HubFiles) -> None:
    """See to it that files are in the cache or can be fetched.

    Raises:
        MachineError: they are not in the cache, and the hub cannot be reached, does not have them or does not give them.
    """
    lacking = _lacking(needed)
    if not lacking:
        return
    from huggingface_hub import constants, hf_hub_url

    if constants.is_offline_mode():
        raise _missing(needed, "HF_HUB_OFFLINE is set, so the hub is not asked")
    answer = ""
    for name in lacking[0]:
        answer = _answer(hf_hub_url(needed.repository, name, revision=needed.revision), f"{name} there")
        if answer == _THERE:
            return
        if not answer.startswith(_NO_SUCH):  # it will not answer for the other files either
            break
    raise _missing(needed, answer)


def fetch(needed: HubFiles) -> int:
    """Bring files into the cache, with the small ones beside them that a model or tokenizer may be described by.

    Returns:
        Bytes of all of them.

    Raises:
        MachineError: the hub cannot be reached, does not have them or does not give them.
    """
    require(needed)
    from huggingface_hub import HfApi, constants, hf_hub_download

    try:
        there = HfApi(endpoint=constants.ENDPOINT).list_repo_files(needed.repository, revision=needed.revision)
        chosen = [next((name for name in names if name in there), names[0]) for names in needed.files]
        for index in [name for name in chosen if name.endswith(".index.json")]:
            suffix = index.removesuffix(".index.json").rpartition(".")[2]
            chosen += [name for name in there if "/" not in name and name.endswith(f".{suffix}")]
        chosen += [name for name in there if "/" not in name and name.endswith((".json", ".txt", ".model"))]
        paths = [hf_hub_download(needed.repository, name, revision=needed.revision) for name in dict.fromkeys(chosen)]
    except Exception as error:  # its client raises what its HTTP library does, and more
        raise _missing(needed, f"it cannot be fetched ({type(error).__name__}: {first_line(error)})") from error
    return sum(Path(path).stat().st_size for path in paths)


def require_data_set(name: str, *, revision: str | None) -> None:
    """See to it that the hub would give a data set.

    Raises:
        MachineError: it is not to be asked, cannot be reached or does not have it.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    if constants.is_offline_mode():
        raise MachineError(f"{name} is not on this machine, and HF_HUB_OFFLINE is set, so the hub is not asked")
    try:
        url = hf_hub_url(name, ".gitattributes", repo_type="dataset", revision=revision)  # every repository has one
    except (HFValidationError, ValueError) as error:
        raise MachineError(f"{name!r} is no name of a data set: {first_line(error)}") from error
    answer = _answer(url, "data set of that name or commit")
    if answer != _THERE:
        raise MachineError(f"{name} is not on this machine, and {answer}")


def go_offline() -> None:
    """Let the hub's client ask nobody from here on, in this process; a user's own HF_HUB_OFFLINE stands."""
    from huggingface_hub import constants

    if "HF_HUB_OFFLINE" not in os.environ:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that this one starts
        constants.HF_HUB_OFFLINE = True


def _lacking(needed: HubFiles) -> list[Sequence[str]]:
    """The choices of files of which none is in the cache; of a sharded model every shard has to be."""
    return [names for names in needed.files if not any(_is_whole(path, needed) for path in _cached(needed, names))]


def _cached(needed: HubFiles, names: Sequence[str]) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(needed.repository, name, revision=needed.revision) for name in names]
    except HFValidationError as error:
        raise MachineError(f"{needed.key}: {needed.repository!r} is no name of the model hub: {error}") from error
    return [Path(path) for path in found if isinstance(path, str) and Path(path).is_file()]


def _is_whole(path: Path, needed: HubFiles) -> bool:
    if not path.name.endswith(".index.json"):
        return True
    try:
        shards = {str(name) for name in json.loads(path.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return all(_cached(needed, [shard]) for shard in shards)


def _answer(url: str, what: str) -> str:
    """`_THERE`, or why not; in a thread, since a name's look-up has no time limit of its own."""
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_ask(url, what)), daemon=True).start()
    try:
        return answers.get(timeout=SECONDS)
    except queue.Empty:
        return f"the hub gave no answer in {SECONDS:.0f} s"


def _ask(url: str, what: str) -> str:
    import httpx
    from huggingface_hub import get_token

    try:
        headers = {"authorization": f"Bearer {token}"} if (token := get_token()) else {}
        code = httpx.head(url, headers=headers, timeout=SECONDS, follow_redirects=False).status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return f"the hub cannot be reached ({type(error).__name__}: {first_line(error)})"
    if code in (401, 403):
        return f"{_NO_SUCH}public repository of that name (it answered {code}; for one that asks for consent, set HF_TOKEN)"
    if code == 404:
        return f"{_NO_SUCH}{what}"
    return _THERE if code < 400 else f"the hub answered {code}"


def _missing(needed: HubFiles, why: str) -> MachineError:
    from huggingface_hub import constants

    wanted = " and ".join(names[0] for names in _lacking(needed))
    return MachineError(
        f"{needed.key}: {wanted} of {needed.repository} is not in this machine's cache ({constants.HF_HUB_CACHE}), and {why}\n"
        f"Where there is a network, `hf download {needed.repository}` fetches it; point HF_HOME at the cache it went to, or "
        f"{needed.instead}."
    )
