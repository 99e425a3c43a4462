cuda_compiled: bool
cuda_architectures: str
chunk: int

def interpolate(out: int, a: int, b: int, n: int, dtype: int, threads: int, alpha: float) -> None: ...
def interpolate_threshold(
    a: int, b: int, n: int, dtype: int, threads: int, alphas: list[float], keep: int
) -> tuple[list[int], list[int]]: ...
def interpolate_prune(
    out: int, a: int, b: int, n: int, dtype: int, threads: int, alpha: float, threshold_bits: int, last: int
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
    alphas: int,
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
