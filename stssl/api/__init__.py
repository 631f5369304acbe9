"""Offer the functions of `import stssl`. The command line offers the same functions.

`stssl/__init__.py` imports these names at their first use, to keep `import stssl` fast.
"""
