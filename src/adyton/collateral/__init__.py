"""What evidence is judged against, and how it is got.

Certificates, revocation lists and TCB documents, from whom and how long they are kept.
"""
