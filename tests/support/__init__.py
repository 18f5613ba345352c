"""Helpers of the tests: doubles, factories, machines, worlds."""
