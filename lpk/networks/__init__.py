"""What a network is to lpk.

flat        its entries as two flat vectors, and the layout that tells where each stands
prunable    which of its weights are pruned
states      which entries of a state dict are one tensor
wrappers    what PyTorch wraps around it, and the masks of torch.nn.utils.prune
copies      copies of modules
links       whose tensor a parameter is, before and after a stranger's code ran
flat_model  a copy of it whose parameters are views of flat vectors, so that to write a candidate is one copy
batchnorm   its BatchNorm layers
synchronised  the same in several processes, which share the statistics of a batch
plain       which of its modules compute what their class does
tracing     its graph, by torch.fx
known       proxies that know what they stand for, where it decides by shapes
attention   PyTorch's modules of attention, as the layers that they are made of
folding     its graph, with BatchNorm folded into the layer before
mixing      whether a sample's output depends on the other samples of its batch
replay      on a GPU: what is done with it many times alike, recorded as CUDA graphs

A module goes in; `flat.Layout.of_model` asks `prunable` and `states`, and gives the vectors that the kernels of
lpk.ops work on. `tracing`, `plain` and `mixing` tell lpk.pooling and lpk.sparse what may be computed in another way.
"""
