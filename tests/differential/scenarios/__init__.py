"""The scenarios, one module per subject. Each module registers its own (see differential.scenario)."""
