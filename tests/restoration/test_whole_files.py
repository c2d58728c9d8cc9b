"""Files appear whole or not at all."""

from __future__ import annotations

import pytest

from restoration.evaluate import Row, write_csv
from restoration.whole_files import written_whole


def test_a_file_appears_when_its_writer_is_done_and_stays_as_it_was_when_the_writer_fails(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as temporary:
        temporary.write_text("first")
        assert not path.exists() and temporary.parent == tmp_path and temporary.name.startswith(".")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as temporary:
        temporary.write_text("half of the sec")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with written_whole(tmp_path / "a") as one, written_whole(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


def test_a_table_may_have_a_name_that_just_fits_the_file_system(tmp_path):
    path = tmp_path / ("n" * 251 + ".csv")
    write_csv(path, [Row("a", {"psnr": 1.0})])
    assert list(tmp_path.iterdir()) == [path]
