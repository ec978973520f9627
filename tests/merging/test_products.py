"""Which files a merge writes, and that none of them is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.products import products


@pytest.mark.parametrize(
    ("options", "heads", "expected"),
    [
        (MergeOptions(method="average"), False, ["m.safetensors"]),
        (MergeOptions(method="average"), True, ["m.safetensors", "m.head-1.safetensors", "m.head-2.safetensors"]),
        (MergeOptions(method="average", grid=2, eval=[Path("e")]), False,
         ["m.safetensors", "m.csv", "m.safetensors.search"]),
        (MergeOptions(data=[Path("d")], random=1, eval=[Path("e")]), False,
         ["m.safetensors", "m.csv", "m.safetensors.search", "m.fisher-1.safetensors", "m.fisher-2.safetensors",
          "m.fisher-1.safetensors.partial", "m.fisher-2.safetensors.partial"]),
        (MergeOptions(data=[Path("d")], method="regmean"), False,
         ["m.safetensors", "m.gram-1.safetensors", "m.gram-2.safetensors", "m.gram-1.safetensors.partial",
          "m.gram-2.safetensors.partial"]),
    ],
)  # fmt: skip
def test_every_file_is_known(options: MergeOptions, heads: bool, expected: list[str]) -> None:
    every = products(Path("x/m.safetensors"), options, 2, heads=heads).every
    assert [path.relative_to("x").as_posix() for path in every] == expected


def test_what_is_read_by_any_name_is_no_place_to_write(tmp_path: Path) -> None:
    made = products(tmp_path / "m.safetensors", MergeOptions(method="average"), 2, heads=True)
    read, head = tmp_path / "read.safetensors", tmp_path / "m.head-1.safetensors"
    read.write_text("weights")
    made.check_apart([read, tmp_path / "missing"])
    for name in (tmp_path / "x/../m.head-1.safetensors", head):
        with pytest.raises(ValueError, match=r"m.safetensors would write .*head-1.safetensors, which is to be read"):
            made.check_apart([name])
    for link in (head.symlink_to, head.hardlink_to):
        link(read)
        with pytest.raises(ValueError, match=r"would write .*head-1.safetensors, which is to be read; give another"):
            made.check_apart([read])
        head.unlink()
    made.out.mkdir()
    with pytest.raises(ValueError, match=r"-o expects a new file, found .*m.safetensors, which is a folder"):
        made.check_apart([read])
