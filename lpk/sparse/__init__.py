"""The inference engine: networks on a CPU, faster than dense ones because they are sparse.

What its users have:
convert    `sparsify`: a model and a ticket's values become a network that exploits its zeros
module     that network as a torch.nn.Module: calls, copies, processes
compact    the weights that remain, in memory and in files
errors     what the engine refuses

From a model to a plan:
plan       walks the model's graph once; each node becomes a step, or a part that PyTorch runs
calls      what a node calls, in the engine's terms
results    what a node returns, and what it changes in place
batches    what it returns for batches of other sizes
fusion     steps that extend the one before: BatchNorm, additions, activations
endings    the types that the model returns
steps      the plan: steps, and the values between them

From a plan to calls:
network    a model for samples of one shape: the plan that holds for a batch, and where it runs
patches    the plan for few images, each cut into patches
runs       the plan for one number of images: the calls that compute it
measure    BatchNorm's statistics, measured while a batch passes
filters    the filters of its layers, packed when they are first needed
dead       weights that change nothing
fold       BatchNorm as a scale and a shift
buffers    memory for its values
arena      that memory, in large pages

In PyTorch instead:
dense      the whole network, as fast as PyTorch computes it
onednn     its layers, packed for oneDNN
costs      what PyTorch and the engine take, by shapes alone

From a call to native code (csrc/cpu/engine):
kernels    the operations
checks     what they refuse
packing    a convolution's weights, in the form that takes the least time
blocks     activations, 16 images side by side

`sparsify` keeps what remains of the weights. The first call with samples of a shape traces the model into a plan; the
first with a number of images gives its values buffers, packs the filters and prepares an operation for each step. Every
call packs its inputs into blocks, runs the operations on all threads, and unpacks what the plan returns.

A layer kind is added along that way. One to read is Pool: its step in `steps`; the modules and functions that are one
in `calls`; who adds the step for such a call, `plan` (_known); whether it can work on patches, in `patches`; which of
its channels are zero or read, in `dead`; the operation for its step, in `runs` (_operation); that operation itself, in
`kernels`, with its checks in `checks`; its loops in csrc/cpu/engine (pool.cpp), bound in csrc/binding_engine.cpp and
typed in lpk/_core.pyi. What has no step runs in PyTorch.
"""

from lpk.sparse.compact import load_sparse, save_sparse
from lpk.sparse.convert import sparsify
from lpk.sparse.errors import NotSupported
from lpk.sparse.module import Sparse

__all__ = ["NotSupported", "Sparse", "load_sparse", "save_sparse", "sparsify"]
