"""Child processes of the rigs."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """For ``preexec_fn``: the kernel kills this process when its parent ends, so a killed rig leaves none running."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
