"""What the probe runs inside of a sandbox, given to the interpreter as text: it tries to get out.

Standard input holds JSON of what is outside; one JSON object goes to standard output, of what got out: name -> how.
This file must run on Python 3.9.
"""

import json
import os
import resource
import socket
import sys
import threading
import time

outside = json.loads(input())
found = {}


def attempt(name, escape):
    """Notes what an escape returned: it succeeded unless it raised, or returned nothing."""
    try:
        how = escape()
    except (OSError, MemoryError, ValueError):
        return
    if how:
        found[name] = how


def connect(family, kind, address):
    def escape():
        with socket.socket(family, kind) as client:
            client.settimeout(1)
            client.connect(address)
            client.send(b"out")
        return f"it reached {address}"

    return escape


def read(path):
    def escape():
        with open(path, "rb") as file:
            file.read(1)
        return f"it read {path}"

    return escape


def write(path):
    def escape():
        with open(path, "wb") as file:
            file.write(b"out")
        # A folder of the same name may be the sandbox's own; outside it is looked for as well.
        return "" if path.startswith("/tmp/") else f"it wrote {path}"

    return escape


def listing(path):
    """Of a home folder, but not of the sandbox's own; where the interpreter lies in it there is the way to that."""
    needed = [folder.split("/") for folder in outside["interpreter"]]
    parts = path.rstrip("/").split("/")

    def escape():
        foreign = [name for name in os.listdir(path) if [*parts, name] not in [way[: len(parts) + 1] for way in needed]]
        return f"it listed {path}" if foreign and not os.path.samefile(path, ".") else ""

    return escape


def signalling(pid):
    def escape():
        os.kill(pid, 0)
        return f"it may signal process {pid}"

    return escape


# Ways to slow down or end another process without a signal, each tried with what it has already.
STEERING = (
    lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU),
    lambda pid: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid)),
    lambda pid: os.sched_setaffinity(pid, os.sched_getaffinity(pid)),
    lambda pid: os.sched_setscheduler(pid, os.sched_getscheduler(pid), os.sched_getparam(pid)),
)


def steering(way, pid):
    def escape():
        way(pid)
        return f"it may change how process {pid} is run"

    return escape


def allocate():
    return "it holds twice its memory" if bytearray(2 * outside["memory"]) else ""


def fork():
    most, children, readable = 4 * outside["processes"], [], os.pipe()
    try:
        while len(children) < most:
            pid = os.fork()
            if pid == 0:
                os.read(readable[0], 1)
                os._exit(0)
            children.append(pid)
        return f"it has {len(children)} processes of {outside['processes']}"
    finally:
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def environment():
    foreign = sorted(set(os.environ) - set(outside["environment"]))
    return "it sees the variables {}".format(", ".join(foreign)) if foreign else ""


def memory_file():
    os.close(os.memfd_create("probe"))
    return "it makes files in memory that nothing counts"


def good():
    """What a plain program does; raises where it cannot."""
    with open("file", "w") as file:
        file.write("text")
    with open("file") as file:
        assert file.read() == "text"
    done = []
    thread = threading.Thread(target=lambda: done.append(1))
    thread.start()
    thread.join()
    assert done and time.time() > 0 and len(bytearray(outside["memory"] // 4)) > 0
    assert sys.version_info >= (3, 9), f"Python {sys.version.split()[0]} is older than 3.9"


try:
    good()
except Exception as error:
    found["a plain program"] = f"{type(error).__name__}: {error}"
attempt("network", connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", outside["tcp"])))
attempt("network, UDP", connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", outside["udp"])))
attempt("abstract socket", connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + outside["abstract"]))
attempt("socket file", connect(socket.AF_UNIX, socket.SOCK_STREAM, outside["folder"] + "/socket"))
for path in ("/etc/shadow", "/etc/passwd", outside["folder"] + "/secret"):
    attempt("reading", read(path))
for path in outside["homes"]:
    attempt("home folders", listing(path))
for path in ("/probe", "/etc/probe", "/usr/probe", "/dev/probe", "/var/tmp/probe", outside["folder"] + "/written"):
    attempt("writing", write(path))
# In a namespace of processes this one or the harness may have the number of the training, which is 1 in a container.
if outside["pid"] not in (os.getpid(), os.getppid()):
    attempt("reading", read("/proc/{}/environ".format(outside["pid"])))
    attempt("signals", signalling(outside["pid"]))
    for way in STEERING:
        attempt("limits of others", steering(way, outside["pid"]))
attempt("memory", allocate)
attempt("processes", fork)
attempt("environment", environment)
attempt("filter of system calls", memory_file)
print(json.dumps({"found": found, "version": sys.version.split()[0]}))
