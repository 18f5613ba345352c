"""Backup and restore: everything of an owner's home in one sealed file, whatever database it lives in.

::

    FILE (tar)
      header.json    version, id, store id, time, how to get the key: a passphrase, or N of M shares
      content        a protected file (docs/protected-file.md) that holds a tar of
                       home/…         configuration, certificates, keys, master key, collateral, a checkpoint
                       store.sqlite   all tables of the store, as of one moment; keys in it stay wrapped

The key of `content` is 16 bytes: derived from a passphrase by scrypt, or drawn and split by Shamir's scheme, so that
any N of M shares give it back and fewer reveal nothing about it (`shares`).
"""
