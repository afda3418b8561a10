"""Train a variational autoencoder, evaluate it and draw what it has learned: `python experiments/train.py --help`."""

import sys

from engines.harness import command_line


def main() -> None:
    """Run the command line. Mistakes of the user end in one line and exit code 2, a signal in 128 + its number."""
    with command_line.errors_in_one_line("interrupted; what was saved before stays, and --resume continues from it"):
        from engines.train import config as options

        config = options.parse(sys.argv[1:])
        print(f"vaejax: {options.in_words(config)}; starting JAX")
        # JAX is imported only now, after the first sign of life.
        from engines.harness import spreading
        from engines.train import events, population, run

        command_line.check_installed("matplotlib")
        events.check_installed(config.tensorboard)
        spreading.keep_compiled_programs()
        if config.distributed:
            spreading.join_other_processes()
        with spreading.quiet_unless_first():
            sys.exit(population.run(config) if config.num_runs > 1 else run.run(config))


if __name__ == "__main__":
    main()
