"""What a person reads at the end.

results         `lpk.report`: the test scores of tickets and pools as results.json
costs           what they cost: density by layer, bytes, multiply-adds
latency         and how long they take, on this machine
choice          which one to ship, by validation scores

What is shown of results.json:
report          a run: its tables, its sentences and report.html
summary         what pooling did, in words
recommendation  which network to ship, in words
cost_tables     tables and pictures of costs
numbers         how methods and scores are written: in percent and points, or plain
plots           plots as SVG, and their colours
"""
