"""What runs inside a peer's own environment: numpy, the standard library and that peer's package, nothing of nestvec's.

`host.py` is the process; every other file teaches it one library. None of them imports another.
"""
