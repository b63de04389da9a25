"""Which packages are installed, asked without importing them."""

from importlib.metadata import PackageNotFoundError, version


def installed(*names: str) -> str | None:
    """Returns the version of the first of these packages that is installed, None for none."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
