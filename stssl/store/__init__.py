"""Read and write the Zarr store: schema, shards, reader, caches, object stores, writer, verification."""
