"""`stage: pipeline`: a chain of recipes, each of which trains on what earlier ones left."""
