"""The format of NDIF 0.8, which published servers and clients speak, in one place."""
