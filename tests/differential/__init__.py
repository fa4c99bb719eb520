"""The kernel's overlayfs is the oracle: one list of scenarios, run on it and on voile, compared."""
