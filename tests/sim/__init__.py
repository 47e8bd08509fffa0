"""Whole clusters in one thread, driven by one seed: real cores, real storage logic, real blocks; simulated disks,
network, clocks and clients. `python -m tests.sim --help`; docs/testing.md says what it breaks and what it checks.
"""
