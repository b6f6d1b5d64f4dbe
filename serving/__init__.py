"""Text generation serving container: launcher, HTTP front, engine."""

__version__ = "0.1.0"
