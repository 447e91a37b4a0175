"""The edge: what the engine talks to, the process, and how the parts are put together."""

__version__ = "0.1.0"
