"""The download against a real server on this machine: whole, silent, damaged, absent."""

from __future__ import annotations

import hashlib
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from study.config import DataConfig
from study.data import download, open_dataset
from study.errors import StorageError, UnavailableError

Write = Callable[..., Path]
Refused = Callable[..., str]
pytestmark = pytest.mark.slow  # imports torchvision


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """A folder behind a server; the file ``address`` beside it holds its URL."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    (tmp_path / "address").write_text(f"http://127.0.0.1:{server.server_address[1]}")
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def published(served: Path, write_archive: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive on the server, with its own checksums in the place of the published ones. Gives the archive."""
    from torchvision.datasets import CIFAR100

    write_archive("test")
    folder = write_archive()
    archive = served / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)

    def md5(file: Path) -> str:
        return hashlib.md5(file.read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR100, "url", f"{(served.parent / 'address').read_text()}/{archive.name}")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(folder / "test")]])
    names = {"filename": "meta", "key": "fine_label_names", "md5": md5(folder / "meta")}
    monkeypatch.setattr(CIFAR100, "meta", names)
    return archive


def left_over(cache_folder: Path) -> list[str]:
    return [path.name for path in (cache_folder / "cifar100").iterdir()]


def fetch() -> object:
    return open_dataset(DataConfig(source="cifar100"))


def test_fetched_once(
    published: Path, cache_folder: Path, pixels: NDArray[np.uint8], capfd: pytest.CaptureFixture[str]
) -> None:
    opened = open_dataset(DataConfig(source="cifar100"))
    assert left_over(cache_folder) == ["cifar-100-python"]
    assert capfd.readouterr().err == ""
    published.unlink()
    again = open_dataset(DataConfig(source="cifar100"))
    assert again.fingerprint == opened.fingerprint
    assert np.array_equal(again.test().images, pixels)


def test_progress_is_shown(published: Path, cache_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    download.cifar100(cache_folder, progress=True)
    assert "100%" in capfd.readouterr().err


def test_another_checksum(published: Path, cache_folder: Path, refused: Refused) -> None:
    content = bytearray(published.read_bytes())
    content[-1] ^= 1
    published.write_bytes(content)
    refused(fetch, "data cifar100", "cannot be fetched", "corrupted", "--data", kind=UnavailableError)
    assert left_over(cache_folder) == []


def test_absent_from_the_server(published: Path, cache_folder: Path, refused: Refused) -> None:
    published.unlink()
    refused(fetch, "data cifar100", "404", "--data", kind=UnavailableError)
    assert left_over(cache_folder) == []


def test_what_an_interrupted_download_left_is_no_archive(published: Path, cache_folder: Path) -> None:
    part = cache_folder / "cifar100" / ".part-abandoned" / "cifar-100-python"
    part.mkdir(parents=True)
    (part / "train").write_bytes(b"half")
    assert len(open_dataset(DataConfig(source="cifar100")).train.labels) == 36


def test_another_process_is_first(
    published: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, pixels: NDArray[np.uint8]
) -> None:
    """Both fetch; the second to rename takes what is there."""
    once = download._fetch

    def overtaken(part: Path, progress: bool) -> None:
        once(part, progress)
        monkeypatch.setattr(download, "_fetch", once)
        download.cifar100(cache_folder, progress)

    monkeypatch.setattr(download, "_fetch", overtaken)
    assert np.array_equal(open_dataset(DataConfig(source="cifar100")).test().images, pixels)
    assert left_over(cache_folder) == ["cifar-100-python"]


def test_nobody_listens(published: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{closed.getsockname()[1]}/x.tar.gz")
        refused(fetch, "data cifar100", "cannot be fetched", "refused", "--data", kind=UnavailableError)


def test_silence_ends_in_bounded_time(published: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(download, "_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar.gz")
        start = time.monotonic()
        refused(fetch, "data cifar100", "timed out", "--data", kind=UnavailableError)
        assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None


def test_cut_off_midway(published: Path, cache_folder: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server promises more than it sends."""
    from torchvision.datasets import CIFAR100

    answer = b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(1000)

    def serve(listener: socket.socket) -> None:
        for _ in range(2):  # torchvision first asks for the head
            connection, _address = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{listener.getsockname()[1]}/x.tar.gz")
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        refused(fetch, "data cifar100", "cannot be fetched", "--data", kind=UnavailableError)
        thread.join(5)
    assert left_over(cache_folder) == []


def test_a_cache_that_cannot_be_written(cache_folder: Path, refused: Refused) -> None:
    cache_folder.write_text("in the way")
    refused(fetch, f"cache {cache_folder}", "cannot be written", "STUDY_CACHE", kind=StorageError)
