"""The inference engine: networks on a CPU, faster than dense ones because they are sparse.

What its users have:
convert    `sparsify`: a model and a ticket's values become a network that exploits its zeros
module     that network as a torch.nn.Module: calls, copies, processes
compact    the weights that remain, in memory and in files
errors     what the engine refuses

From a model to a plan:
inputs     what a model is called with
plan       walks the model's graph once; each node becomes a step, or a part that PyTorch runs
placing    which step it becomes
attending  attention among them
nodes      what is known of the nodes meanwhile
calls      what a node calls, in the engine's terms
results    what a node returns, and what it changes in place
batches    what it returns for batches of other sizes
views      which views of a value are that value: tokens, channels last
fusion     steps that extend the one before: BatchNorm, additions, activations
regions    what PyTorch runs, gathered, on ordinary tensors
endings    the types that the model returns
steps      the plan: steps, and what passes between them

From a plan to calls:
network    a model for inputs of one kind: the plan that holds for a batch, and where it runs
patches    the plan for few images, each cut into patches
narrow     where in it values are cut anew
runs       the plan for one number of images: the calls that compute it
measure    BatchNorm's statistics, measured while a batch passes
filters    the filters of its layers, packed when they are first needed
dead       weights that change nothing
fold       BatchNorm as a scale and a shift
buffers    memory for its values, which they share
arena      that memory, in large pages

What is told:
profile    a call, step by step

In PyTorch instead:
choice     which takes less time, by the model of costs
dense      the whole network, as fast as PyTorch computes it
onednn     its layers, packed for oneDNN
costs      what PyTorch and the engine take, by shapes alone

From a call to native code (csrc/cpu/engine):
kernels    the operations
checks     what they refuse
packing    a convolution's weights, in the form that takes the least time
blocks     activations, 16 images side by side

`sparsify` keeps what remains of the weights. The first call with inputs of a kind traces the model into a plan; the
first with a number of samples gives its values buffers, packs the filters and prepares an operation for each step.
Every call packs what the engine reads into blocks, runs the operations on all threads, and unpacks what PyTorch reads
or the plan returns. A plan that would take longer than PyTorch is left to that.

A layer kind is added along that way. One to read is Pool: its step in `steps`; the modules and functions that are one
in `calls`; who adds the step for such a call, `placing` (_on_engine); whether it can work on patches, in `patches`;
which of its channels are zero or read, in `dead`; the operation for its step, in `runs` (_operations); that operation,
in `kernels`, with its checks in `checks`; its loops in csrc/cpu/engine (pool.cpp), bound in csrc/binding_engine.cpp and
typed in lpk/_core.pyi. What has no step runs in PyTorch.
"""

from lpk.sparse.compact import load_sparse, save_sparse
from lpk.sparse.convert import sparsify
from lpk.sparse.errors import NotSupported
from lpk.sparse.module import Sparse

__all__ = ["NotSupported", "Sparse", "load_sparse", "save_sparse", "sparsify"]
