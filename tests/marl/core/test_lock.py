"""A run's directory belongs to one process at a time, and what is in it is not written over by mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from marl.core.errors import UserError
from marl.core.lock import exclusive_run_lock

HOLDER = """
import os, sys
from marl.core.lock import exclusive_run_lock
from pathlib import Path
with exclusive_run_lock(Path(sys.argv[1])):
    if os.fork() == 0:  # a worker that outlives its parent holds nothing
        import time
        os.close(1)
        time.sleep(5)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training in this directory"), exclusive_run_lock(run):
            pass
        with exclusive_run_lock(run, needed=False):
            pass
        holder.kill()
    with exclusive_run_lock(run):
        pass
