"""Programs that nobody has read, run in a process each that reaches nothing: one machine away from the training."""
