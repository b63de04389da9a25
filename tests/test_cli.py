"""The command line, by real processes: speed, exit codes, messages without a traceback, several processes."""

import json
import re
import shlex
import signal
import subprocess
import sys

import pytest

from hpt_trl.cli import build_parser, main
from hpt_trl.cli.parser import JSON_COMMANDS
from tests.helpers.processes import ENVIRONMENT, ROOT, hpt_trl, hpt_trl_within


def test_a_working_directory_that_is_gone_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["check", "quickstart"]) == 2
    assert "the working directory was removed" in capsys.readouterr().err


def test_help_is_short_and_quick():
    result = hpt_trl_within(0.5, "--help")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) <= 60
    assert all(command in result.stdout for command in ("run", "check", "list", "report"))


@pytest.mark.parametrize("command", build_parser()._subparsers._group_actions[0].choices)
def test_help_of_every_command_is_short_and_quick_and_has_examples(command):
    result = hpt_trl_within(0.5, command, "--help", COLUMNS="80")
    assert result.returncode == 0 and f"usage: hpt-trl {command}" in result.stdout
    assert len(result.stdout.splitlines()) <= 60
    described, examples = result.stdout.split("\nexamples:")
    # What is told in sentences is as wide as the terminal.
    assert all(len(line) <= 80 for line in described.splitlines())
    assert f"  hpt-trl {command}" in examples or f"$(hpt-trl {command}" in examples


def test_the_examples_are_commands():
    """Every line of them is parsed, but for the shell's own words."""
    parser = build_parser()
    (commands,) = (action for action in parser._actions if action.dest == "command")
    for name, command in commands.choices.items():
        found = re.findall(rf"^  (hpt-trl {name}\b[^\n(>]*)", command.epilog, flags=re.MULTILINE)
        assert found, name
        for line in found:
            words = shlex.split(line)[1:]
            parser.parse_args([word for word in words if word != "--json"] if name in JSON_COMMANDS else words)


def test_the_help_of_check_says_what_it_tells():
    told = " ".join(hpt_trl("check", "--help").stdout.split())
    assert "costs" in told and "peak memory" in told and "this machine lacks" in told and "installs it" in told


def test_help_of_commands_and_version():
    for words in (["run", "--help"], ["run", "anything", "--beta", "1", "--help"]):
        result = hpt_trl(*words)
        assert result.returncode == 0 and "usage: hpt-trl run RECIPE [--key value ...]" in result.stdout
    assert hpt_trl("--version").stdout.startswith("hpt-trl ")


def test_list_shows_every_recipe_without_importing_torch():
    code = (
        "import sys; from hpt_trl.cli import main; code = main(['list']);"
        "heavy = {'torch', 'transformers', 'trl'} & set(sys.modules); sys.exit(str(heavy) if heavy else code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["RECIPE", "STAGE", "MODEL", "DATA", "HARDWARE"]
    names = {
        path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")
    }
    assert {line.split()[0] for line in lines[1:]} == names
    assert not [line for line in lines if line.endswith(" -")], "a recipe has no `# Hardware:` line"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "quikstart"], "error: there is no recipe `quikstart`"),
        (["run", "--max_steps", "3", "quickstart"], "error: the recipe comes before its overrides"),
        (["check", "quickstart", "--lerning_rate", "1"], "Did you mean `learning_rate`?"),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(words, said):
    result = hpt_trl(*words)
    assert result.returncode == 2
    assert said in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["chek", "quickstart"],
            "error: there is no command `chek`. Did you mean `check`? Commands: run, eval, check,",
        ),
        (
            ["grpo/stories-tiny"],
            "there is no command `grpo/stories-tiny`. Did you mean `hpt-trl run grpo/stories-tiny`?",
        ),
        (["my/recipe.yml"], "Did you mean `hpt-trl run my/recipe.yml`?"),
        (["zzz"], "error: there is no command `zzz`. Commands: run,"),
    ],
)
def test_unknown_command_is_refused(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">/dev/full", 2, "error: what the command prints cannot be written: No space left on device.\n"),
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
    ],
)
def test_where_nothing_can_be_printed_there_is_no_traceback(redirected, code, said):
    command = f"{sys.executable} -m hpt_trl list {redirected}"
    result = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert (result.returncode, result.stderr) == (code, said)


def test_an_empty_word_is_no_path(capsys):
    with pytest.raises(SystemExit):
        main(["check", ""])
    assert "argument RECIPE: it is empty" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_of_another_encoding_is_no_fault(encoding, tmp_path):
    code = (
        "import sys; from hpt_trl.cli import command, commands, process; "
        "process.run_command = lambda words: print('\\u27e6\\xe9\\U0001f600'); command()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT | {"PYTHONIOENCODING": encoding}, cwd=ROOT
    )
    assert result.returncode == 0 and b"Traceback" not in result.stderr
    assert result.stdout.decode(encoding) == "⟦é😀\n".encode(encoding, "backslashreplace").decode(encoding)


def test_interrupt_is_one_line_and_exit_code_130(tmp_path):
    # A reward that takes its time to be imported says when the command is under way.
    (tmp_path / "slow_reward.py").write_text('import time\nprint("ready", flush=True)\ntime.sleep(60)\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "hpt_trl", "check", "quickstart", "--reward_funcs", "slow_reward.reward"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted" and "Traceback" not in errors


def test_of_several_processes_one_speaks_and_all_fail():
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "accelerate_configs/cpu.yaml"), "--main_process_port", "0"]
    result = subprocess.run(
        [*launch, "-m", "hpt_trl", "run", "no-such-recipe"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert result.returncode != 0
    # The launcher's own account names both ranks; without it this test could pass on a single process.
    assert "rank      : 0" in result.stderr and "rank      : 1" in result.stderr, result.stderr
    assert result.stderr.count("there is no recipe `no-such-recipe`") == 1
    assert "error in process 1" not in result.stderr


def test_a_process_whose_error_is_its_own_is_heard():
    result = hpt_trl("run", "no-such-recipe", RANK="1")
    assert result.returncode == 2
    assert result.stderr.startswith("error in process 1: there is no recipe")


# Says on stderr when torch begins to be imported, and runs a command.
_TELLS_TORCH = """
import sys


class Seen:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("[torch]", file=sys.stderr, flush=True)


sys.meta_path.insert(0, Seen())
from hpt_trl.cli import main

sys.exit(main(sys.argv[1:]))
"""
# What a run of one process may tell beside its result.
_TOLD = re.compile(
    r"(Reading .+|Checking rows, rewards and tokenizer|Loading the model|Making the model) \.\.\."
    r"|[\w ,-]+: +\d+%\|.*|\[torch\]|"
)


def test_a_run_speaks_before_torch_is_imported_and_tells_nothing_but_its_progress(recipe):
    path = recipe("sft")
    words = [sys.executable, "-c", _TELLS_TORCH, "run", path, "--max_steps", "2"]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    told = re.split(r"[\r\n]", done.stderr)
    assert told[0] == f"Reading {path} ..." and told.index("[torch]") > 0
    assert [line for line in told if not _TOLD.fullmatch(line)] == []


def test_a_report_imports_no_training_library(tmp_path):
    """Of a run, and of a pipeline that holds it."""
    run = tmp_path / "sft"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n')
    stage = {"stage": "sft", "uses": [], "measure": None, "contents": {}}
    record = {"pipeline": "p.yaml", "order": ["sft"], "stages": {"sft": stage}}
    (tmp_path / "pipeline.json").write_text(json.dumps(record))
    code = (
        "import sys; from hpt_trl.cli import main; codes = [main(['report', folder]) for folder in sys.argv[1:]];"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else sum(codes))"
    )
    words = [sys.executable, "-c", code, str(run), str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "Not finished: 2 steps are logged" in result.stdout and (run / "curves.png").exists()


@pytest.mark.parametrize("command", ["run", "eval", "check", "score-reference"])
def test_a_command_without_its_recipe_says_what_it_needs(command, capsys):
    assert main([command]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: hpt-trl {command} needs a recipe: a YAML file, or the name of a bundled one")


def test_what_only_unix_has_is_imported_where_it_is_used():
    """As on Windows, which has none of these modules."""
    code = (
        # Libraries on Linux import it as well.
        "import sys, torch, datasets; from trl import GRPOTrainer, SFTTrainer; from peft import PeftModel;"
        "sys.modules['resource'] = None;"
        "import hpt_trl.runs.totals, hpt_trl.rewards.answers.worker, hpt_trl.runs.evaluation, hpt_trl.chat.talking;"
        "from hpt_trl.rewards.functions import REWARDS"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stderr
