"""The simulator's step as one generated kernel: trace, scalar program, lowering, emission, compilation, verification.

`compiled(settings)` in `compile.py` is the way in; `docs/kernels.md` explains the path.
"""
