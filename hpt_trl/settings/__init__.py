"""What a user writes, as typed values with their places: a recipe's file, its keys, their values and ranges."""
