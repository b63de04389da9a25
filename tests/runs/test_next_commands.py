"""The closing lines' commands: named where they work, and only there."""

import json
import shlex

import pytest

from hpt_trl.cli import build_parser
from hpt_trl.runs.next_commands import next_commands, serving

LORA = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", "r": 8}


def adapter(folder, **changes):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(LORA | changes))
    return folder


def test_a_model_can_be_talked_to_reported_and_served(tmp_path):
    folder = tmp_path / "a run"
    lines = dict(line.split(maxsplit=1) for line in next_commands(folder, "sft"))
    assert list(lines) == ["Talk:", "Report:", "Serve:"]
    for name, command in (("Talk:", "chat"), ("Report:", "report")):
        words = shlex.split(lines[name])
        assert words[0] == "hpt-trl"
        options = vars(build_parser().parse_args(words[1:]))
        assert options["command"] == command and str(folder) in (options.get("folders") or options.values())
    assert shlex.split(lines["Serve:"]) == ["vllm", "serve", str(folder)]


@pytest.mark.parametrize("stage", ["reward", "critic"])
def test_a_model_that_writes_no_text_is_only_reported(tmp_path, stage):
    assert [line.split()[0] for line in next_commands(tmp_path, stage)] == ["Report:"]


@pytest.mark.parametrize(("rank", "said"), [(8, []), (16, []), (17, ["32"]), (64, ["64"]), (400, ["512"])])
def test_an_adapter_is_served_over_its_base(tmp_path, rank, said):
    folder = adapter(tmp_path / "lora", r=rank)
    base = ["vllm", "serve", "owner/base", "--enable-lora", "--lora-modules", f"lora={folder}"]
    assert shlex.split(serving(folder)) == base + (["--max-lora-rank", *said] if said else [])


@pytest.mark.parametrize(
    "changes",
    [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"peft_type": "VERA"}, {"r": 1024}],
)
def test_an_adapter_that_vllm_cannot_load_is_merged_first(tmp_path, changes):
    folder = adapter(tmp_path / "lora", **changes)
    assert serving(folder) == f"hpt-trl merge {folder} {folder}-merged && vllm serve {folder}-merged"


def test_ranks_of_single_layers_count(tmp_path):
    folder = adapter(tmp_path / "lora", rank_pattern={"q_proj": 48})
    assert serving(folder).endswith(" --max-lora-rank 64")
