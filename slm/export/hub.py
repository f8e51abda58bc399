"""push=user/name: the folder of an export to the Hugging Face Hub, with the token of HF_TOKEN or of `hf auth login`."""

import os
import re
from pathlib import Path

from slm.errors import UserError, one_line
from slm.security import without_login

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
REVISION = re.compile(r"[A-Za-z0-9][\w.-]*")


def check(repository: str, revision: str | None):
    """Before the work. Raises: UserError: for a wrong name, or without a token."""
    from huggingface_hub import get_token

    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"push={repository} must be user/name, a repository of the Hub")
    if revision is not None and not REVISION.fullmatch(revision):
        raise UserError(f"revision={revision} must be the name of a branch, such as chck_1M")
    if not get_token():
        raise UserError(f"push={repository} needs a token that may write: set HF_TOKEN, or run hf auth login")


def push(folder: Path, repository: str, *, public: bool, revision: str | None) -> str:
    """Uploads all files; makes the repository, private unless `public`, and the branch `revision` where they are
    missing. Returns the address. Raises: UserError: if the Hub refuses or cannot be reached."""
    from huggingface_hub import HfApi, errors

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, revision=revision, ignore_patterns=[".*"])
    except (errors.HfHubHTTPError, OSError, ValueError) as error:  # refused, no connection, a wrong name
        text = without_login(one_line(error, 300))
        raise UserError(f"push={repository}: {text}; {folder} is complete: hf upload {repository} {folder}") from None
    return str(done.commit_url)
