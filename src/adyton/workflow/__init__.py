"""What an owner and a cloud do, as functions: each verb of the command line is one of them, called with its options.

Nothing here prints, asks, or ends the process. A function takes its answers as arguments, tells its caller through
callbacks what it is doing, returns a frozen result whose `to_dict()` is what the verb says with `--json`, and raises
the errors of `adyton.errors`. `import adyton` gives the functions by their names.
"""
