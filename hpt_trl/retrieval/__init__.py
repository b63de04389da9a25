"""Pages and how they are found: reading, indexes on disk, rerankers, a service's client, and measures of a ranking."""
