"""Which versions of verl are accepted."""

from importlib.metadata import version

from packaging.specifiers import SpecifierSet

SUPPORTED_VERL = SpecifierSet(">=0.9.1,<0.10")


class UnsupportedVerlError(ImportError):
    """The installed verl is outside the range this package is tested on."""


def check_verl_version(installed: str | None = None) -> str:
    """Return the installed verl version, or say which versions work.

    Args:
        installed: Version to judge instead of the installed one.

    Raises:
        UnsupportedVerlError: If the version is outside `SUPPORTED_VERL`.
    """
    # The distribution's metadata, not verl.__version__: that one is not set yet while verl loads its plugins.
    installed = installed or version("verl")
    if not SUPPORTED_VERL.contains(installed, prereleases=True):
        raise UnsupportedVerlError(
            f"verl {installed} is not supported: cfpo_verl needs verl {SUPPORTED_VERL}. "
            f"Install one with: pip install 'verl{SUPPORTED_VERL}'"
        )
    return installed
