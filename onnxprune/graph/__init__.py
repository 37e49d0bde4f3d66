"""A model as it lies in memory and in files: protobuf, weights in files, bodies, and a view without either."""
