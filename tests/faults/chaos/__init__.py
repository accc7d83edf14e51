"""A storm over agents and their tracker, and what must be so when it is over: ``python -m tests.faults.chaos``.

Processes talk about conversations through the public API while they, the tracker and the connections between
them are cut, delayed and killed. `model` says, from the log of the calls that returned, what the tracker must
know afterwards; `checks` compares.
"""
