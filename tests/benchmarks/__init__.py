"""What the library costs above raw PyTorch hooks that do the same: `python -m tests.benchmarks`."""
