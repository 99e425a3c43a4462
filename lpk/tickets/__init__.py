"""What remains of each round of pruning, and of a pool: in memory and in files.

ticket       a trained subnetwork
tickets      the tickets of one network
store        a directory of tickets that grows round by round
pooled       a pooled network, and its file
adoption     tickets of networks that others pruned: state dicts, modules, checkpoints
conventions  what others call the weights in a state dict, and where their masks are
checkpoints  which files of a folder hold networks, by round
state_dicts  the state dict in a file that others wrote
files        JSON and tensors under a digest
nested       nested states in such files
tensors      the safetensors format
reading      files that may be anything
directories  files replaced whole or not at all; locks
versions     what a result depends on

A network's values pass as `lpk.networks.flat.Flat`; `store` packs them, `files` puts them under a digest, and
`directories` writes them. What is read goes the other way, and is checked at each step.
"""
