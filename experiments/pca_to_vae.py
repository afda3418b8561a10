"""From PCA to the VAE, each beside its exact answer: `python experiments/pca_to_vae.py --help`."""

import sys

from engines.harness import command_line


def main() -> None:
    """Run the command line. Mistakes of the user end in one line and exit code 2."""
    with command_line.errors_in_one_line("interrupted; parts that were done stay, and --resume continues from them"):
        from engines.family import config as options

        config = options.parse(sys.argv[1:])
        print(f"vaejax: from PCA to the VAE on {config.dataset}: {', '.join(config.parts)}; starting JAX")
        from engines.family import run  # JAX is imported only now, after the first sign of life

        run.run(config)


if __name__ == "__main__":
    main()
