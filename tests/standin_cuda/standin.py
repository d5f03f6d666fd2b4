"""`torch.cuda` of a machine whose GPU is the stand-in: what torch asks its CUDA library (`cpp/operators.cpp`).

One device, one stream that is always done. `watched()` is a rollout or an update: inside, whatever makes the host wait
raises. A graph holds operators and runs them again where they ran.
"""

import ctypes
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_LIBRARY: list[ctypes.CDLL] = []
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def library() -> ctypes.CDLL:
    """The library's functions; installed by `install`."""
    return _LIBRARY[0]


@contextmanager
def watched(on: bool = True) -> Iterator[None]:
    """Inside, an operator that makes the host wait for the device raises RuntimeError, and so does `synchronize`."""
    before = library().standin_watched()
    library().standin_watch(on)
    try:
        yield
    finally:
        library().standin_watch(before)


def synchronize(device: object = None) -> None:
    """Nothing is ever pending; where the host must not wait it raises."""
    if library().standin_watched() or library().standin_is_capturing():
        raise RuntimeError("torch.cuda.synchronize waits for the device")


def launch(kernel: Callable[[], None]) -> None:
    """Run what torch does not see; while a graph is captured its replays run it instead."""
    if not library().standin_is_capturing():
        return kernel()
    callback = KERNEL(lambda _: kernel())
    Graph.current.kernels.append(callback)
    library().standin_kernel(callback, None)


class Stream:
    """A stream whose work is done when it is given."""

    device = torch.device("cuda:0")
    cuda_stream = 0
    current: "Stream"

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: object) -> None:
        """Nothing to wait for."""

    def record_event(self, event: object = None) -> "Event":
        """An event that has happened."""
        return event or Event()

    def query(self) -> bool:
        """Whether all work is done."""
        return True

    def synchronize(self) -> None:
        """As `synchronize`."""
        synchronize()

    def __enter__(self) -> "Stream":
        self.before, Stream.current = Stream.current, self
        return self

    def __exit__(self, *raised: object) -> None:
        Stream.current = self.before


DEFAULT = Stream.current = Stream()


class Event(Stream):
    """An event that has happened."""

    def record(self, stream: object = None) -> None:
        """It happens at once."""
        self.when = time.perf_counter()

    def wait(self, stream: object = None) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, other: "Event") -> float:
        """Milliseconds from this one to another."""
        return 1e3 * (other.when - self.when)


class Graph:
    """`torch.cuda.CUDAGraph`: a capture leaves memory and generators as they were, and what it made holds NaN."""

    current: "Graph"

    def __new__(cls, keep_graph: bool = False) -> "Graph":
        return super().__new__(cls)

    def __init__(self, keep_graph: bool = False) -> None:
        self.number, self.kernels = 0, []

    def capture_begin(self, pool: object = None, **settings: object) -> None:
        """From now on operators are recorded."""
        Graph.current = self
        library().standin_capture_begin()

    def capture_end(self) -> None:
        """Operators are recorded no more. Raises RuntimeError where one was refused meanwhile."""
        number = library().standin_capture_end()
        if not number:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.number = number

    def replay(self) -> None:
        """Run it. Raises RuntimeError where memory that it needs is gone."""
        if library().standin_replay(self.number):
            raise RuntimeError(library().standin_failure().decode().split("\n")[0])

    def reset(self) -> None:
        """Forget it."""
        library().standin_forget(self.number)

    def pool(self) -> tuple[int, int]:
        """The memory of its own."""
        return (0, self.number)

    def register_generator_state(self, generator: torch.Generator) -> None:
        """Replays draw on from where the generator stands, whichever it is."""

    def __len__(self) -> int:
        return library().standin_graph_size(self.number)

    def __del__(self) -> None:
        if self.number:
            self.reset()


class Properties:
    """What torch tells of a GPU."""

    name, major, minor, multi_processor_count = "stand-in", 9, 0, 132
    total_memory, L2_cache_size, warp_size = 2**34, 50 * 2**20, 32


def new_storage(cls: type, *size: int, device: object = None, **settings: object) -> torch.UntypedStorage:
    """`torch.UntypedStorage(bytes, device=…)`, which a torch without CUDA has for no GPU."""
    if device is None or torch.device(device).type != "cuda":
        return torch._C.StorageBase.__new__(cls, *size, **({} if device is None else {"device": device}), **settings)
    return torch.empty(*size, dtype=torch.uint8, device="cuda").untyped_storage()


def install(functions: ctypes.CDLL) -> None:
    """Let this process's torch have the stand-in for its GPU."""
    _LIBRARY[:] = [functions]
    if functions.standin_start():
        raise RuntimeError(functions.standin_failure().decode().split("\n")[0])
    functions.standin_hand_out_default()
    generator = torch.Generator("cuda")
    memory = functions.standin_allocated
    answers = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "get_device_name": lambda device=None: Properties.name,
        "get_device_capability": lambda device=None: (Properties.major, Properties.minor),
        "get_device_properties": lambda device=None: Properties(),
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": synchronize,
        "current_stream": lambda device=None: Stream.current,
        "default_stream": lambda device=None: DEFAULT,
        "set_stream": lambda stream: setattr(Stream, "current", stream),
        "stream": lambda stream: stream or Stream.current,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph_pool_handle": lambda: (0, 0),
        "is_current_stream_capturing": lambda: bool(functions.standin_is_capturing()),
        "memory_allocated": lambda device=None: memory(),
        "memory_reserved": lambda device=None: memory(),
        "max_memory_allocated": lambda device=None: functions.standin_peak(),
        "max_memory_reserved": lambda device=None: functions.standin_peak(),
        "reset_peak_memory_stats": lambda device=None: functions.standin_reset_peak(),
        "mem_get_info": lambda device=None: (Properties.total_memory - memory(), Properties.total_memory),
        "empty_cache": lambda: None,
        "default_generators": (generator,),
    }
    parts = torch.cuda.random, torch.cuda.memory, torch.cuda.graphs, torch.cuda.streams
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
        for part in parts:  # which have imported some by name
            if hasattr(part, name):
                setattr(part, name, answer)
    torch.UntypedStorage.__new__ = staticmethod(new_storage)
    torch._C._cuda_getDevice = lambda: 0
    torch._C._host_emptyCache = lambda: None
    torch.backends.cudnn.is_acceptable = lambda tensor: False
    warnings.filterwarnings("ignore", "PyTorch was compiled without cuDNN")
