"""What `hpt-trl doctor --json` prints: the same findings as values."""

import platform
from dataclasses import asdict
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.planning.doctor import allowed_ranges, driver_misfits, find_devices, misfits, named_as, package_rows
from hpt_trl.version import __version__


def doctor_data(recipes: list[str]) -> dict[str, Any]:
    """Return what is installed, the devices, and what recipes need; docs/json.md has the keys.

    Args:
        recipes: files or names of bundled recipes; with none, every bundled one.

    Raises:
        UserError: there is no such recipe, or a package is missing without which nothing runs.
    """
    ranges = allowed_ranges()
    packages = [
        {
            "extra": extra or None,
            "package": name,
            "installed": None if version == "-" else version,
            "allowed": allowed,
            "fits": not note,
        }
        for extra, name, version, allowed, note in package_rows(ranges)
    ]
    missing = [package["package"] for package in packages if package["extra"] is None and not package["installed"]]
    if missing:
        raise UserError(
            f"nothing runs without {', '.join(map(str, missing))}; `hpt-trl doctor` says how to install them."
        )
    from hpt_trl.planning.hub_needs import Hub
    from hpt_trl.planning.needs import needs_of
    from hpt_trl.recipes.bundled import bundled_recipes, find_recipe

    paths = [find_recipe(name) for name in recipes] or bundled_recipes()
    machine, hub, looked_at = find_devices(), Hub(), []
    for path in paths:
        needs = [need._asdict() for need in needs_of(path, machine, hub)]
        looked_at.append({"recipe": named_as(path), "can_run": all(need["met"] for need in needs), "needs": needs})
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "misfits": [*misfits(ranges), *driver_misfits(ranges)],
        "devices": asdict(machine),
        "recipes": looked_at,
    }
