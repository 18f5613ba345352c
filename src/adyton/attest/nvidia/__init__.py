"""NVIDIA's GPU attestation: reports, device certificates, reference values (RIM), OCSP answers, and sets of devices.

It is pure: bytes, collateral and a time go in, and a result comes out. `device` verifies one GPU or NVSwitch, `assess`
a whole list and its policy. A verified GPU never releases a key by itself: it is a device of a verified CPU guest.
"""
