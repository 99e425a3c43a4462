"""What is done alike many times, recorded once as CUDA graphs and replayed.

A small network's pass is a hundred kernels and more, each shorter than the host needs to launch one. A graph launches
them as one, and what they read and write has its place in memory for good.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

Launch = Callable[[], None]


class Recorder:
    """Records functions for one device, as long as each that it is given can be.

    Args:
        problem: why nothing is to be recorded, if so.
        required: whether that is an error.

    Attributes:
        problem: why functions are called and not replayed; None while they are.
    """

    def __init__(self, device: torch.device, problem: str | None = None, *, required: bool = False) -> None:
        self.device = device
        self.required = required
        self.problem: str | None = None
        if problem or not is_gpu(device):
            self.give_up(problem or f"{device} has no CUDA graphs")
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def replayed(self, function: Callable[..., None], state: Callable[[], Sequence[Tensor]]) -> Replayed:
        """A function that only does something to tensors, and the tensors that it changes."""
        return Replayed(function, state, self)

    def record(self, function: Launch) -> Launch:
        """What launches the graph of a function. Nothing of it is run. Raises RuntimeError where it can't be recorded.

        All graphs take their memory from one pool: they run one after the other, and what remains of them is in tensors
        that are not of the pool.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with self.aside():
            # Other threads may go on using the device: tickets are uploaded by one.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                function()
                graph.capture_end()
            except BaseException:
                self._break_off(graph)
                raise
        return graph.replay

    def _break_off(self, graph: torch.cuda.CUDAGraph) -> None:
        """Ends a recording that failed; where the driver has ended it, PyTorch goes on taking memory from the pool."""
        with suppress(RuntimeError):
            graph.capture_end()
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)

    def give_up(self, problem: str) -> None:
        """Nothing is recorded from now on. Raises ValueError where that is required."""
        if self.required:
            raise ValueError(f"backend is 'graph', which is not possible here: {problem}")
        self.problem = problem

    def drawn(self) -> Tensor:
        """Where the device's stream of random numbers stands."""
        return torch.cuda.get_rng_state(self.device)

    def draw_from(self, state: Tensor) -> None:
        torch.cuda.set_rng_state(state, self.device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On a stream of the recorder's own: the device's default one can't be recorded."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Code that makes the host wait for the device raises RuntimeError: a graph can't hold it."""
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not find everything: what it misses, the recording finds
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)


class Replayed:
    """A function, called for its first inputs, recorded at the second call and replayed from then on.

    It is called whenever inputs have another shape, and for good where it can't be recorded, or where its graph gives
    other numbers than a call of it: what is random, or depends on what the host knows, is not what was recorded.

    Args:
        function: maps tensors to nothing; whatever it tells, it tells by `state`.
        state: the tensors that it changes, at the same addresses always.
        same: whether a replay did what a call did: what the tensors of `state` were before, after a call and after a
            replay. Default: to the bit.
        random: whether what it draws on the device is to be drawn anew by a replay.
    """

    def __init__(
        self,
        function: Callable[..., None],
        state: Callable[[], Sequence[Tensor]],
        recorder: Recorder,
        *,
        same: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], bool] | None = None,
        random: bool = False,
    ) -> None:
        self.function = function
        self.state = state
        self.recorder = recorder
        self.same = same or _same_bits
        self.random = random
        self._called = False
        self._inputs: list[Tensor] = []
        self._launch: Launch | None = None

    def __call__(self, *inputs: Tensor) -> None:
        if self.recorder.problem is not None or not self._called:
            self._called = True
            self.function(*inputs)
            return
        if self._launch is None:
            self._record(inputs)
        elif self._fits(inputs):
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given, non_blocking=True)
            self._launch()
        else:
            self.function(*inputs)

    def _fits(self, inputs: Sequence[Tensor]) -> bool:
        return all(own.shape == x.shape and own.dtype == x.dtype for own, x in zip(self._inputs, inputs, strict=True))

    def _record(self, inputs: Sequence[Tensor]) -> None:
        """Records the function, and does for these inputs what it does, by whichever way will be taken."""
        before = [x.detach().clone() for x in self.state()]
        drawn = self.recorder.drawn() if self.random else None
        try:
            self._inputs = [torch.empty_like(x, device=self.recorder.device).copy_(x) for x in inputs]
            with self.recorder.aside(), self.recorder.without_waiting():
                self.function(*self._inputs)  # also what libraries do once for a stream
            expected = [x.detach().clone() for x in self.state()]
            self._put_back(before, drawn)
            launch = self.recorder.record(lambda: self.function(*self._inputs))
            launch()
            if not self.same(before, expected, self.state()):
                raise RuntimeError("a replay of the network gives other numbers than a call")
            self._launch = launch
        except Exception as error:  # whatever a stranger's forward does
            self._inputs = []
            self._put_back(before, drawn)
            self.recorder.give_up(str(error).partition("\n")[0] or type(error).__name__)
            self.function(*inputs)

    def _put_back(self, values: Sequence[Tensor], drawn: Tensor | None) -> None:
        with torch.no_grad():
            for x, value in zip(self.state(), values, strict=True):
                x.copy_(value)
        if drawn is not None:
            self.recorder.draw_from(drawn)


def is_gpu(device: torch.device) -> bool:
    """Whether a device has CUDA graphs and cuDNN."""
    return device.type == "cuda" and torch.version.cuda is not None


def _same_bits(before: Sequence[Tensor], expected: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Also of NaN."""
    return all(
        torch.equal(*(x.reshape(-1).view(torch.uint8) for x in both)) for both in zip(expected, now, strict=True)
    )
