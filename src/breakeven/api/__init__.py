"""The command line's verbs for Python: typed, with the same results that `--json` prints.

`import breakeven` offers each under its own name; which file holds it is nobody's business but this room's.
"""
