"""The token stores of the processes of one run, which may lie on the disks of several machines, are the same."""

import socket
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from slm.data.store import TokenStore
from slm.errors import UserError


class OtherTokens(UserError):
    """A process of a run reads other tokens than its first one."""

    everywhere = True


def check_stores(stores: Mapping[str, TokenStore]):
    """Compares corpus, tokenizer and the digests of the ids. A collective. Raises OtherTokens in all processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    found: list[Any] = [None] * dist.get_world_size()
    own = {name: (str(store.folder), store.digest()) for name, store in stores.items()}
    dist.all_gather_object(found, (socket.gethostname(), own))
    (first_host, first), *_ = found
    for rank, (host, others) in enumerate(found):
        if different := [name for name in first if others[name][1] != first[name][1]]:
            name = different[0]
            raise OtherTokens(
                f"{name and name + ': '}process {rank} ({others[name][0]} on {host}) reads other tokens than process 0 "
                f"({first[name][0]} on {first_host}); give all machines the same files, or a cache_dir that they share"
            )
