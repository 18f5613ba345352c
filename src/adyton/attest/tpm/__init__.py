"""Measured boot by a TPM 2.0: quotes, event logs, and what a policy asks of PCRs. Pure, as all of `attest`.

`structures` parses what a TPM signs. `document` is the form in which evidence travels. `verify` judges whether it is
genuine. `event_log` replays what the firmware measured. `pe` computes the hash by which a program is measured.
`pcr_policy` compares PCRs with what a policy names.
"""
