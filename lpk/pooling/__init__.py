"""Algorithms 2 and 3: the tickets of a run, interpolated into a stronger one of the same sparsity.

pool            `lpk.pool`: what it may be asked for, target by target
search          offers a target one candidate after another
methods         what can be asked for: methods, searches, criteria, statistics, coefficients
interpolations  a candidate: interpolated and pruned, by lpk.ops
evaluate        how good it is: calibrated, then scored on validation samples
calibration     BatchNorm's statistics, renewed until they have settled
criteria        what counts: errors or loss, and each sample's margin
race            which validation samples are asked first, and when a network is out of a race
tally           a network's errors and loss on them, counted on the device
samples         these samples, in batches that are prepared once
uploads         tickets on the device
backends        what computes the forward pass: PyTorch (eager) or the sparse engine (lpk.sparse)
eager           PyTorch, with BatchNorm folded
convolutions    on a GPU: weights as its kernels read them, ReLU and addition in the convolution's kernel
accuracy        correct predictions of any model, and what two differ by
scores          scores that tell no network from another

`search` takes two tickets' flat vectors and a coefficient to `interpolations`, writes the result into a model whose
parameters are views of flat vectors, and asks `evaluate` for its score, which gives up as soon as it can't win.
"""
