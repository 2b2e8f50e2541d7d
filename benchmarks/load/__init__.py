"""Load on a running service: a closed loop, an open loop, and the checks L1 to L9 that are made with them."""
