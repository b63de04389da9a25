"""Whether an answer equals the gold answer: texts to plain LaTeX, to forms, to a question that sympy may have to decide."""
