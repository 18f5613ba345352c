"""Is this evidence good? Pure: evidence, collateral, roots and time go in. A verdict or a refusal comes out.

::

    from adyton.attest.appraise import Policy, appraise
    from adyton.attest.collateral import Collateral
    from adyton.attest.dcap import verify
    from adyton.attest.roots import TrustRoots
    from adyton.attest.sgx import parse_quote

    report = verify(parse_quote(raw), Collateral.from_json(text), TrustRoots(), now)
    policy = Policy.from_dict({"tees": ["sgx"], "measurements": [mrenclave_hex]})
    claims = appraise(report, policy, now, report_data=expected)  # or AppraisalFailed, with every reason

Nothing here opens a file or a socket, reads a clock or draws random numbers. The modules are imported one by one,
because a program that is about to start does not need most of them.
"""
