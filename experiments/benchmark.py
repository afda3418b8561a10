"""The same work by vaejax and by what one would pick instead: `python experiments/benchmark.py --help`."""

import sys

from engines.harness import command_line


def main() -> None:
    """Run the command line. Mistakes of the user end in one line and exit code 2."""
    with command_line.errors_in_one_line():
        from engines.benchmark import config as options

        config = options.parse(sys.argv[1:])
        if config.devices:
            from engines.benchmark import compiled

            print(f"vaejax: {', '.join(config.work)} for {', '.join(config.devices)}: compiled, not run")
            compiled.run(config)
        else:
            from engines.benchmark import run  # each system is imported in a process of its own

            print(f"vaejax: {', '.join(config.work)} by {', '.join(config.systems)}")
            run.run(config)


if __name__ == "__main__":
    main()
