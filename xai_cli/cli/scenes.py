"""What `xai finetune-scenes` does: two fine-tunings of the embedded net, to try a merge on without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xai_cli.cli.fisher import faults_told, stoppable
from xai_cli.cli.report import say


def finetune_scenes(
    folder: Annotated[Path, typer.Argument(help="Where to write: a new folder, or an empty one.", show_default=False)],
) -> None:
    """Fine-tune builtin/scenes-cnn on two kinds of drawn pictures, to try merge-fisher on.

    Written are, for the domains negative and sepia, labelled pictures to train with and to evaluate on, and the
    fine-tuned weights; the same every time. Nothing is downloaded, and it takes about half a minute. Printed is each
    path, when all is there.
    """
    if _in_use(folder):
        raise typer.BadParameter(f"expected a new or empty folder, found {folder} in use; name another, or remove it")
    whole = folder.resolve()
    with stoppable("nothing is left of it, and the same command starts again"), faults_told():
        from xai_cli.outputs.files import alone_at, whole_folder  # brings NumPy
        from xai_cli.scenes.domains import DOMAINS, write_domains

        with alone_at(whole), whole_folder(whole) as partial:
            written = [path.relative_to(partial) for path in write_domains(partial)]
    for path in written:
        print(folder / path)
    first, second = DOMAINS
    say(f"{folder / first} and {folder / second} each hold a domain that the other's weights do not know")


def _in_use(folder: Path) -> bool:
    """Whether another folder could not take its place: it holds something, or is mounted, or somebody stands in it."""
    if not folder.is_dir():
        return folder.exists() or folder.is_symlink()
    return any(folder.iterdir()) or folder.is_mount() or folder.samefile(Path.cwd())
