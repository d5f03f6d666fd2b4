"""The table of runs beside BenchMARL's, by hand: names of tasks, last iterations, seeds and their IQM."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "docs/scripts/tables/learning.py"


def put(folder: Path, side: str, returns: list[float], seconds: float) -> None:
    """One run's files: BenchMARL's lines, or the metrics of one of ours."""
    if side.startswith("bm_"):
        lines = [json.dumps({"mean_return": value}) for value in returns]
        (folder / f"{side}.jsonl").write_text("\n".join(["a warning", *lines]))
    else:
        (folder / side).mkdir()
        (folder / side / "summary.json").write_text("{}")
        (folder / side / "metrics.csv").write_text("\n".join(["episode_return", *map(str, returns)]))
    (folder / f"{side}.time").write_text(f"{seconds}\n")


def test_seeds_stand_beside_each_other(tmp_path: Path) -> None:
    for seed, (theirs, ours) in enumerate(((1.0, 4.0), (2.0, 5.0), (3.0, 6.0))):
        put(tmp_path, f"bm_mappo_simple_spread_{seed}", [-99.0, theirs - 1, theirs + 1], 10)
        put(tmp_path, f"ours_mappo_simple_spread_{seed}", [-99.0, ours, ours], 5)
    put(tmp_path, "bm_ippo_wheel_0", [7.0], 3)
    put(tmp_path, "ours_ippo_wheel_0", [8.0], 2)
    put(tmp_path, "end_ippo_wheel_0", [9.0], 1)
    put(tmp_path, "bm_ippo_wheel_1", [7.0], 3)  # nothing stands beside it
    command = [sys.executable, str(SCRIPT), "beside", str(tmp_path), "2"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert printed[2:] == [
        "| `ippo` | wheel | 7 | 8 | 3 | 2 |",
        "| `ippo` | wheel, `algo.time_limit=end` | 7 | 9 | 3 | 1 |",
        "| `mappo` | simple_spread | **2** [1, 3]: 1, 2, 3 | **5** [4, 6]: 4, 5, 6 | 10 | 5 |",
    ]
