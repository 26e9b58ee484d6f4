"""The C++ kernels and their naive oracle.

`_answer` is all that a server needs: it multiplies and adds residues and knows no secret. `_client` encrypts,
verifies and recovers. `naive` has the same functions in plain Python integers; tests compare the two.
"""
