"""What the tests are built from. Nothing here uses voile: an oracle shares no code with what it judges."""
