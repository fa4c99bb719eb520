"""The union of layers. Knows nothing of FUSE; files are named as in the kernel's fs/overlayfs."""
