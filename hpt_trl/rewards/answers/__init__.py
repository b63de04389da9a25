"""Whether an answer equals the gold answer: texts become plain LaTeX, then forms, then a question for sympy."""
