import pytest

from vsc_pyro.files import replacing


def test_writes_whole_files_and_makes_folders(tmp_path):
    target = tmp_path / "new" / "table.csv"
    with replacing(target) as temporary:
        assert temporary.suffix == ".csv"
        temporary.write_text("first")
        assert not target.exists()
    assert target.read_text() == "first"
    assert [file.name for file in target.parent.iterdir()] == ["table.csv"]


def test_an_error_leaves_the_old_file(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")

    def write():
        with replacing(target) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
