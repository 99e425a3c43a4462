"""What a person reads at the end.

report  a run: its table, its sentence and report.html
page    a page of HTML that needs no other file
plots   plots as SVG, and their colours
"""
