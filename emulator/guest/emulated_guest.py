"""Keeps what Python compiled out of a zip file, as Python itself keeps what it compiled out of plain ones.

Ansible sends a zip file with every module it runs, of which Python compiles the same two megabytes each time: a
quarter of the time of a test. `emulated_guest.pth` imports this into every program of the VM's own Python.
"""

import os
import zipimport
from types import CodeType

_CACHE = "/var/cache/emulated-guest"
_compile = zipimport._compile_source  # type: ignore[attr-defined]


def _compile_once(pathname: str, source: bytes) -> CodeType | None:
    """Returns the code of a plain file with the same text; users that may not write one get it compiled anew."""
    import hashlib
    from importlib.machinery import SourceFileLoader

    name = hashlib.sha256(source).hexdigest()
    kept = f"{_CACHE}/{name}.py"
    if not os.path.exists(kept):
        unfinished = f"{kept}.{os.getpid()}"
        try:
            with open(unfinished, "wb") as file:
                file.write(source)
            os.replace(unfinished, kept)
        except OSError:
            code: CodeType = _compile(pathname, source)
            return code
    return SourceFileLoader(name, kept).get_code(name)


zipimport._compile_source = _compile_once  # type: ignore[attr-defined]
