"""What a person reads at the end.

results  `lpk.report`: the test scores of tickets and pools as results.json
report   a run: its table, its sentence and report.html
numbers  how scores are written: in percent and points, or plain
page     a page of HTML that needs no other file
plots    plots as SVG, and their colours
"""
