"""Times DeepSparse on an ONNX network, in an interpreter of its own: it needs older packages than lpk.

python deepsparse_peer.py network.onnx inputs.npy outputs.npy --threads 2

The batch is that of inputs.npy, float32 [B, ...]. When the network is compiled, outputs.npy is written and a line of
JSON is printed: DeepSparse's version, and the share of the operations that it runs itself instead of leaving them to
ONNX Runtime. Then every line of standard input is a number of calls to time, answered by a line {"seconds": [...]}.
"""

import argparse
import json
import os
import sys
import time

import numpy as np

WARM = 0.1  # seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network")
    parser.add_argument("inputs")
    parser.add_argument("outputs")
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    # What the library prints goes to standard error: standard output is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import deepsparse

    inputs = [np.load(given.inputs, allow_pickle=False)]
    engine = deepsparse.compile_model(given.network, batch_size=len(inputs[0]), num_cores=given.threads)
    np.save(given.outputs, engine.run(inputs)[0])
    about = {"version": deepsparse.__version__, "supported": engine.fraction_of_supported_ops}
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        times = [warm_seconds(lambda: engine.run(inputs)) for _ in range(int(line))]
        print(json.dumps({"seconds": times}), file=answers, flush=True)


def warm_seconds(call):
    """The time of a call after others that took WARM seconds together."""
    began = now = time.perf_counter()
    while now < began + WARM:
        call()
        now = time.perf_counter()
    call()
    return time.perf_counter() - now


if __name__ == "__main__":
    main()
