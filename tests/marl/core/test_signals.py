"""Signals: the update is finished, a checkpoint written, the logs are whole; a second SIGINT stops at once."""

import os
import signal
from pathlib import Path

import pytest
import torch

from marl.callbacks.base import Callback
from marl.checkpoints import checkpoint_file
from marl.core.errors import Stopped
from marl.core.signals import Signals
from tests.marl.runs import make_task, rows, run


class Send(Callback):
    """Sends signals to this process after an iteration, as a scheduler would."""

    def __init__(self, iteration: int, *signums: int) -> None:
        self.iteration, self.signums = iteration, signums

    def on_iteration(self, trainer, record):
        if trainer.iteration == self.iteration:
            for signum in self.signums:
                os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_ends_the_run_after_a_checkpoint(tmp_path: Path, signum: int, code: int, capfd) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Stopped, match=f"{signal.Signals(signum).name}: stopped after iteration 3") as stopped:
        run(tmp_path / "cut", callbacks=[Send(3, signum)], checkpoint_every=0)
    assert stopped.value.exit_code == code and signal.getsignal(signum) is before
    assert "finishing this update" in capfd.readouterr().err
    last = tmp_path / "cut" / "checkpoints" / "last.pt"
    assert checkpoint_file.load(last)["iteration"] == 3 and len(rows(tmp_path / "cut")) == 3
    _, whole = run(tmp_path / "whole", checkpoint_every=0)
    _, resumed = run(tmp_path / "cut", resume=last, checkpoint_every=0)
    weights = [torch.cat([p.flatten() for p in t.task.loss.parameters()]) for t in (whole, resumed)]
    assert torch.equal(*weights) and rows(tmp_path / "whole") == rows(tmp_path / "cut")


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell runs the tests in the background
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callbacks=[Send(2, signal.SIGTERM, signal.SIGINT)], checkpoint_every=0)
    assert not (tmp_path / "checkpoints" / "last.pt").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_launchers_handler_is_called_after_the_checkpoint(tmp_path: Path) -> None:
    calls = []

    def requeue(signum, frame):
        calls.append((signum, checkpoint_file.load(tmp_path / "checkpoints" / "last.pt")["iteration"]))

    before = {signum: signal.signal(signum, requeue) for signum in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        for iteration, signum in ((2, signal.SIGUSR1), (4, signal.SIGUSR2)):
            with pytest.raises(Stopped):
                run(tmp_path, callbacks=[Send(iteration, signum)], checkpoint_every=0)
        assert calls == [(signal.SIGUSR1, 2), (signal.SIGUSR2, 4)]
        assert signal.getsignal(signal.SIGUSR1) is requeue
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_other_threads_train_without_handlers(tmp_path: Path) -> None:
    import threading

    summaries = []
    thread = threading.Thread(target=lambda: summaries.append(run(tmp_path, task=make_task(2))[0]))
    thread.start()
    thread.join()
    assert summaries[0]["epochs"] == 2
    with Signals() as signals:
        assert signals.received == 0 and signals.before
