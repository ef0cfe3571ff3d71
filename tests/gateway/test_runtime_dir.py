"""The folder of a gateway's sockets: its own, or none. Other users are played by changing a folder's owner."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from config.errors import PoolError
from gateway.runtime_dir import RuntimeDir
from tests.rig.serving import ServePrism, simulated

NOBODY = 65534

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")


def refused(folder: Path) -> str:
    with pytest.raises(PoolError) as caught, RuntimeDir(folder / "admin.sock"):
        pass
    assert sorted(folder.glob("admin.sock*")) == []
    return str(caught.value)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_that_is_not_there_is_made_for_its_owner_only(short_path: Path) -> None:
    before = os.umask(0)
    try:
        with RuntimeDir(short_path / "new" / "admin.sock") as runtime:
            assert (mode(short_path / "new"), mode(runtime.workers)) == (0o700, 0o700)
    finally:
        os.umask(before)


@pytest.mark.parametrize("writable", [0o777, 0o722, 0o770])
def test_a_folder_that_others_can_write_is_refused(short_path: Path, writable: int) -> None:
    folder = short_path / "open"
    folder.mkdir()
    folder.chmod(writable)
    assert "can be written by other users" in refused(folder)


def test_one_that_is_below_such_a_folder_too(short_path: Path) -> None:
    (short_path / "open" / "mine").mkdir(parents=True)
    (short_path / "open").chmod(0o777)
    assert f"{short_path}/open can be written by other users" in refused(short_path / "open" / "mine")


def test_a_folder_like_tmp_is_fine_since_nobody_can_move_what_is_not_theirs(short_path: Path) -> None:
    folder = short_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    with RuntimeDir(folder / "admin.sock") as runtime:
        assert mode(runtime.workers) == 0o700


@needs_root
def test_a_folder_of_another_user_is_refused(short_path: Path) -> None:
    folder = short_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    assert f"belongs to the user with the id {NOBODY}" in refused(folder)


@needs_root
def test_what_another_user_left_in_the_way_is_never_used(short_path: Path) -> None:
    """In a folder like /tmp, a lock of somebody else's is a link, which is not followed."""
    folder = short_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    target = short_path / "target"
    link = folder / "admin.sock.lock"
    link.symlink_to(target)
    with pytest.raises(PoolError, match="cannot use"), RuntimeDir(folder / "admin.sock"):
        pass
    assert not target.exists()
    link.unlink()


def test_the_sockets_of_a_gateway_are_for_its_owner_only(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a"))
    assert mode(prism.admin_socket) == 0o600
    assert mode(prism.admin_socket.with_name("admin.sock.d")) == 0o700
