"""Old address of `CONFIG`."""

from nnsight.config import CONFIG, Config

ConfigModel = Config

__all__ = ["CONFIG", "Config", "ConfigModel"]
