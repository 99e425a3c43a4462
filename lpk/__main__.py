"""The command `lpk`, also as `python -m lpk`."""

import sys

from lpk import extras


def main() -> None:
    try:
        extras.need("the command `lpk`", "typer")
        from lpk.cli.main import main as command
    except ImportError as error:
        sys.exit(f"lpk: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
