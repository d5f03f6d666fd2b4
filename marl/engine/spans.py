"""Named spans of a run's work, for a profiler to tell apart; without a profiler they cost next to nothing."""

from contextlib import AbstractContextManager, nullcontext

from torch.profiler import record_function

MARK = "marl."  # begins the names of spans in a trace
_NO_SPAN = nullcontext()
_recording = False


def span(name: str) -> AbstractContextManager:
    """The block is a span of this name, while a profiler asks for spans (`record`)."""
    return record_function(MARK + name) if _recording else _NO_SPAN


def record(enabled: bool) -> None:
    """From now on spans are named, or not, in the whole process."""
    global _recording
    _recording = enabled
