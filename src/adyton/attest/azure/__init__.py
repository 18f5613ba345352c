"""Evidence of Azure's confidential machines: a hardware report, Microsoft's paravisor above it, and its TPM.

The hardware (SEV-SNP or TDX) measures the paravisor only. The paravisor binds its TPM's attestation key in the hardware
report, and the TPM measures the guest. So whoever relies on this evidence trusts Microsoft's paravisor. Pure.

`hcl` parses the report of the paravisor, `claims` the JSON in it. `evidence` parses the bodies in which clients send
everything. `verify` judges whether it is genuine.
"""
