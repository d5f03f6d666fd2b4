"""How many threads of our own may share an MLP's rows (work_sharing.h): idle cores help, results stay the same."""

import ctypes
import os

import torch

BY_ITSELF = 4  # threads that are used without being asked for: more bring little at the sizes of on-policy learning

pool = ctypes.c_void_p()  # of all libraries in which threads of ours help (use_pool in work_sharing.h)


def cores() -> int:
    """Cores that this process may use: those it is bound to, its share of them beside others of torchrun's, and no more
    than OMP_NUM_THREADS, by which launchers say how many threads a job has."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    bound //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(bound, int(limit)) if limit.isdecimal() else bound)


def allow(helpers: int | None) -> None:
    """From now on up to so many helpers; None: as many as are useful."""
    global _members
    _members = min(cores(), max(BY_ITSELF, torch.get_num_threads())) if helpers is None else 1 + helpers


def members() -> int:
    """Threads that share, the caller among them."""
    return _members


allow(None)
