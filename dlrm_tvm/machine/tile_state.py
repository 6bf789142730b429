"""AMX's tile registers belong to a state of 8 KB per thread, which the kernel grants a process on request (Linux 5.16,
Documentation/arch/x86/xstate.rst). Without it the first tile instruction ends the process."""

from __future__ import annotations

import ctypes
import os

from ..errors import UserError
from .cpu import host_flags

TILE_FLAGS = ("amx_tile", "amx_int8", "amx_bf16")
ARCH_PRCTL = 158  # the number of the system call
REQUEST = 0x1023  # ARCH_REQ_XCOMP_PERM
TILE_DATA = 18  # the state's number


def tile_refusal() -> str | None:
    """Why this process may not use tiles; None where it may, which it then has asked for.

    Ask before threads are made, which inherit the answer.
    """
    missing = [flag for flag in TILE_FLAGS if flag not in host_flags()]
    if missing:
        return f"this CPU lacks {', '.join(missing)}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ARCH_PRCTL, REQUEST, TILE_DATA) != 0:
        return f"the kernel does not grant AMX's tile state (arch_prctl: {os.strerror(ctypes.get_errno())})"
    return None


def require_tiles(library: str) -> None:
    """Raises UserError where a library made of tile instructions cannot run."""
    reason = tile_refusal()
    if reason is not None:
        raise UserError(f"{library} is made of AMX tile instructions, but {reason}. Compile with --isa avx512.")
