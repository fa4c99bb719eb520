"""What the standard library lacks: typed wrappers of Linux system calls, without policy."""
