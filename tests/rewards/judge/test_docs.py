"""What docs/vrag.md says of the judge's prompt is the prompt."""

from hpt_trl.rewards.judge.question import read_template
from tests.helpers.processes import ROOT


def test_the_documented_prompt_is_the_bundled_one():
    assert f"```text\n{read_template(None)}```\n" in (ROOT / "docs" / "vrag.md").read_text(encoding="utf-8")
