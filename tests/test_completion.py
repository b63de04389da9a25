"""The completion script in a real bash: commands, flags, recipes and folders."""

import shutil
import subprocess

import pytest

from hpt_trl.cli import build_parser
from hpt_trl.completion import SHELLS
from hpt_trl.recipes.bundled import bundled_recipes, recipe_name
from tests.helpers.processes import hpt_trl

# Asks the function that the script registers, as bash does at the Tab key.
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
registered=$(complete -p hpt-trl); function=${registered#*-F }; function=${function%% *}
"$function" hpt-trl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    written = hpt_trl("completion", "bash")
    assert written.returncode == 0, written.stderr
    path = tmp_path_factory.mktemp("completion") / "hpt-trl"
    path.write_text(written.stdout)
    return path


@pytest.fixture
def complete(script, tmp_path):
    (tmp_path / "outputs" / "one").mkdir(parents=True)
    (tmp_path / "outputs" / "two").mkdir()
    (tmp_path / "my_recipe.yaml").write_text("stage: sft\n")

    def ask(*words: str) -> list[str]:
        command = ["bash", "--norc", "-c", ASK, "bash", str(script), "hpt-trl", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout.split()

    return ask


def test_commands(complete):
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    assert set(complete("")) >= set(commands.choices)
    assert complete("sco") == ["score-reference"]


def test_recipes_are_completed_by_name_and_by_file(complete):
    names = [recipe_name(path) for path in bundled_recipes()]
    assert set(names) <= set(complete("run", ""))
    assert complete("check", "quick") == ["quickstart"]
    assert sorted(complete("run", "ppo/")) == sorted(name for name in names if name.startswith("ppo/"))
    assert complete("eval", "my_") == ["my_recipe.yaml"]
    assert complete("doctor", "quickstart", "pretrain/st") == ["pretrain/stories-tiny"]


def test_flags_folders_and_profiles(complete):
    assert set(complete("search", "--re")) == {"--reranker", "--rerank_depth", "--retries"}
    assert "--temperature" in complete("chat", "outputs/one", "--")
    assert {"--output_dir", "--accelerate", "--json", "--max_steps"} <= set(complete("run", "quickstart", "--"))
    assert complete("run", "quickstart", "--accelerate", "zero3") == ["zero3"]


@pytest.mark.parametrize(
    "words",
    [
        ("report",),
        ("report", "outputs/one"),
        ("report", "outputs/one", "outputs/two"),
        ("merge",),
        ("merge", "outputs/one"),
        ("push",),
        ("chat",),
        ("index",),
        ("index", "outputs/one"),
        ("search",),
        ("pages",),
        ("run", "quickstart", "--output_dir"),
    ],
    ids=" ".join,
)
def test_every_folder_is_completed_by_folders_alone(words, complete):
    assert complete(*words, "out") == ["outputs"]
    assert sorted(complete(*words, "outputs/")) == ["outputs/one", "outputs/two"]
    assert complete(*words, "my_") == []


def test_an_evaluation_is_named_by_its_folder_and_options_name_files(complete):
    assert "outputs" in complete("eval", "out")
    assert complete("chat", "outputs/one", "--image", "my_") == ["my_recipe.yaml"]
    assert complete("report", "outputs/one", "--output", "my_") == ["my_recipe.yaml"]


def test_every_positional_argument_is_completed_but_free_text(script):
    """A new command's argument has to be named in completion.py, or here."""
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    written = script.read_text()
    for name, command in commands.choices.items():
        places = [action for action in command._actions if not action.option_strings and action.dest != "overrides"]
        for place, action in enumerate(places):
            if action.dest != "query" and not action.choices:
                assert f"_shtab_hpt_trl_{name.replace('-', '_')}_pos_{place}_COMPGEN=" in written, (name, action.dest)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_that_it_can_read(shell):
    written = hpt_trl("completion", shell)
    assert written.returncode == 0 and "quickstart" in written.stdout and "score-reference" in written.stdout
    if shutil.which(shell):
        parsed = subprocess.run([shell, "-n"], input=written.stdout, capture_output=True, text=True)
        assert parsed.returncode == 0, parsed.stderr


def test_another_shell_is_refused_and_help_says_what_to_write():
    refused = hpt_trl("completion", "cmd.exe")
    assert refused.returncode == 2 and "bash" in refused.stderr
    told = hpt_trl("completion", "--help").stdout
    assert 'eval "$(hpt-trl completion bash)"' in told and "fpath" in told
