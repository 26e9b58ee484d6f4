"""Tests that need Ray: run by tests/test_cluster.py, where there is no network but loopback."""
