"""TVM without PyTorch, which it imports wherever that is installed: 3 s and 190 MB in each process, for tensors of a
kind that is never passed here.

To be imported before anything else that imports TVM. A PyTorch that the process has already stays; later it may be
imported as ever. Meanwhile importlib's find_spec raises for it, which nothing that TVM 0.27 imports asks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident

_HIDDEN = "torch"


class _Hiding:
    """Finds no PyTorch, for the thread that made it: others may be importing it at this moment."""

    def __init__(self) -> None:
        self._thread = get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name == _HIDDEN and get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is hidden from TVM", name=name)


@contextmanager
def _without_torch() -> Iterator[None]:
    hiding = _Hiding()
    sys.meta_path.insert(0, hiding)
    try:
        yield
    finally:
        sys.meta_path.remove(hiding)


with _without_torch():
    import tvm_ffi
    from tvm.runtime import cpu, load_module
    from tvm.runtime.vm import VirtualMachine

__all__ = ["VirtualMachine", "cpu", "load_module", "tvm_ffi"]
