"""A small data set in the form of CodeContests: problems with correct and incorrect solutions, made on the spot."""

from typing import Any


def solutions(problems: int = 12, correct: int = 4, incorrect: int = 3) -> list[dict[str, Any]]:
    """Rows of layout `solutions`; the difficulty of problem n is n, and every third problem has an input."""
    return [
        {
            "instruction": f"Read a number and print it plus {problem}.",
            "input": f"n = {problem}" if problem % 3 == 0 else None,
            "output": f"n = int(input())\nprint(n {'+' if number < correct else '-'} {problem})  # {number}",
            "problem_id": f"problem-{problem}",
            "is_correct": number < correct,
            "difficulty": problem,
        }
        for problem in range(1, problems + 1)
        for number in range(correct + incorrect)
    ]


def problems_with_lists(count: int = 4) -> list[dict[str, Any]]:
    """Rows as CodeContests has them: one per problem, its solutions in lists, each with its language."""
    return [
        {
            "name": f"problem-{problem}",
            "description": f"Read a number and print it plus {problem}.",
            "difficulty": problem,
            "private_tests": {"input": ["1"], "output": [str(1 + problem)]},
            "solutions": {
                "language": ["PYTHON3", "CPP"],
                "solution": [f"print(int(input()) + {problem})", f"// plus {problem}"],
            },
            "incorrect_solutions": {"language": ["PYTHON3"], "solution": [f"print({problem})"]},
        }
        for problem in range(1, count + 1)
    ]
