"""Each figure and table of the paper as one function on a run directory."""
