from collections.abc import Sequence

cuda_compiled: bool
cuda_architectures: str
torch_version: str
chunk: int

def interpolate(out: int, a: int, b: int, n: int, dtype: int, threads: int, alpha: float) -> None: ...
def interpolate_threshold(
    a: int, b: int, n: int, dtype: int, threads: int, alphas: list[float], keep: int
) -> tuple[list[int], list[int]]: ...
def interpolate_prune(
    out: int, a: int, b: int, n: int, dtype: int, threads: int, alpha: float, threshold_bits: int, last: int
) -> None: ...
def interpolate_prune_all(
    out: int,
    a: int,
    b: int,
    n: int,
    dtype: int,
    threads: int,
    alphas: list[float],
    threshold_bits: list[int],
    last: list[int],
) -> None: ...
def magnitude_mask(out: int, x: int, n: int, dtype: int, threads: int, threshold_bits: int, last: int) -> None: ...
def find_support(bits: int, positions: int, a: int, b: int, n: int, dtype: int, threads: int) -> int: ...
def pack(out: int, x: int, n: int, dtype: int, threads: int, bits: int, positions: int) -> None: ...
def interpolate_prune_packed(
    out: int,
    a: int,
    b: int,
    m: int,
    dtype: int,
    threads: int,
    bits: int,
    positions: int,
    n: int,
    alpha: float,
    threshold_bits: int,
    last: int,
) -> None: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def set_instruction_set(name: str) -> None: ...
def set_selection(name: str) -> None: ...
def sample_positions(n: int) -> list[int]: ...
def cuda_workspace_bytes(n: int, count: int) -> int: ...
def cuda_interpolate(
    out: int, a: int, b: int, n: int, dtype: int, stream: int, first_bad: int, alpha: tuple[float, int]
) -> None: ...
def cuda_interpolate_threshold(
    values: int,
    last: int,
    a: int,
    b: int,
    n: int,
    dtype: int,
    stream: int,
    first_bad: int,
    alphas: tuple[Sequence[float], int],
    count: int,
    keep: int,
    workspace: int,
) -> None: ...
def cuda_interpolate_prune(
    out: int,
    a: int,
    b: int,
    n: int,
    dtype: int,
    stream: int,
    first_bad: int,
    alpha: tuple[float, int],
    value: tuple[float, int],
    last: tuple[float, int],
) -> None: ...
def cuda_interpolate_prune_all(
    out: int,
    a: int,
    b: int,
    n: int,
    dtype: int,
    stream: int,
    first_bad: int,
    alphas: tuple[Sequence[float], int],
    values: int,
    last: int,
    count: int,
) -> None: ...
def cuda_magnitude_mask(
    out: int,
    x: int,
    n: int,
    dtype: int,
    stream: int,
    first_bad: int,
    value: tuple[float, int],
    last: tuple[float, int],
) -> None: ...
def cuda_find_and_prune(
    out: int,
    a: int,
    b: int,
    n: int,
    dtype: int,
    stream: int,
    first_bad: int,
    alpha: tuple[float, int],
    keep: int,
    workspace: int,
) -> None: ...
def cuda_find_and_prune_all(
    out: int,
    a: int,
    b: int,
    n: int,
    dtype: int,
    stream: int,
    first_bad: int,
    alphas: tuple[Sequence[float], int],
    count: int,
    keep: int,
    workspace: int,
) -> None: ...
def cuda_find_and_mask(
    out: int, x: int, n: int, dtype: int, stream: int, first_bad: int, keep: int, workspace: int
) -> None: ...
def cuda_phases(workspace: int, n: int, count: int) -> int: ...

# The inference engine: csrc/cpu/engine/engine.h says what each does.

class Activations:
    def __init__(
        self,
        *,
        data: int,
        blocks: int,
        channels: int,
        height: int,
        width: int,
        border: int,
        block_stride: int,
        channel_stride: int,
        row_stride: int,
        patches: tuple[int, int],
        image: tuple[int, int],
        by_thread: bool,
    ) -> None: ...

class Convolution:
    def __init__(
        self,
        *,
        filters: int,
        channels: int,
        groups: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> None: ...

class Window:
    def __init__(
        self, *, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
    ) -> None: ...

def pack_input(out: Activations, x: int, batch: int, strides: Sequence[int], threads: int) -> None: ...
def unpack_output(out: int, x: Activations, batch: int, strides: Sequence[int], threads: int) -> None: ...
def channel_statistics(mean: int, variance: int, x: Activations, batch: int, threads: int) -> None: ...
def count_filters(
    start: int, weights: int, convolution: Convolution, channels_per_block: int, threads: int
) -> None: ...
def pack_filters(
    entries: int,
    start: int,
    weights: int,
    convolution: Convolution,
    x: Activations,
    channels_per_block: int,
    gathered: int,
    threads: int,
) -> None: ...
def compiles(convolution: Convolution, x: Activations) -> bool: ...

class CompiledFilters:
    def __init__(self, weights: int, convolution: Convolution, x: Activations, threads: int) -> None: ...
    @property
    def nonzeros(self) -> int: ...
    @property
    def bytes(self) -> int: ...

def compiled_cost(convolution: Convolution, out: Activations, share: float) -> float: ...
def sparse_cost(convolution: Convolution, out: Activations, share: float) -> float: ...
def lane_cost(convolution: Convolution, out: Activations, lanes: int) -> float: ...
def winograd_cost(convolution: Convolution, out: Activations) -> float: ...
def best_gathered(convolution: Convolution, x: Activations, nonzeros: int) -> int: ...
def best_channels_per_block(convolution: Convolution, out: Activations, nonzeros: int, gathered: int) -> int: ...
def dense_filters_size(convolution: Convolution) -> int: ...
def pack_dense_filters(
    packed: int, offsets: int, weights: int, convolution: Convolution, x: Activations, threads: int
) -> None: ...
def lane_together() -> int: ...
def pack_lane_filters(
    packed: int, offsets: int, weights: int, convolution: Convolution, x: Activations, together: int, threads: int
) -> None: ...
def winograd_applies(convolution: Convolution) -> bool: ...
def winograd_together(convolution: Convolution, out: Activations) -> int: ...
def winograd_filters_size(convolution: Convolution, together: int) -> int: ...
def pack_winograd_filters(packed: int, weights: int, convolution: Convolution, together: int, threads: int) -> None: ...

class Operation: ...

class Ending:
    def __init__(
        self, *, scale: int, bias: int, residual: Activations | None, activation: int, slope: float
    ) -> None: ...

def set_least_work(work: int) -> None: ...
def run(operations: Sequence[Operation], threads: int) -> None: ...
def seconds(operations: Sequence[Operation], threads: int) -> list[float]: ...
def exchange_borders(x: Activations, outside: float) -> Operation: ...
def sparse_convolution(
    out: Activations,
    x: Activations,
    convolution: Convolution,
    entries: int,
    start: int,
    work: int,
    channels_per_block: int,
    gathered: int,
    ending: Ending,
) -> Operation: ...
def compiled_convolution(
    out: Activations, x: Activations, convolution: Convolution, filters: CompiledFilters, ending: Ending
) -> Operation: ...
def depthwise_convolution(
    out: Activations, x: Activations, convolution: Convolution, entries: int, start: int, ending: Ending
) -> Operation: ...
def dense_convolution(
    out: Activations, x: Activations, convolution: Convolution, weights: int, offsets: int, ending: Ending
) -> Operation: ...
def lane_convolution(
    out: Activations,
    x: Activations,
    convolution: Convolution,
    weights: int,
    offsets: int,
    together: int,
    lanes: int,
    ending: Ending,
) -> Operation: ...
def winograd_convolution(
    out: Activations, x: Activations, convolution: Convolution, weights: int, together: int, ending: Ending
) -> Operation: ...
def scale_shift(out: Activations, x: Activations, ending: Ending) -> Operation: ...
def multiply(out: Activations, x: Activations, y: Activations, activation: int, slope: float) -> Operation: ...
def layer_norm(out: Activations, x: Activations, weight: int, bias: int, eps: float) -> Operation: ...
def attention(
    out: Activations,
    query: Activations,
    key: Activations,
    value: Activations,
    heads: Sequence[tuple[int, int, int]],
    count: int,
    size: int,
    scale: float,
) -> Operation: ...
def pick_channels(out: Activations, x: Activations, channels: int) -> Operation: ...
def relayout(out: Activations, x: Activations, batch: int) -> Operation: ...
def max_pool(out: Activations, x: Activations, window: Window) -> Operation: ...
def average_pool(out: Activations, x: Activations, window: Window, count_padding: bool) -> Operation: ...
def global_average_pool(out: Activations, x: Activations) -> Operation: ...
