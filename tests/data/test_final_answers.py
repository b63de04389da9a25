"""Where texts give their final answer."""

import time

import pytest

from hpt_trl.data.final_answers import final_answer, final_answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 3 = 5\n#### 5", "5"),
        ("#### 5\n#### 7", "7"),
        ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1} or rather \\boxed{2}", "2"),
        ("\\boxed{3}\n#### 4", "4"),
        ("#### \\boxed{7}", "7"),
        ("the answer is 5", None),
        ("\\boxed{5", None),
        ("#### ", None),
        ("\\boxed{}", None),
        ("\\boxedx{5}", None),
        ("##### 5", None),
        ("", None),
        # Headings.
        ("So \\boxed{5}.\n#### Verification", "5"),
        ("\\boxed{5}\n\n#### Verification:\n2 + 3 = 5", "5"),
        ("\\boxed{5}\n#### Check: 2+3=5", "5"),
        ("\\boxed{3}\n#### Step 2", "3"),
        ("#### 1. First step\nAdd.\n#### 5", "5"),
        ("\\boxed{5}\n#### Solution 2", "5"),
        ("\\boxed{5}\n#### Alternative approach with 3 variables", "5"),
        ("\\boxed{5}\n#### Checking x = 5", "5"),
        ("#### 5\n#### Summary of the results", "5"),
        ("\\boxed{5}\n#### Why 5 is right", "5"),
        ("\\boxed{5}\n#### Let us verify 3+2", "5"),
        ("\\boxed{5}\n#### Double-check with n=3", "5"),
        ("\\boxed{5}\n#### Remark 2", "5"),
        ("\\boxed{5}\n#### Proof that 5>3", "5"),
        ("\\boxed{5}\n#### Proof: 5>3", "5"),
        ("\\boxed{5}\n#### **Why $3+2=5$ holds**", "5"),
        ("\\boxed{5}\n#### Substituting x = 3", "5"),
        ("\\boxed{5}\n#### A second look at \\(n=3\\)", "5"),
        ("\\boxed{5}\n#### ✅ Verify 3+2", "5"),
        ("\\boxed{5}\n#### 验证 3+2", "5"),
        ("#### 5\n#### Why 5 is right", "5"),
        ("#### Remark 2", "Remark 2"),
        ("#### Conclusion\nThe answer is \\boxed{4}", "4"),
        ("#### Final Answer\n\\boxed{7}\nI hope it is right.", "7"),
        ("#### Answer\n5", "5"),
        ("#### Paris", "Paris"),
        ("\\boxed{1}\n#### yes", "yes"),
        # Answers after a box.
        ("\\boxed{1}\n#### 42", "42"),
        ("\\boxed{1}\n#### Answer: 42", "42"),
        ("\\boxed{1}\n#### Answers: 4, 2", "4, 2"),
        ("\\boxed{1}\n#### Therefore, the answer is 42", "42"),
        ("\\boxed{1}\n#### 42 dollars", "42 dollars"),
        ("\\boxed{1}\n#### $\\frac12$", "$\\frac12$"),
        ("\\boxed{1}\n#### x = 5", "x = 5"),
        ("\\boxed{1}\n#### Thus x=5", "Thus x=5"),
        ("\\boxed{1}\n#### Total cost = 5", "Total cost = 5"),
        ("\\boxed{1}\n#### AB > 5", "AB > 5"),
        ("\\boxed{1}\n#### log 5", "log 5"),
        ("\\boxed{1}\n#### Option (B) 5", "Option (B) 5"),
        ("\\boxed{1}\n#### Jan 5, 2024", "Jan 5, 2024"),
        ("\\boxed{1}\n#### Solution: 42", "42"),
        ("\\boxed{1}\n#### Solution: x=5", "x=5"),
        ("\\boxed{1}\n#### Solutions: 2, 3", "2, 3"),
        ("\\boxed{1}\n#### Solution: add 2 and 3", "1"),
        ("\\boxed{1}\n#### Solution 2", "1"),
        ("\\boxed{1}\n#### Answer (B)", "(B)"),
        ("\\boxed{1}\n#### Answer 42", "42"),
        ("\\boxed{1}\n#### Final answer $\\frac12$", "$\\frac12$"),
        ("\\boxed{1}\n#### Ans: 5", "5"),
        ("\\boxed{1}\n#### Yes, 42", "Yes, 42"),
        ("\\boxed{1}\n#### USD 42", "USD 42"),
        ("\\boxed{1}\n#### Area $=5$", "Area $=5$"),
        ("#### 5\n#### Solution: 42", "42"),
        # What stands around the answer of a line.
        ("#### Final answer: 5", "5"),
        ("#### The answer is 5", "5"),
        ("#### Total: 5", "5"),
        ("#### The sum is 5", "5"),
        ("#### **5**", "5"),
        ("#### **Final Answer:** 5", "5"),
        ("#### The final answer is \\boxed{8}", "8"),
        ("#### 1,234 dollars", "1,234 dollars"),
        # Ways to write a box.
        ("\\boxed 5", "5"),
        ("\\boxed 12.", "12"),
        ("\\boxed {5}", "5"),
        ("\\boxed\\frac{1}{2}", "\\frac{1}{2}"),
        ("\\boxed\\frac12", "\\frac12"),
        ("\\fbox{5}", "5"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{5 or so, no: \\boxed{6}", "6"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        # One answer in several boxes.
        ("x=\\boxed{2} or x=\\boxed{3}", "2, 3"),
        ("$x_1=\\boxed{2}$ and $x_2=\\boxed{3}$", "2, 3"),
        ("\\boxed{2}, \\boxed{3}, and \\boxed{4}", "2, 3, 4"),
        ("\\boxed{1} \\boxed{2}", "2"),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "part",
    ["\\boxed{", "#### ", "#### 5\n", "\\boxed{1} or ", "{", "}", "\n", "\\boxed{1}\n#### 2\n", "\\boxed ", "\\"],
)
def test_long_texts_are_read_in_linear_time(part):
    start = time.perf_counter()
    final_answers(part * (200_000 // len(part)))
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("start", "part", "end", "length"),
    [
        ("#### ", "ha", "=5", 2000),
        ("#### ", "ha ", "=5", 2000),
        ("#### A", " ", "=5", 20_000),
        ("\\boxed{1},", " ", "x\\boxed{2}", 20_000),
        ("\\boxed{1}", " ", "x\\boxed{2}", 20_000),
        ("\\boxed{1} and", " ", "x\\boxed{2}", 20_000),
        ("\\boxed{1},", "$", "x\\boxed{2}", 20_000),
    ],
)
def test_a_long_part_that_fits_nothing_is_passed_over_in_linear_time(start, part, end, length):
    """The lengths are such that two parts of a pattern that share a run take seconds of the processor, not hours."""
    before = time.process_time()
    final_answers(start + part * (length // len(part)) + end)
    assert time.process_time() - before < 2
