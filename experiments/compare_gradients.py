"""Compare gradient estimators, their noise, cost and training: `python experiments/compare_gradients.py --help`."""

import sys

from engines.harness import command_line


def main() -> None:
    """Run the command line. Mistakes of the user end in one line and exit code 2."""
    with command_line.errors_in_one_line():
        from engines.gradients import config as options

        config = options.parse(sys.argv[1:])
        print(f"vaejax: {len(config.estimators)} gradient estimators on {config.dataset}; starting JAX")
        if config.dataset == "digits":
            # Compilation takes most of the time, and half of it at this level, where these programs run as fast.
            command_line.compile_quickly()
        from engines.gradients import run  # JAX is imported only now, after the first sign of life

        run.run(config)


if __name__ == "__main__":
    main()
