"""`python -m xai_cli` is `xai`."""

from xai_cli.cli.start import main

# Guarded, because a process that is started from this one imports this file.
if __name__ == "__main__":
    main()
