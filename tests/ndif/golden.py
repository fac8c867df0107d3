"""Take down what the published nnsight 0.8.1 sends for each block of `cases.py`.

Run it with the Python of a venv that has `nnsight==0.8.1` and `transformers==5.15.0`, from a folder
that holds a model's folder:

    cd FOLDER && PYTHON .../tests/ndif/golden.py MODEL .../tests/remote/ndif08/golden/ndif08

A small HTTP server stands where NDIF's would; it keeps the forms that are posted to it. Two things
are changed in what is kept: folders of this machine are cut off the names of files, and the texts
of that package's own functions, which it sends along for `generate`, are left out.
"""

from __future__ import annotations

import http.server
import io
import json
import pickle
import pickletools
import struct
import sys
import threading
from email.message import Message
from pathlib import Path
from typing import Any, ClassVar

import zstandard


class Recorder(http.server.BaseHTTPRequestHandler):
    """Keeps the forms that are posted, and answers that they were received."""

    taken: ClassVar[list[tuple[dict[str, Any], bytes]]] = []

    def do_POST(self) -> None:
        kind = self.headers["Content-Type"]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = Message()
        head["Content-Type"] = kind
        mark = b"--" + str(head.get_param("boundary")).encode()
        parts: dict[str, bytes] = {}
        for part in body.split(mark)[1:-1]:
            about, _, content = part[2:-2].partition(b"\r\n\r\n")
            name = about.partition(b'name="')[2].partition(b'"')[0].decode()
            parts[name] = content
        self.taken.append((json.loads(parts["data"]), parts["blob"]))
        answer = {"id": "0" * 32, "status": "RECEIVED", "description": "", "data": None}
        self.answer(answer)

    def do_GET(self) -> None:
        self.answer({"detail": "not here"}, 404)

    def answer(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def plain(blob: bytes) -> bytes:
    """A payload without what must not be kept of it."""
    content = zstandard.ZstdDecompressor().decompressobj().decompress(blob)
    steps = list(pickletools.genops(content))
    ends = [at for _, _, at in steps[1:]] + [len(content)]
    kept = bytearray()
    for (opcode, arg, at), end in zip(steps, ends, strict=True):
        if opcode.name == "FRAME":  # its length would change
            continue
        if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE"):
            text = arg.replace(str(Path(__file__).parent) + "/", "")
            text = text.rpartition("site-packages/")[2] if "site-packages/" in text else text
            text = text.rpartition("/lib/python3.11/")[2] if "/lib/python" in text else text
            if "def generate(self" in text:
                text = "def generate(self, *inputs, **kwargs):\n    raise NotImplementedError\n"
            data = text.encode()
            kept += pickle.BINUNICODE + struct.pack("<I", len(data)) + data
        else:
            kept += content[at:end]
    pickletools.dis(bytes(kept), out=io.StringIO())  # whole still
    return zstandard.compress(bytes(kept), 19)


def main(repo: str, folder: Path, names: list[str]) -> None:
    import cases

    import nnsight
    from nnsight.modeling import huggingface
    from nnsight.modeling.transformers import TransformersModel

    huggingface._ID_CACHE[repo] = repo  # what it would ask the hub for
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    nnsight.CONFIG.API.APIKEY = "00000000-0000-0000-0000-000000000000"
    where = {"remote": f"http://127.0.0.1:{server.server_port}", "blocking": False}
    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    model = TransformersModel(repo, task="text-generation")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or cases.CASES:
        Recorder.taken.clear()
        try:
            cases.CASES[name](model, where)
        except (NameError, UnboundLocalError, TypeError):
            pass  # nothing came back: it was only taken down
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}"[:600])
        for index, (data, blob) in enumerate(Recorder.taken):
            print(f"{name}: {len(blob)} bytes for {data['model_key']}")
            path = folder / (f"{name}.zst" if index == 0 else f"{name}-{index}.zst")
            path.write_bytes(plain(blob))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
