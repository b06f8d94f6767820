"""Keeps what Python compiled out of a zip file, as it keeps what it compiled out of plain ones.

Ansible sends a zip file with every module it runs, of which Python compiles the same two megabytes each time: a
quarter of the time of a test. `emulated_guest.pth` imports this into every program of the VM's own Python.
"""

import marshal
import os
import zipimport
from types import CodeType

_CACHE = "/var/cache/emulated-guest"
_compile = zipimport._compile_source  # type: ignore[attr-defined]


def _compile_once(pathname: str, source: bytes) -> CodeType:
    """Returns the code, compiled or kept before, by the text alone; users that may not write there keep nothing."""
    import hashlib

    kept = f"{_CACHE}/{hashlib.sha256(source).hexdigest()}"
    try:
        with open(kept, "rb") as file:
            return marshal.load(file)  # noqa: S302  what root alone may have written
    except OSError:
        code = _compile(pathname, source)
    unfinished = f"{kept}.{os.getpid()}"
    try:
        with open(unfinished, "wb") as new:
            marshal.dump(code, new)
        os.replace(unfinished, kept)
    except OSError:
        pass
    return code


zipimport._compile_source = _compile_once  # type: ignore[attr-defined]
