"""The version of the package; `CHANGELOG.md` names the same one."""

__version__ = "0.11.1"
