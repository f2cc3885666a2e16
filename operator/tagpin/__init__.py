"""tagpin: a cluster runs exactly the image bytes that were meant."""

from importlib.metadata import version

__version__ = version("tagpin")
