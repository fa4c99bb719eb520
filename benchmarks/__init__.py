"""voile beside the kernel's overlayfs and fuse-overlayfs. `make bench`, or `python -m benchmarks --help`."""
