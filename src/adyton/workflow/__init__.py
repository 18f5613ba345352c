"""The verbs of the command line as functions of a Python library.

No function prints, asks questions, or ends the process. Options and answers are arguments. Callbacks report progress
and notices. The result is a frozen object, and its `to_dict()` is the document of the verb's `--json`. Errors are those
of `adyton.errors`. `import adyton` gives all these functions.
"""
