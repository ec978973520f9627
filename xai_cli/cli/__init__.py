"""The command line: the only floor that knows Typer, the two streams, exit codes and progress."""
