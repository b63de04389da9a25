"""The filter of system calls that every program runs under: a classic BPF program for seccomp.

Namespaces and Landlock say what a program reaches, limits how much it uses. Left over are calls that get memory which
no limit counts (memfd_create, shmget, msgget), sockets of families that no namespace holds (AF_VSOCK reaches a virtual
machine's host), calls that change other processes of the same user where there is no namespace of processes
(prlimit64, sched_setaffinity), and rarely used parts of the kernel. No solution of a task needs them.
"""

import platform
import struct

# Machine -> its number in the kernel's audit interface.
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}

# Call -> its number on x86_64 and on aarch64 (None where there is none).
DENIED: dict[str, tuple[int | None, int | None]] = {
    # Memory that neither the address space nor the folder holds.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # What others have of System V: its numbers can be guessed.
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    # How other processes of the same user are run, which no check of Landlock's stands before.
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    # Other processes' memory and files.
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "get_robust_list": (274, 100),
    "process_mrelease": (448, 448),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # New namespaces and mounts.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "open_tree": (428, 428),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Parts of the kernel in which faults were found again and again, and no solution has business there.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "personality": (135, 92),
    "uselib": (134, None),
    # The machine itself.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "vhangup": (153, 58),
}
# Landlock lets a program change modes, owners, times and attributes of files that it may not open, and watch them; of
# what watches, a user has few.
ATTRIBUTES: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
}
# Calls from this number on were not known when the tables above were written.
_UNKNOWN = 470
_SOCKET, _CLONE, _CLONE3, _PRLIMIT64 = (41, 198), (56, 220), (435, 435), (302, 261)
_AF_UNIX = 1
# CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID and -NET.
_NEW_NAMESPACES = 0x7E020000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
# x86_64 has a second set of numbers for the same calls (x32), told by this bit.
_X32 = 0x40000000

# Instructions of classic BPF (linux/bpf_common.h) and what a filter returns (linux/seccomp.h).
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# Offsets in `struct seccomp_data`; of the first argument the lower half.
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16


def filtered_machine() -> str | None:
    """The machine by the name that the filter knows, None where it knows none."""
    name = platform.machine().lower()
    name = _ALIASES.get(name, name)
    return name if name in _AUDIT else None


def filter_program(machine: str, *, own_files: bool) -> bytes:
    """Returns the filter, an array of `struct sock_filter` in the machine's byte order.

    Denied calls fail with EPERM; of sockets those of the family AF_UNIX alone can be made, others fail with
    EAFNOSUPPORT. Processes and threads are made by `clone`, whose flags can be read; `clone3` is unknown, on which the
    C library falls back to the former, and so are calls newer than this filter. Limits are set and read for the calling
    process alone, by the number 0, as the C library does. A call in another calling convention than the machine's own
    ends the process.

    Args:
        machine: of `filtered_machine`.
        own_files: whether the program has a file system of its own. Where it has not, it may make no sockets at all,
            as the machine's socket files are within reach, and neither change attributes of files nor watch them.
    """
    column = list(_AUDIT).index(machine)
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _AUDIT[machine]), (_RETURN, 0, 0, _KILL)]
    code.append((_LOAD, 0, 0, _NUMBER))
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    code += [(_AT_LEAST, 0, 1, _UNKNOWN), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    for numbers in [*DENIED.values(), *([] if own_files else ATTRIBUTES.values())]:
        number = numbers[column]
        if number is not None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    code += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    code += [(_EQUAL, 0, 4, _CLONE[column]), (_LOAD, 0, 0, _ARGUMENT), (_ANY_BIT, 0, 1, _NEW_NAMESPACES)]
    code += [(_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    # The kernel, too, reads the lower half of the number of a process alone.
    code += [(_EQUAL, 0, 4, _PRLIMIT64[column]), (_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 1, 0, 0)]
    code += [(_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    refusal = (_RETURN, 0, 0, _ERRNO | _EAFNOSUPPORT)
    if own_files:
        code += [(_EQUAL, 0, 3, _SOCKET[column]), (_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 1, 0, _AF_UNIX), refusal]
    else:
        code += [(_EQUAL, 0, 1, _SOCKET[column]), refusal]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
