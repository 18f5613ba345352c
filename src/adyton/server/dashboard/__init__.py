"""The owner's web page: what was released and refused, and why; programs, keys, platforms. Works without JavaScript."""
