import functools
import http.server
import threading

import pytest

from detlib.utils import file_io
from detlib.utils.errors import MissingFileError
from detlib.utils.file_io import PathManager


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the folder `site`; downloads are cached in `cache`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.txt").write_text("hello")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_url_is_downloaded_once(server, tmp_path):
    path = PathManager.get_local_path(server + "a.txt")
    (tmp_path / "site" / "a.txt").unlink()
    assert PathManager.get_local_path(server + "a.txt") == path
    with PathManager.open(server + "a.txt") as file:
        assert file.read() == "hello"


def test_detectron2_paths_lead_to_the_public_server(server, monkeypatch):
    assert file_io._PublicZooHandler.URL == "https://dl.fbaipublicfiles.com/detectron2/"
    monkeypatch.setattr(file_io._PublicZooHandler, "URL", server)
    with PathManager.open("detectron2://a.txt", "rb") as file:
        assert file.read() == b"hello"


@pytest.mark.parametrize("name", ["missing.txt", "detectron2://missing.txt"])
def test_failed_download_is_a_missing_file_with_a_remedy(server, monkeypatch, name):
    monkeypatch.setattr(file_io._PublicZooHandler, "URL", server)
    url = name if "://" in name else server + name
    with pytest.raises(MissingFileError, match=r"cannot download http.*missing\.txt.*give its path"):
        PathManager.get_local_path(url)


def test_unreachable_server_is_a_missing_file():
    with pytest.raises(MissingFileError, match="cannot download"):
        PathManager.get_local_path("http://127.0.0.1:9/nothing.txt")


def test_local_files_open_as_they_are(tmp_path):
    path = str(tmp_path / "a.txt")
    with PathManager.open(path, "w") as file:
        file.write("x")
    assert PathManager.get_local_path(path) == path
    assert PathManager.exists(path)
