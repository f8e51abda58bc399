"""Where the content of a tokenizer.json comes from: a file, a folder, or a repository of the Hugging Face Hub."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from slm.errors import UserError, file_operation
from slm.files import atomic
from slm.security import without_login

MAX_BYTES = 2**27  # of a tokenizer.json; those in use have up to 35 MB
REPOSITORY = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def read(path: str, revision: str | None = None) -> tuple[str, str | None]:
    """The content of a tokenizer.json, and the eos token of the tokenizer_config.json beside it, if there is one.

    Raises: UserError: if there is no such file or repository, or the file is no text or too large.
    """
    local = atomic.expanded(path)
    if local.exists() or path.endswith(".json") or not REPOSITORY.fullmatch(path):
        if revision:
            raise UserError(f"tokenizer.revision={revision} is for the Hub, and tokenizer.path={path} is a local path")
        file = local / "tokenizer.json" if local.is_dir() else local
        if not file.is_file():
            raise UserError(
                f"tokenizer.path={without_login(path)}: there is no file {without_login(str(file))}; give a "
                "tokenizer.json, its folder, or a repository of the Hub such as openai-community/gpt2"
            )
        beside = file.with_name("tokenizer_config.json")
        return _text(file), _eos(_text(beside)) if beside.is_file() else None
    file = _download(path, "tokenizer.json", revision)
    if file is None:
        raise UserError(f"tokenizer.path={path}: the repository has no tokenizer.json; give another")
    beside = _download(path, "tokenizer_config.json", revision)
    return _text(file), _eos(_text(beside)) if beside else None


def _text(file: Path) -> str:
    with file_operation("read", file):
        if (size := file.stat().st_size) > MAX_BYTES:
            raise UserError(f"{file} has {size:,} bytes, more than the {MAX_BYTES:,} that a tokenizer may have")
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{file} is no JSON in UTF-8; give a tokenizer.json") from None


def _eos(content: str) -> str | None:
    """The eos token of a tokenizer_config.json: a string, or an object with its content."""
    try:
        token = json.loads(content).get("eos_token")
    except (ValueError, AttributeError, RecursionError):
        return None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _download(repository: str, name: str, revision: str | None) -> Path | None:
    """The file in the library's cache, downloaded if it is missing; None if the repository has none.

    Raises: UserError: for a repository that is missing or gated, or without network.
    """
    from huggingface_hub import errors, hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        with suppress(errors.LocalEntryNotFoundError):
            return Path(hf_hub_download(repository, name, revision=revision, local_files_only=True))
        return Path(hf_hub_download(repository, name, revision=revision, endpoint=endpoint))
    except errors.GatedRepoError:
        problem = "its owner asks for a login: accept the terms on its page and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        problem = "is neither a local file nor a repository of the Hub that is public; check the name"
    except errors.LocalEntryNotFoundError:
        problem = "is not in the cache of the Hub, and the Hub cannot be reached; give a local file"
    except errors.EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:  # of the connection, or a name that cannot be one
        problem = f"cannot be downloaded: {without_login(str(error)).splitlines()[0][:200]}"
    raise UserError(f"tokenizer.path={repository} {problem}")
