"""The program: configuration, command line, daemon, demo, simulator. Wires the other rooms together."""

__version__ = "0.1.0"
