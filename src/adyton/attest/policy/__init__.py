"""The rules of a policy, one idea a module: what they are, how they are read, and how each is judged.

`evidence_policy.Policy` puts the rules together, and `appraise` judges a report by them. This package reads nothing
from outside.
"""
