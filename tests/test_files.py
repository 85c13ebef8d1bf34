import errno
import os
import resource
import socket
import threading
from pathlib import Path

import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro._files import replacing


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


def test_two_writers_do_not_truncate_each_others_file(tmp_path):
    target = tmp_path / "table.csv"
    with replacing(target) as one, replacing(target) as other:
        one.write_text("one")
        other.write_text("the other")
        assert one.read_text() == "one"
    assert target.read_text() == "one"
    assert list(tmp_path.iterdir()) == [target]


def test_threads_that_save_one_checkpoint_leave_a_whole_one(tmp_path):
    def save(number):
        for _ in range(10):
            vsc.save_checkpoint(tmp_path / "c.pt", {"model": torch.full((1000,), float(number))})

    threads = [threading.Thread(target=save, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(vsc.load_checkpoint(tmp_path / "c.pt")["model"].unique()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_what_a_killed_process_left_behind_is_removed_when_it_is_old(tmp_path):
    target = tmp_path / "table.csv"
    old, new, of_another = (
        tmp_path / name
        for name in (".table-partial-0123456789ab.csv", ".table-partial-ba9876543210.csv", ".table-partial-mine.csv")
    )
    for file in (old, new, of_another):
        file.touch()
    for file in (old, of_another):
        os.utime(file, (0, 0))
    with replacing(target) as temporary:
        temporary.write_text("whole")
    assert set(tmp_path.iterdir()) == {target, new, of_another}


def test_links_are_written_through_and_modes_kept(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "link.pt").symlink_to(kept / "c.pt")
    for number in (1, 2):  # the first time there is nothing that the link leads to
        vsc.save_checkpoint(tmp_path / "link.pt", {"number": number})
        assert (tmp_path / "link.pt").is_symlink()
        assert vsc.load_checkpoint(kept / "c.pt")["number"] == number
        (kept / "c.pt").chmod(0o640)
    assert (kept / "c.pt").stat().st_mode & 0o777 == 0o640
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OSError, match="leads round in a circle"):
        vsc.save_checkpoint(tmp_path / "circle", {})


def test_what_is_no_regular_file_is_left_alone(tmp_path, small_vae, digits):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "full").symlink_to("/dev/full")  # by a link, which is all that could be lost
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", tmp_path / "full"):
            before = path.lstat().st_ino
            with pytest.raises(ValueError, match="path must be a regular file, got the device, pipe or socket"):
                vsc.History([1.0], [1.0]).to_csv(path)
            with pytest.raises(ValueError, match="checkpoint must be a regular file, got the device, pipe or socket"):
                vsc.fit(small_vae(), digits.train, checkpoint=path, resume=True)
            assert path.lstat().st_ino == before


def test_a_full_disk_is_an_error_that_names_the_path(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")

    def write():
        with replacing(target) as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_text("new")

    with pytest.raises(OSError, match=rf"No space left on device: '{target}'") as refused:
        write()
    assert refused.value.errno == errno.ENOSPC
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_disk_that_fills_up_in_the_middle_of_a_write_leaves_the_old_checkpoint(tmp_path):
    vsc.save_checkpoint(tmp_path / "c.pt", {"number": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"File too large: '{tmp_path / 'c.pt'}'"):
            vsc.save_checkpoint(tmp_path / "c.pt", {"number": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]
    assert vsc.load_checkpoint(tmp_path / "c.pt")["number"] == 1


def test_checkpoints_without_a_suffix_and_in_the_home_folder(tmp_path, monkeypatch, small_vae, digits):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("model", "~/home.pt", "~/new/.hidden"):
        vsc.fit(small_vae(), digits.train.images[:50], epochs=1, checkpoint=name, progress=False, device="cpu")
        assert vsc.load_checkpoint(name)["epoch"] == 1
    vsc.History([1.0], [1.0]).to_csv("~/h.csv")
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")}
    assert files == {"model", "home.pt", "new", "new/.hidden", "h.csv"}
    with pytest.raises(ValueError, match=r"no home folder is known for ~nobody-here/c\.pt"):
        vsc.load_checkpoint("~nobody-here/c.pt")


def test_a_path_that_cannot_be_written_is_found_out_before_training(tmp_path, small_vae, digits):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "c.pt", tmp_path / "new" / ("a" * 250 + ".pt"), Path("/proc/none/c.pt")):
        model = small_vae()
        model.encoder.register_forward_hook(lambda *_: pytest.fail("it trains"))
        with pytest.raises(OSError, match=str(path)):
            vsc.fit(model, digits.train, checkpoint=path, device="cpu")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("path", ["a\0b", b"c.pt", 3, ["c.pt"]])
def test_what_is_no_name_of_a_file_is_one_value_error(path, small_vae, digits):
    for resume in (False, True):
        with pytest.raises(ValueError, match="checkpoint must be the name of a file, a str or Path without zero bytes"):
            vsc.fit(small_vae(), digits.train, checkpoint=path, resume=resume)
    with pytest.raises(ValueError, match="path must be the name of a file"):
        vsc.load_checkpoint(path)
    with pytest.raises(ValueError, match="path must be the name of a file"):
        vsc.save_checkpoint(path, {})


@pytest.mark.parametrize("after", [1, 3])
def test_a_file_that_someone_else_writes_during_a_run_is_left_and_the_run_saved_beside_it(
    tmp_path, small_vae, digits, after
):
    path, model, calls = tmp_path / "c.pt", small_vae(), []
    x = digits.train.images[:50]

    def rate(epoch):
        if epoch == after and "run" in calls:
            path.unlink(missing_ok=True)
            path.write_text("of someone else")
        return 1.0

    def watched(optimizer):
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        model.decoder.register_forward_hook(lambda *_: calls.append("run"))
        return schedule

    # Planning calls the rate as well, before the decoder runs.
    settings = {"checkpoint": path, "progress": False, "device": "cpu", "lr_schedule": watched}
    with pytest.raises(FileExistsError, match=rf"someone else during this run, .* saved to .* after {after} epochs"):
        vsc.fit(model, x, epochs=5, **settings)
    assert path.read_text() == "of someone else"
    (beside,) = (file for file in tmp_path.iterdir() if file != path)
    saved = vsc.load_checkpoint(beside)
    assert saved["epoch"] == after
    assert all(torch.equal(value, saved["model"][name]) for name, value in model.state_dict().items())
    history = vsc.fit(small_vae(), x, epochs=4, **(settings | {"checkpoint": beside, "resume": True}))
    assert len(history) == 4
