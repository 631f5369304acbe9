"""What `import stssl` offers: the same functions that the command line calls.

`stssl/__init__.py` imports these names when they are first used, so that `import stssl` stays fast.
"""
