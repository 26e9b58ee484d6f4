"""The data folder: segment files, the catalogue, keys at rest, and what may be removed when."""
