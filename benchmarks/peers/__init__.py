"""Servers to measure against, each set up and started by a module of its own.

Their environments lie outside of the repository, in PEERS_HOME (default ~/.cache/trimtab-peers), and are made on first
use. A peer that cannot be set up here raises Absent; a benchmark reports that and goes on.
"""
