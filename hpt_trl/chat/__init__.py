"""Talking to the model that a run has left: `hpt-trl chat OUTPUT_DIR`."""
