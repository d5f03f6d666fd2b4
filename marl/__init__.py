"""What every task shares: engine, networks, optimiser and schedules, checkpoints, data, logging."""

import os

# Threads that spin while they wait cost the others their core; it must be said before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
