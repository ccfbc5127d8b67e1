"""The environment of processes that are started to render, which glibc reads at their start."""

import os

# One heap for all threads, because glibc can keep large blocks in the main heap only; and huge pages, where the kernel
# leaves them to programs (glibc 2.35 or newer), beside whatever else this process was told.
_TUNABLES = [os.environ.get("GLIBC_TUNABLES", ""), "glibc.malloc.hugetlb=1"]
WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": ":".join(filter(None, _TUNABLES))}
