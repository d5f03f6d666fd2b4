"""The engine on a small supervised task: loop, accumulation, precision, logs, checkpoints, exact resume."""

import json
import math

import pytest
import torch

from marl.callbacks.early_stopping import EarlyStopping
from marl.checkpoints import checkpoint_file
from marl.core.errors import UserError
from tests.marl.runs import make_task, rows, run


def test_run_directory_and_summary(tmp_path):
    summary, trainer = run(tmp_path)
    assert {"metrics.csv", "summary.json", "checkpoints"} <= {p.name for p in tmp_path.iterdir()}
    assert list(tmp_path.glob("events.out.tfevents*"))
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {
        "last.pt",
        "last-1.pt",
        "best.pt",
        "last.safetensors",
        "best.safetensors",
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["task"] == "supervised" and summary["epochs"] == 6 and summary["seed"] == 3
    assert set(summary["seconds"]) == {"collect", "update", "evaluate", "compile", "total"}
    assert summary["peak_memory_bytes"] > 1e6
    assert torch.__version__.startswith(summary["versions"]["torch"])
    table = rows(tmp_path)
    assert [int(row["iteration"]) for row in table] == [1, 2, 3, 4, 5, 6]
    assert [bool(row["eval/loss"]) for row in table] == [False, True] * 3
    assert float(table[-1]["eval/loss"]) == pytest.approx(summary["final"]["loss"])
    assert float(table[0]["lr"]) == pytest.approx(0.01 * 5 / 6) and float(table[-1]["lr"]) == 0
    best = min((float(row["eval/loss"]), int(row["iteration"])) for row in table if row["eval/loss"])
    assert (summary["best"]["loss"], summary["best"]["iteration"]) == pytest.approx(best)
    assert checkpoint_file.load(tmp_path / "checkpoints" / "best.pt")["iteration"] == best[1]


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"precision": "bf16"}])
def test_resume_is_exact(tmp_path, settings):
    stopping = [EarlyStopping(patience=50)]
    _, whole = run(tmp_path / "whole", callbacks=stopping, **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", callbacks=[EarlyStopping(patience=50)], stop_after=3, **settings)
    last = tmp_path / "cut" / "checkpoints" / "last.pt"
    _, resumed = run(tmp_path / "cut", callbacks=[EarlyStopping(patience=50)], resume=last, **settings)
    for (name, a), b in zip(whole.task.loss.state_dict().items(), resumed.task.loss.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    assert whole.best == resumed.best
    states = [list(t.optimizer.state_dict()["state"].values()) for t in (whole, resumed)]
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in zip(*states, strict=True))


def test_accumulation_equals_one_large_batch(tmp_path):
    weights = []
    for accumulate, batch_size in ((1, 160), (4, 40)):  # 160 training rows: one full batch, or four
        task = make_task(epochs=1, batch_size=batch_size)
        run(tmp_path, task=task, accumulate=accumulate)
        weights.append(torch.cat([p.flatten() for p in task.loss.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-4)


def test_leftover_batches_are_stepped_with(tmp_path):
    task = make_task(epochs=1, batch_size=40)
    _, trainer = run(tmp_path, task=task, accumulate=3)  # four batches: a step of three and one of one
    assert trainer.metrics.steps == 2 and trainer.updater.pending == 0


def test_max_iterations_shortens_the_run(tmp_path):
    summary, _ = run(tmp_path, epochs=50, max_iterations=2)
    assert summary["epochs"] == 2


def test_keep_every(tmp_path):
    run(tmp_path, keep_every=2)
    names = {p.name for p in (tmp_path / "checkpoints").glob("iteration_*.pt")}
    assert names == {"iteration_2.pt", "iteration_4.pt", "iteration_6.pt"}


def test_early_stopping(tmp_path):
    summary, trainer = run(tmp_path, epochs=100, callbacks=[EarlyStopping(target=1e9)], evaluate_every=1)
    assert summary["epochs"] == 1 and "reached" in summary["stopped"]
    stopping = EarlyStopping(patience=2, min_delta=1e9)
    summary, _ = run(tmp_path, epochs=100, callbacks=[stopping], evaluate_every=1)
    assert summary["epochs"] == 3  # the first counts as the best, then two without progress
    (tmp_path / "typo").mkdir()
    with pytest.raises(UserError, match="callbacks.early_stopping.monitor"):
        run(tmp_path / "typo", callbacks=[EarlyStopping(monitor="nothing", mode="max")])
    assert not (tmp_path / "typo" / "checkpoints").exists()  # before the first iteration


def test_gradient_clipping_reports_the_norm(tmp_path):
    task = make_task(epochs=1, batch_size=160)
    run(tmp_path, task=task, grad_clip=1e-6)
    assert float(rows(tmp_path)[0]["grad_norm"]) > 1e-3


def test_bad_settings(tmp_path):
    with pytest.raises(UserError, match="trainer.monitor='los': evaluation has .*did you mean 'loss'"):
        run(tmp_path, monitor="los")
    assert not list(tmp_path.iterdir())  # before anything is trained
    with pytest.raises(UserError, match="fp16"):
        run(tmp_path, precision="fp16")


def test_plain_progress_lines(tmp_path, capsys):
    run(tmp_path, progress="plain")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("iteration 6/6  6 epochs") and "eval/loss" in lines[-1]


def test_rich_progress_runs(tmp_path, capsys):
    run(tmp_path, progress="rich")
    assert "supervised" in capsys.readouterr().out


def test_compile_gives_the_same_numbers(tmp_path):
    losses = []
    for compile in (False, True):
        task = make_task(epochs=2)
        summary, _ = run(tmp_path, task=task, compile=compile)
        losses.append(summary["final"]["loss"])
        assert not any("_orig_mod" in key for key in task.loss.state_dict())
    assert math.isclose(*losses, rel_tol=1e-4)
