"""Is the model hub there? Asked once, before the libraries wait for it.

Without a network the hub's own client tries again and again, half a minute
for every file. A name that cannot be looked up, or a port that does not
answer, is known in a moment: then the libraries are told to use what is in
their cache, and to say at once what is not.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit

PATIENCE_S = 3.0
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@cache
def can_reach(address: str) -> bool:
    """Whether a TCP connection to the host of this URL opens, tried once.

    Behind a proxy the host itself need not be reachable: taken for granted.
    """
    if any(os.environ.get(name) for name in PROXIES):
        return True
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        with socket.create_connection((parts.hostname, port), PATIENCE_S):
            return True
    except OSError:
        return False


def use_cache_when_unreachable() -> bool:
    """Tell the hub's libraries to stay offline when the hub is not there.

    Returns:
        Whether they are offline now.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not can_reach(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for processes started by us
    return constants.HF_HUB_OFFLINE
