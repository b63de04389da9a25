"""One process that has imported everything, and runs commands of `hpt-trl` as forks of itself: no run pays the imports.

`python -m tests.faults.serving FOLDER` reads jobs, a line of JSON each, from a pipe in the folder, and answers into
another one. Under `accelerate launch` each process does so, and a job is run by all of them together.
"""

import faulthandler
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from hpt_trl.cli.process import main
from hpt_trl.recipes.stages import STAGE_MODULES, load_stage
from hpt_trl.runs.collecting import collect_as_usual, collect_seldom
from tests.faults.controls import CONTROLS
from tests.faults.events import Watch, die

# What commands import only when they begin.
_LATER = ("hpt_trl.runs.runner", "hpt_trl.runs.curves", "hpt_trl.hub.merged", "hpt_trl.chat.talking")
_LATER += ("hpt_trl.pipeline.run", "tests.helpers.stage_runs", "tests.helpers.evaluations")
# Seconds until a process that hangs says where, and ends.
LIMIT = 90


def serve(folder: Path) -> None:
    """Runs jobs until the other end of the pipe is closed."""
    rank = int(os.environ.get("RANK", "0"))
    # Nobody waits for those who wait for the runs.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    replies = os.open(folder / "replies", os.O_WRONLY)
    with open(folder / f"requests-{rank}", encoding="utf-8") as requests:
        for line in requests:
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _await(json.loads(line), rank, replies)


def _await(job: dict[str, Any], rank: int, replies: int) -> None:
    def reply(**said: Any) -> None:
        os.write(replies, (json.dumps({"job": job["number"], "rank": rank, **said}) + "\n").encode())

    worker = os.fork()
    if worker == 0:
        try:
            os._exit(_work(job, rank, reply))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    reply(process=worker)
    _, status = os.waitpid(worker, 0)
    reply(code=os.waitstatus_to_exitcode(status))
    os._exit(0)


def _work(job: dict[str, Any], rank: int, reply: Any) -> int:
    # A group of its own, by which it is killed with all that it has started.
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{job['output']}-{rank}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    os.chdir(job["cwd"])
    os.environ |= job["variables"]
    sys.argv = ["hpt-trl", *job["words"]]
    if job["control"]:
        CONTROLS[job["control"]]()
    stop = job["stop"] or {}

    def act(event: str, path: str) -> None:
        if stop["do"] in ("die", "torn"):
            die(event, path, torn=stop["do"] == "torn")
        reply(told=stop["event"])
        if stop["do"] == "hold":
            os.kill(os.getpid(), signal.SIGSTOP)

    watch = Watch(job["watched"], stop.get("event") if stop.get("rank", 0) == rank else None, act)
    sys.addaudithook(watch)
    try:
        code = main(job["words"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 2
    except BaseException:
        traceback.print_exc()
        code = 1
    seen = list(watch.seen)
    sys.stdout.flush()
    sys.stderr.flush()
    if job["events"]:
        Path(f"{job['events']}-{rank}").write_text(json.dumps(seen))
    return code


if __name__ == "__main__":
    collect_seldom()
    for name in _LATER:
        import_module(name)
    for stage in STAGE_MODULES:
        load_stage(stage)
    collect_as_usual()
    # The launcher's own store would find the keys of the run before.
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    serve(Path(sys.argv[1]))
