"""Starting a run's processes: accelerate's profiles, Ray, and what both need to know of them."""
