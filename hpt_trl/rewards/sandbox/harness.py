"""The part that runs inside of the sandbox, given to the interpreter as text. It imports nothing of this package.

It reads one job as JSON from standard input and writes one JSON object a line to standard output:

    {"test": 0, "passed": true, "error": ""}          as soon as a test is over
    {"run": 0, "status": ..., "returncode": ..., ...}  when a run is over
    {"fault": "..."}                                   where the limits cannot be set; nothing is run then

Every program runs in a child of this process, which keeps the way out to itself: the child's own standard output comes
here and is only a text in the report. A test counts when the child says so together with a word that it was given with
the job, so `sys.exit(0)`, `os._exit(0)` and a printed "passed" are no success. What remains possible: test and program
share one process, so a program that reads the frames or the memory of its caller finds the word, an object whose class
calls itself equal to everything passes tests that compare it, and what is changed in a module or class while a test
calls the program stays so to this test's end. Tests on standard input and output are compared outside and have no such
gap.

The limits stand before the program's first line, as hard limits of the kernel. This file must run on Python 3.9.
"""

import atexit
import builtins
import contextlib
import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
import types

_SHOWN, _KEPT = 300, 4096
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 4, 38, 22, 2


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def restrict(job):
    """Takes from this process and all that it starts what the job's limits do not leave it."""
    mib, limits = 2**20, job["limits"]
    hard = {
        "RLIMIT_AS": limits["memory_mib"] * mib,
        "RLIMIT_FSIZE": limits["file_mib"] * mib,
        "RLIMIT_NOFILE": limits["open_files"],
        "RLIMIT_CORE": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_MEMLOCK": 0,
        # Signals that wait are counted by user.
        "RLIMIT_SIGPENDING": 256,
    }
    if job["counts_processes"]:
        # And this process, its parent and the sandbox's own.
        hard["RLIMIT_NPROC"] = limits["processes"] + 4
    for name, value in hard.items():
        most = resource.getrlimit(getattr(resource, name))[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(getattr(resource, name), (value, value))
    control = ctypes.CDLL(None, use_errno=True).prctl
    control.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]

    def call(*words):
        if control(*words) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({words[0]}): {os.strerror(ctypes.get_errno())}")

    if job["hidden"]:
        # The children cannot open this process's memory or files below /proc.
        call(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if job["filter"]:
        code = bytes.fromhex(job["filter"])
        call(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        call(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(_Filter(len(code) // 8, code)), 0, 0)


def child(job, number, word, results):
    """Runs the program; does not return."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seconds = -int(-job["limits"]["cpu_seconds"] // 1)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    for stream, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        opened = open(stream, mode, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
        setattr(sys, name, opened)
        setattr(sys, f"__{name}__", opened)
    sys.argv, sys.path[:] = ["program.py"], [entry for entry in sys.path if entry]
    write, leave = os.write, os._exit

    def say(place, passed, text):
        # Made of bytes by the interpreter itself, with nothing that a program could have replaced.
        data = b"\n%s %d %d %s\n" % (word, place, passed, text)
        while data:
            data = data[write(results, data) :]

    leave((_tests if job["tests"] else _script)(job, say))


def _script(job, say):
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    code = _run(job["code"], module, "program.py", say)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    return code | _flush()


def _tests(job, say):
    # All that the tests are run with is taken now: afterwards any name may stand for something else.
    setup, tests = _compiled(job["setup"]), [_compiled(test) for test in job["tests"]]
    numbered, execute, short, flush = list(enumerate(tests)), exec, _short, _flush
    untrace, unprofile, keeps = sys.settrace, sys.setprofile, job["keeps"]
    # With a tracer a program jumps over the assertion that called it.
    del sys.settrace, sys.setprofile
    own, restore = vars(builtins).copy(), _restoring(job["imports"])
    # What dataclasses and pickle ask for: a module by its name. The harness keeps its own to itself.
    module = types.ModuleType("program")
    names, found = {}, vars(module)
    sys.modules["program"] = sys.modules["__main__"] = module
    if code := _run(job["code"], module, "program.py", say):
        return code
    untrace(None)
    unprofile(None)
    restore()
    found["__builtins__"] = own.copy()
    try:
        execute(setup, found)
    except BaseException as raised:
        say(-1, 0, short(raised))
        return flush() | 1
    for name in found:
        # Its own `all` or `abs` is not that of the tests.
        if name == keeps or name not in own:
            names[name] = found[name]
    for number, test in numbered:
        untrace(None)
        unprofile(None)
        restore()
        names["__name__"], names["__builtins__"] = "tests", own.copy()
        passed, error = 0, b""
        try:
            execute(test, names)
            passed = 1
        except BaseException as raised:
            error = short(raised)
        say(number, passed, error)
    return flush()


def _restoring(names):
    """Imports modules and returns a function that undoes what a program does to them and all others that are there.

    Put back are the modules under their names, their variables, the attributes of the classes among these, and where
    modules are looked for. A module that does not exist stays missing.
    """
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            # A name in a module, or one of a library that is newer than this interpreter's.
            missing.append(name)
    modules, nothing = sys.modules, object()
    before = {name: module for name, module in modules.items() if name not in ("sys", "builtins", "__main__")}
    variables = [(vars(module), vars(module).copy()) for module in before.values()]
    variables.append((vars(builtins), vars(builtins).copy()))
    places = {name: getattr(sys, name) for name in ("path", "meta_path", "path_hooks")}
    entries = [(place, place[:]) for place in places.values()]
    variables.append((vars(sys), {"modules": modules, **places}))
    kinds = [(module, type(module)) for module in before.values()]
    # Of these `setattr` works: classes that are made at run time, of which some are said to be immutable.
    classes = {value for _, known in variables for value in known.values() if isinstance(value, type)}
    classes = [(one, one.__dict__, dict(one.__dict__)) for one in classes if one.__flags__ & 0x300 == 0x200]
    change, remove, become, kind_of = type.__setattr__, type.__delattr__, object.__setattr__, type
    refused = (TypeError, AttributeError)

    def restore():
        for place, known in entries:
            place[:] = known
        for name in missing:
            modules.pop(name, None)
        modules.update(before)
        for now, known in variables:
            now.update(known)
        for module, kind in kinds:
            if kind_of(module) is not kind:
                become(module, "__class__", kind)
        for one, now, known in classes:
            for name in {**now, **known}:
                if now.get(name, nothing) is not known.get(name, nothing):
                    # What an interpreter keeps there for itself may refuse; of contextlib nothing is sure now.
                    try:  # noqa: SIM105
                        change(one, name, known[name]) if name in known else remove(one, name)
                    except refused:
                        pass

    return restore


def _compiled(test):
    try:
        return compile(test, "test.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return compile("raise SyntaxError('the test cannot be compiled')", "test.py", "exec")


def _run(source, module, name, say):
    try:
        exec(compile(source, name, "exec"), vars(module))
    except SystemExit as leaving:
        _flush()
        if leaving.code is None or isinstance(leaving.code, int):
            return (leaving.code or 0) & 255
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException as raised:
        say(-2 if isinstance(raised, MemoryError) else -1, 0, _short(raised))
        with contextlib.suppress(BaseException):
            traceback.print_exc()
        return _flush() | 1
    return 0


def _short(raised):
    """What was raised, in hexadecimal digits."""
    try:
        text = f"{type(raised).__name__}: {str(raised)[:_SHOWN]}".removesuffix(": ")
        return text.encode("utf-8", "replace").hex().encode()
    except BaseException:
        return b""


def _flush():
    code = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            code = 120
    return code


class _Run:
    """One child with its pipes, watched until it ends."""

    def __init__(self, job, number, word):
        pipes = [os.pipe() for _ in range(4)]
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            # The numbers up to 3 are taken (3 is this process's way out, which the child thereby loses).
            for place, end in enumerate((pipes[0][0], pipes[1][1], pipes[2][1], pipes[3][1])):
                os.dup2(end, place, inheritable=place < 3)
            os.closerange(4, job["limits"]["open_files"])
            child(job, number, word, 3)
        for place, pipe in enumerate(pipes):
            os.close(pipe[0] if place == 0 else pipe[1])
        self.input, self.readable = pipes[0][1], {pipe[0]: place for place, pipe in enumerate(pipes) if place}
        self.text = job["inputs"][number].encode("utf-8", "surrogateescape")
        self.texts, self.cap, self.why = {1: b"", 2: b"", 3: b""}, job["limits"]["output_kib"] * 1024, None
        self.until, self.over = time.monotonic() + job["limits"]["wall_seconds"], False
        os.set_blocking(self.input, False)

    def watch(self, hear):
        """Yields once the child has ended; what it says on its third pipe goes line by line to `hear`."""
        pause, ended = 0.001, None
        while ended is None:
            moved = self._move(pause, hear)
            pause = 0.001 if moved else min(pause * 2, 0.02)
            if self.why is None and time.monotonic() > self.until:
                self._end("timeout")
            # Also orphans, where this is the first process of its namespace.
            found = os.wait4(-1, os.WNOHANG)
            ended = found if found[0] == self.pid else None
        self.over = True
        # What it had written by then; others that hold the pipes are not waited for.
        for _ in range(64):
            if not self._move(0, hear):
                break
        self._kill_group()
        for end in [*self.readable, *([self.input] if self.input is not None else [])]:
            os.close(end)
        return ended[1], ended[2]

    def _move(self, pause, hear):
        ready = select.select(self.readable, [self.input] if self.input is not None else [], [], pause)
        for end in ready[1]:
            try:
                self.text = self.text[os.write(end, self.text[:65536]) :] if self.text else b""
            except OSError:
                self.text = b""
            if not self.text:
                os.close(end)
                self.input = None
        for end in ready[0]:
            data = os.read(end, 65536)
            if not data:
                os.close(end)
                del self.readable[end]
                continue
            place = self.readable[end]
            self.texts[place] += data
            if place == 3:
                *lines, self.texts[3] = self.texts[3].split(b"\n")
                for line in lines:
                    hear(line)
            if sum(map(len, self.texts.values())) > self.cap:
                self._end("output")
        return bool(ready[0] or ready[1])

    def _end(self, why):
        self.why = self.why or why
        if not self.over:
            os.kill(self.pid, signal.SIGKILL)
            self._kill_group()

    def _kill_group(self):
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)


def run(job, number, word, report):
    """Runs the program on one of its inputs and reports how it ended."""
    raised, memory, heard = "", False, 0

    def hear(line):
        nonlocal raised, memory, heard
        try:
            said, place, passed, text = line.split(b" ")
            place, text = int(place), bytes.fromhex(text.decode()).decode()
        except ValueError:
            return
        if said != word:
            return
        if place < 0:
            raised, memory = text, place == -2
        elif place == heard < len(job["tests"]):
            heard += 1
            report({"test": place, "passed": passed == b"1", "error": text})

    watched = _Run(job, number, word)
    status, usage = watched.watch(hear)
    seconds, most = usage.ru_utime + usage.ru_stime, job["limits"]["cpu_seconds"]
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    how = watched.why or ("killed" if code < 0 else "error" if code else "ended")
    if how == "killed" and (-code == signal.SIGXCPU or (-code == signal.SIGKILL and seconds >= most)):
        how = "timeout"
    if how == "error" and memory:
        how = "memory"
    # Nobody compares what a failed run wrote, and of errors the end says most.
    out, err = (watched.texts[place][: watched.cap].decode("utf-8", "replace") for place in (1, 2))
    out, err = out if how == "ended" else out[:_KEPT], err[-_KEPT:]
    said = {"run": number, "status": how, "returncode": code, "stdout": out, "stderr": err, "cpu": seconds}
    report({**said, "raised": raised})


def main():
    """Does the job that standard input holds."""
    job = json.loads(sys.stdin.buffer.read())
    way_out = os.dup(1)
    word = job.pop("word").encode()

    def report(said):
        data = (json.dumps(said) + "\n").encode()
        while data:
            data = data[os.write(way_out, data) :]

    try:
        restrict(job)
    except (OSError, ValueError) as error:
        report({"fault": f"{type(error).__name__}: {error}"})
        return
    for number in range(len(job["inputs"])):
        run(job, number, word, report)


main()
