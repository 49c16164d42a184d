"""Hold Xet transfers to the retries and the folders of plain downloads.

Left alone, the hub's client waits up to five minutes for a byte, six times over, and writes logs
beside the hub's cache.

    with own_session(folder):
        hf_hub_download(repo, name, local_dir=folder)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_session(folder: Path) -> Iterator[None]:
    """Let transfers leave retries to the caller, and keep logs and caches in a folder.

    What the user has set in the environment holds.
    """
    from huggingface_hub import constants

    settings = {
        "HF_XET_CACHE": str(folder),
        "HF_XET_CLIENT_READ_TIMEOUT": f"{constants.HF_HUB_DOWNLOAD_TIMEOUT}s",
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "0",
    }
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    end_session()  # one with other settings, say of a tokenizer's download
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        end_session()


def end_session() -> None:
    """Abort the client's transfers; the next one reads the settings anew."""
    try:
        from huggingface_hub.utils._xet import abort_xet_session
    except ImportError:  # a client without sessions
        return
    abort_xet_session()  # type: ignore[no-untyped-call]
