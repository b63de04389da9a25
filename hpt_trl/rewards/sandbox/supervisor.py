"""Starts a program's process where there are no namespaces, and ends whatever it leaves behind.

It is run by its path and imports nothing of this package. Its argument is JSON: `command`, `environment` and `folder`
of the process; `sandlock`, further arguments of `sandlock.Sandbox` (null for no isolation); `path`, the folders in
which packages are found; `user`, the uid and gid to take, or null. Standard input, output and error are the program's.

What loses its parent comes to this process (a subreaper), however often it forks and whatever session it is in.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36


def main() -> None:
    job = json.loads(sys.argv[1])
    sys.path[:0] = job["path"]
    import psutil

    # sandlock asks for a home folder, and a container's user may have none in its list of users.
    os.environ["HOME"] = job["folder"]
    if job["sandlock"] is not None:
        import sandlock
    if job["user"] is not None:
        os.setgroups([])
        os.setresgid(job["user"], job["user"], job["user"])
        os.setresuid(job["user"], job["user"], job["user"])
    control = ctypes.CDLL(None).prctl
    control(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # sandlock reads the calls of its child, which a change of user would forbid.
    control(_PR_SET_DUMPABLE, 1, 0, 0, 0)

    def end(*_: object) -> None:
        sweep(psutil)
        # Who would else remove it is gone.
        shutil.rmtree(job["folder"], ignore_errors=True)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    # Where the training is killed.
    control(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if job["sandlock"] is None:
        code = subprocess.Popen(job["command"], env=job["environment"], cwd=job["folder"]).wait()
    else:
        own = {"clean_env": True, "env": job["environment"], "cwd": job["folder"]}
        process = sandlock.Sandbox(**own, **job["sandlock"]).popen(job["command"])
        # In a thread: while the first one waits in foreign code no signal is heard.
        found: list[int] = []
        waiting = threading.Thread(target=lambda: found.append(process.wait().exit_code), daemon=True)
        waiting.start()
        waiting.join()
        code = found[0] if found else 1
    sweep(psutil)
    os._exit(code & 255)


def sweep(psutil: object) -> None:
    """Ends all descendants, also those that keep forking: first they are stopped."""
    me = psutil.Process()  # type: ignore[attr-defined]
    for _ in range(1000):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        below = me.children(recursive=True)
        if not below:
            return
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for one in below:
                with contextlib.suppress(OSError):
                    os.kill(one.pid, number)
        time.sleep(0.001)


if __name__ == "__main__":
    main()
