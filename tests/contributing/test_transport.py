"""The page on transports, followed: its example is opened by URL, listed, and reconnects."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contributing.pages import follow, run_python

SERVER = """
import http.server, threading
import cv2, numpy as np

def serve(value, port=0):
    jpeg = cv2.imencode(".jpg", np.full((24, 32, 3), value, np.uint8))[1].tobytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for _ in range(3):
                self.wfile.write(b"--frame\\r\\nContent-Type: image/jpeg\\r\\n\\r\\n" + jpeg + b"\\r\\n")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
"""
READ = (
    SERVER
    + """
from bridge.textures import open_source
from tests.waiting import until

server = serve(40)
port = server.server_address[1]
source = open_source(f"mjpeg:http://127.0.0.1:{port}/video")
frames = [source.read(1.0) for _ in range(3)]
print([frame.pixels.shape for frame in frames], [int(abs(int(frame.pixels[0, 0, 0]) - 40) <= 2) for frame in frames])
server.shutdown()
server.server_close()
assert source.read(0.1) is None and source.losses == 1
server = serve(200, port)
until(lambda: (frame := source.read(0.1)) is not None and frame.pixels.mean() > 180, 20, "the source coming back")
print("back", source.losses)
source.close()
"""
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return follow("transport.md", tmp_path_factory.mktemp("transport"))


def test_it_is_opened_by_url_and_comes_back_after_a_loss(root: Path) -> None:
    lines = run_python(root, "-c", READ).splitlines()
    assert lines == ["[(24, 32, 4), (24, 32, 4), (24, 32, 4)] [1, 1, 1]", "back 1"]


def test_a_wrong_address_is_one_line(root: Path) -> None:
    code = "import sys; from bridge.cli import main; sys.exit(main(['run', '--source', 'mjpeg:phone']) - 2)"
    assert "Traceback" not in run_python(root, "-c", code)


def test_it_is_listed_by_the_commands_that_list_transports(root: Path) -> None:
    assert "mjpeg:http://ADDRESS" in run_python(root, "-m", "bridge", "sources").splitlines()
    assert "mjpeg:" in run_python(root, "-m", "bridge", "doctor")
