"""Recall and speed of nestvec and its peers, measured as a customer would: through public names only.

`nestvec bench` runs it; README.md says how to read the results, LOG.md keeps them.
"""
