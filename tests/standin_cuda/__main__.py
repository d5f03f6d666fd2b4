"""Runs pytest, or with `run` a script, in a process whose GPU is the stand-in.

python -m tests.standin_cuda tests/standin_cuda/cases_algorithms.py -q
python -m tests.standin_cuda run scripts/train.py device=cuda
"""

import runpy
import sys

from tests.standin_cuda import library

if __name__ == "__main__":
    functions = library.load(library.build())  # before torch
    from tests.standin_cuda import standin

    standin.install(functions)
    from envs.kernel.backends.cuda import driver, emulation

    with driver.using(emulation.EmulatedDriver(standin.launch)):
        if sys.argv[1] == "run":
            sys.argv = sys.argv[2:]
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            import pytest

            sys.exit(pytest.main([*sys.argv[1:], "-p", "no:cacheprovider", "-p", "no:xdist"]))
