"""Tests of NVIDIA's GPU attestation."""
