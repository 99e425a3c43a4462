"""Algorithm 1: iterative magnitude pruning.

imp          the algorithm: train, prune, rewind, for each round
sparsity     how many weights each round keeps, in which layers, and which
resuming     a run's directory, and how it goes on after an interruption
sharing      a run in several processes: rank 0 stores, all hold the same bits
precautions  what is refused before training, and what it warns of
masking      keeps pruned weights at zero, whatever the user's training does
train        a trainer with the paper's recipe
step         one step of it: on a GPU recorded as a CUDA graph and replayed
recipe       its hyperparameters, and the seeds

`imp` gets a model and a function that trains it; each round's network becomes a ticket (lpk.tickets), whose mask keeps
the largest of the weights that remain (lpk.ops).
"""
