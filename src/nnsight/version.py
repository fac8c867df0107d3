"""The version of this package; `docs/changelog.md` says what is in it."""

__version__ = "0.9.0"
