"""A web server of files and parts of files on this machine, which lists what it was asked for."""

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers with what ``server.answer(first, last)`` returns: a code, headers and a body."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.content = server.files.get(self.path.partition("?")[0], server.content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"])
        total = len(server.content)
        first, last = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
        server.requests.append({**self.headers, "path": self.path})
        code, headers, body = server.answer(first, last)
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:  # who asked has read enough
            server.broken += 1
        self.close_connection = True


@contextmanager
def serve_ranges(content=b""):
    """Serve ``content`` under every address but those of ``files``; ``answer`` may be replaced, ``proper`` stays."""
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.content, serving.files, serving.requests, serving.broken = content, {}, [], 0

    def answer(first, last):
        total = len(serving.content)
        return 206, {"Content-Range": f"bytes {first}-{last}/{total}"}, serving.content[first : last + 1]

    serving.answer = serving.proper = answer
    threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
    serving.root = f"http://127.0.0.1:{serving.server_port}"
    yield serving
    serving.shutdown()
    serving.server_close()
