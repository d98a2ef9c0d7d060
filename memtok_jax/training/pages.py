"""Ask the C library for large memory pages.

XLA's CPU backend allocates the temporaries of a program anew for each call. In pages of 4 kB, touching them for the first time
took a fifth of a training step (docs/log.md, 2026-11-26); in pages of 2 MB it takes almost nothing. The C library reads this wish
at the start of a process only, so the process begins again, once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

TUNABLES, WISH = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def wished(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the wish added to what else is tuned. If it mentions the wish already, it is left as it is."""
    tuned = environment.get(TUNABLES, "")
    if WISH in tuned:
        return dict(environment)
    return {**environment, TUNABLES: ":".join(filter(None, (tuned, f"{WISH}=1")))}


def has_glibc() -> bool:
    """Whether this process runs on the GNU C library, which alone knows the wish."""
    try:
        return sys.platform == "linux" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (ValueError, OSError):
        return False


def begin_again_with_large_pages() -> None:
    """Start this process anew with the wish in its environment. Do nothing if the wish is there, or without the GNU C library."""
    environment = wished(os.environ)
    if has_glibc() and environment != dict(os.environ):
        os.execve(sys.executable, sys.orig_argv, environment)
