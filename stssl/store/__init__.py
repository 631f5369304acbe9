"""Define the Zarr store of a converted archive, write it, check it, and read its pixels fast.

`schema` says what a store looks like, `writer` makes one, `verification` checks one. `Store` opens one; its readers
take patches from shard files (`shards`), through a disk cache from object stores (`fetched`, `disk`, `remote`), or
through zarr-python for any other layout. `cache` keeps decoded copies in host or device memory.
"""
