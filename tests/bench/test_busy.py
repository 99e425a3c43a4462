"""What bench.busy makes of a trace. The last two tests run a profiler."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import busy

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda span: (span[0], span[0] + span[1])))


@given(SPANS)
def test_covered_counts_each_moment_once(spans):
    assert busy.covered(spans) == len({moment for begin, end in spans for moment in range(begin, end)})


def event(category, name, begin=0.0, duration=1.0):
    return {"ph": "X", "cat": category, "name": name, "ts": 1e9 + begin, "dur": duration}


TRACE = [
    {"ph": "M", "name": "process_name", "args": {"name": "python"}},
    {"ph": "s", "cat": "ac2g", "name": "ac2g", "ts": 1e9},
    event("kernel", "convolution", 100, 50),
    event("kernel", "relu", 140, 20),  # on another stream, 10 of them at the same time
    event("kernel", "convolution", 300, 40),
    event("gpu_memcpy", "Memcpy DtoH", 400, 5),
    event("gpu_memset", "Memset", 500, 5),
    event("gpu_user_annotation", "everything", 0, 5000),
    event("cpu_op", "aten::conv2d", 0, 5000),
    event("cuda_runtime", "cudaLaunchKernel"),
    event("cuda_runtime", "cudaLaunchKernelExC"),
    event("cuda_driver", "cuLaunchKernel"),
    event("cuda_runtime", "cudaGraphLaunch"),
    event("cuda_runtime", "cudaMemcpyAsync"),
    event("cuda_runtime", "cudaStreamSynchronize"),
]


def test_summary_counts_the_work_of_the_device():
    found = busy.summary(TRACE, wall=220e-6)
    assert found["busy"] == pytest.approx(110e-6) and found["share"] == pytest.approx(0.5)
    assert (found["kernels"], found["kernel_launches"], found["graph_launches"]) == (3, 3, 1)
    assert found["synchronizations"] == 1
    assert [(name, count) for name, count, _ in found["top"]] == [("convolution", 2), ("relu", 1)]
    assert [seconds for _, _, seconds in found["top"]] == pytest.approx([90e-6, 20e-6])


def test_summary_names_the_longest_kernels_alone():
    found = busy.summary([event("kernel", f"kernel {i}", 10 * i, i) for i in range(1, 13)], wall=1.0)
    assert [name for name, _, _ in found["top"]] == [f"kernel {i}" for i in range(12, 2, -1)]


def test_summary_of_a_trace_without_a_device_is_nothing():
    assert busy.summary([e for e in TRACE if e.get("cat") == "cpu_op"], wall=1.0) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_call_runs_and_nothing_is_said():
    assert busy.profiled(lambda: int(torch.ones(3).sum())) == (3, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here")
def test_on_a_gpu_the_kernels_of_a_call_are_found():
    result, found = busy.profiled(lambda: float(torch.ones(1 << 20, device="cuda").cos().sum()))
    assert result == pytest.approx(0.5403 * (1 << 20), rel=1e-3)
    assert found["kernels"] >= 3 and found["kernel_launches"] >= 3 and found["graph_launches"] == 0
    assert found["synchronizations"] >= 1 and 0 < found["busy"] < found["wall"]
