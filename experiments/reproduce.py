"""Published tables, ours beside theirs: `python experiments/reproduce.py --help`."""

import sys

from engines.harness import command_line


def main() -> None:
    """Run the command line. Mistakes of the user end in one line and exit code 2."""
    with command_line.errors_in_one_line("interrupted; continue with --resume"):
        from engines.reproduce import config as options

        config = options.parse(sys.argv[1:])
        print(f"vaejax: {config.in_words}; starting JAX")
        from engines.reproduce import run  # JAX is imported only now, after the first sign of life

        sys.exit(run.run(config))


if __name__ == "__main__":
    main()
