from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import redis

from tests.trajectories.records import make_record
from tests.trajectories.test_stream import ids, publish
from trajectories.errors import StoreAuthError, StoreError, StoreUnreachable
from trajectories.server import ADDRESS_FILE, EmbeddedServer
from trajectories.settings import StoreAddress, StoreSettings
from trajectories.stream import TrajectoryStream


def test_another_process_connects_through_the_address_file_that_only_the_owner_can_read(
    own_server: EmbeddedServer,
) -> None:
    path = own_server.folder / ADDRESS_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with TrajectoryStream(StoreAddress.read(path), "run") as stream:
        assert stream.publish(make_record("a")).entry_id
    own_server.stop()
    with pytest.raises(StoreError, match="is the run's store running"):
        StoreAddress.read(path)


def test_the_password_is_in_no_process_list_and_no_readable_file(own_server: EmbeddedServer) -> None:
    password = own_server.address.password
    arguments = Path(f"/proc/{own_server.pid}/cmdline").read_text()
    assert len(password) >= 32 and password not in arguments and "valkey" in arguments
    for path in own_server.folder.rglob("*"):
        if path.is_file() and password.encode() in path.read_bytes():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_each_start_has_its_own_port_and_password_and_listens_on_loopback_only(
    server: EmbeddedServer, own_server: EmbeddedServer
) -> None:
    assert server.address.url != own_server.address.url and server.address.password != own_server.address.password
    with TrajectoryStream(own_server.address, "run") as stream:
        assert stream.client.redis.config_get("bind")["bind"] == "127.0.0.1"
        assert stream.client.redis.config_get("appendfsync")["appendfsync"] == "always"


def test_stopping_keeps_the_data_for_the_next_start_in_the_folder(tmp_path: Path) -> None:
    for expected in (1, 2):
        with EmbeddedServer(tmp_path / "s") as server, TrajectoryStream(server.address, "run") as stream:
            assert stream.begin_epoch() == expected
    assert not (tmp_path / "s" / ADDRESS_FILE).exists()


def test_restarting_keeps_address_and_password(own_server: EmbeddedServer) -> None:
    address, pid = own_server.address, own_server.pid
    own_server.restart()
    assert own_server.address == address and own_server.pid != pid and own_server.alive()


def test_two_owners_of_one_folder_are_refused(own_server: EmbeddedServer) -> None:
    with pytest.raises(StoreError, match="another process runs the store"):
        EmbeddedServer(own_server.folder).start()
    assert own_server.alive()


OWNER = """
import sys, threading, time
from pathlib import Path
import redis
from trajectories.server import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
starter = threading.Thread(target=server.start)  # a thread that ends, as that which restarts a dead server may
starter.start(); starter.join()
client = redis.Redis.from_url(server.address.url_with_password)
client.incr("k")
if "fork" in sys.argv:
    import os
    if os.fork() == 0:  # a sibling that has inherited every file, and stays
        time.sleep(60)
        os._exit(0)
print(server.pid, server._process.pid, flush=True)
time.sleep(60)
"""


@contextmanager
def owner(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], psutil.Process, psutil.Process]]:
    """A process that owns the server of `folder`: (it, the server, the process that watches it)."""
    command = [sys.executable, "-c", OWNER, str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        family = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        forked = [p for p in psutil.Process(process.pid).children() if p not in family]
        try:
            yield process, family[0], family[1]
        finally:
            for other in (process, *family, *forked):
                with contextlib.suppress(psutil.NoSuchProcess):
                    other.kill()


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def ended(*processes: psutil.Process, within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while any(runs(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def counted(server: EmbeddedServer) -> int:
    return int(redis.Redis.from_url(server.address.url_with_password).get("k") or 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [(), ("fork",)])
def test_the_server_ends_with_a_killed_owner_and_its_data_is_there_at_the_next_start(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with owner(tmp_path, *options) as (process, server, watcher):
        time.sleep(1.5)  # the thread that started it has ended long ago
        assert runs(server) and runs(watcher)
        process.kill()
        process.wait()
        assert ended(server, watcher)
        with EmbeddedServer(tmp_path, StoreSettings(start_timeout_s=10)) as again:
            assert counted(again) == 1


def test_a_start_at_once_after_the_owner_was_killed_meets_no_second_server(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, server, _):
        process.kill()
        process.wait()
        with EmbeddedServer(tmp_path) as again:
            assert not runs(server) and counted(again) == 1


def test_a_start_waits_for_an_orphan_of_which_no_address_is_left(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, server, watcher):
        assert str(tmp_path / "server.lock") in {file.path for file in server.open_files()}
        watcher.suspend()  # so that the server stays
        process.kill()
        process.wait()
        (tmp_path / ADDRESS_FILE).unlink()
        with pytest.raises(StoreError, match="left behind did not end within start_timeout_s=0.3"):
            EmbeddedServer(tmp_path, StoreSettings(start_timeout_s=0.3)).start()
        assert runs(server)
        watcher.resume()
        with EmbeddedServer(tmp_path) as again:
            assert not runs(server) and counted(again) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent death signal")
def test_a_server_whose_watcher_was_killed_ends_and_can_be_restarted(own_server: EmbeddedServer) -> None:
    assert own_server.pid is not None and own_server._process is not None
    server = psutil.Process(own_server.pid)
    with TrajectoryStream(own_server.address, "run") as stream:
        publish(stream, "a")
        own_server._process.kill()
        assert ended(server) and not own_server.alive()
        own_server.restart()
        assert stream.unsettled().keys() == {"a"} and own_server.pid != server.pid


def test_the_process_list_shows_one_valkey_server_which_is_the_server(own_server: EmbeddedServer) -> None:
    descendants = psutil.Process().children(recursive=True)
    found = [
        p.pid for p in descendants if "valkey-server" in " ".join(p.cmdline()) and p.cwd() == str(own_server.folder)
    ]
    assert found == [own_server.pid]


def test_a_server_that_can_not_be_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trajectories.server.server_binary", lambda: tmp_path / "nothing")
    with pytest.raises(StoreError, match="nothing can't be run .error: .*No such file"):
        EmbeddedServer(tmp_path).start()


def test_a_server_that_can_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedServer(tmp_path)
    monkeypatch.setattr(server, "_config", lambda: "no-such-option yes\n")
    with pytest.raises(StoreError, match="ended at start with status 1"):
        server.start()
    with EmbeddedServer(tmp_path) as again:  # the failed one has given up the folder
        assert again.alive()


def test_a_damaged_address_file_is_refused_naming_it(tmp_path: Path) -> None:
    (tmp_path / ADDRESS_FILE).write_text(json.dumps({"url": "redis://h"}))
    with pytest.raises(StoreError, match=ADDRESS_FILE):
        StoreAddress.read(tmp_path / ADDRESS_FILE)


def work(settings: StoreSettings) -> TrajectoryStream:
    """Publish, read, settle, reclaim and audit once in the store that `settings` names."""
    stream = TrajectoryStream(settings.external_address(), "external", settings)
    epoch = stream.begin_epoch()
    names = [f"{epoch}-{n}" for n in range(4)]
    for name in names:
        stream.publish(make_record(name, run_id="external", epoch=epoch))
    stream.read("dead", 2)
    entries = stream.read("rank0", 9) + stream.reclaim_others("rank0")
    assert sorted(entry.group_id for entry in entries) == names
    assert stream.settle(ids(entries), "consumed:step=1", epoch=epoch) == ["settled"] * 4
    assert stream.audit().ok and stream.audit().consumed == stream.audit().published
    return stream


def test_an_external_server_is_used_by_url_with_password(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(StoreSettings(url=own_server.address.url_with_password)).close()
    monkeypatch.setenv("STORE_SECRET", own_server.address.password)
    work(StoreSettings(url=own_server.address.url, password_env="STORE_SECRET")).close()
    work(StoreSettings(url=own_server.address.url_with_password.replace("redis://", "redis://default"))).close()
    with pytest.raises(StoreAuthError):
        work(StoreSettings(url=own_server.address.url))
    monkeypatch.delenv("STORE_SECRET")
    with pytest.raises(StoreError, match="STORE_SECRET"):
        work(StoreSettings(url=own_server.address.url, password_env="STORE_SECRET"))


@pytest.fixture
def debian_redis(tmp_path: Path) -> Iterator[str]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on this machine")
    path = tmp_path / "redis.sock"
    command = [
        binary,
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--save",
        "",
        "--requirepass",
        "pw",
        "--dir",
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
        yield f"unix://:pw@{path}"
        process.terminate()


def test_a_debian_redis_server_works_too(debian_redis: str) -> None:
    work(StoreSettings(url=debian_redis)).close()


def test_a_tls_url_speaks_tls(own_server: EmbeddedServer) -> None:
    url = own_server.address.url.replace("redis://", "rediss://") + "?ssl_cert_reqs=none"
    settings = StoreSettings(op_timeout_s=0.5, reconnect_timeout_s=0.1)
    with pytest.raises(StoreUnreachable, match="(?i)ssl|timed out|timeout"):  # the server here has no TLS
        TrajectoryStream(replace(own_server.address, url=url), "run", settings)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("url", "http://h"), ("url", "nothing"), ("url", "redis//h"), ("max_entries", 0), ("max_bytes", 0)),
        *(("publish_timeout_s", 0), ("op_timeout_s", float("inf")), ("reconnect_timeout_s", -1)),
        *(("start_timeout_s", float("nan")), ("embedded_maxmemory", 1 << 20)),
    ],
)
def test_a_wrong_setting_is_refused_naming_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}="):
        StoreSettings(**{field: value})  # type: ignore[arg-type]


def test_a_refused_url_does_not_show_its_password() -> None:
    with pytest.raises(ValueError) as caught:
        StoreSettings(url="http://user:secret@host:1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://:p%40ss@h:1/2", "rediss://user:p%40ss@h:1?ssl_ca_certs=x", "unix://:p%40ss@/a/s"]
)
def test_credentials_are_taken_out_of_an_url_and_can_be_put_back(url: str) -> None:
    address = StoreAddress.from_url(url)
    assert address.password == "p@ss" and "ss@" not in address.url and "p@ss" not in repr(address)
    assert StoreAddress.from_url(address.url_with_password) == address
    connection = redis.Redis.from_url(address.url_with_password).connection_pool.connection_kwargs
    assert connection["password"] == "p@ss"


def test_an_unusable_run_id_is_refused(server: EmbeddedServer) -> None:
    for run_id in ("", "a b", "a}b"):
        with pytest.raises(ValueError, match="run_id"):
            TrajectoryStream(server.address, run_id)


def test_alive_is_false_before_start_and_after_stop(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    assert not server.alive()
    server.start()
    pid = server.pid
    assert server.alive() and pid is not None
    server.stop()
    assert not server.alive() and not os.path.exists(f"/proc/{pid}")
    server.stop()
