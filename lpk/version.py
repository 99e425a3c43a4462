"""The version of lpk itself."""

from importlib.metadata import PackageNotFoundError, version

try:
    OWN = version("lpk")
except PackageNotFoundError:  # built in place, not installed
    OWN = "0.1.0+inplace"
