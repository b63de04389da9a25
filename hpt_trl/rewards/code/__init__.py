"""Answers that are programs: the tests of a row, the code in a completion, and how many tests it passes."""
