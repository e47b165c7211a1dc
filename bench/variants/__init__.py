"""Servers that are not the product: one protection taken away, or a clock put in. To measure what it costs; demo only.

Nothing of it is an option of the server. A variant is the product's own code, in which this package has replaced some
functions before anything runs (patches.py, steps.py); who can run that can run any other program as well. It refuses
every configuration but the demo's, whose certificates and keys are worth nothing.
"""
