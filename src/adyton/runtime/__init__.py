"""A protected run: what is planned, the processes that have keys, and the sandbox of the program."""
