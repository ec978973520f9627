"""`python -m xai_cli` is `xai`."""

from xai_cli.cli.main import main

main()
