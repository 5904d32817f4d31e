"""An endpoint on this machine that speaks OpenAI's protocol and says what it is told to."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture
def server():
    """The endpoint; it keeps what it was asked, and may take its time."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            here.asked.append((self.path, self.headers.get("Authorization"), asked))
            time.sleep(here.seconds)
            body = here.body(asked) if callable(here.body) else here.body
            try:
                self.send_response(here.status)
                self.end_headers()
                self.wfile.write(body.encode())
            except OSError:
                pass  # whoever asked has gone

        def log_message(self, *args):
            pass

    here = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.asked, here.status, here.seconds = [], 200, 0.0
    here.url = f"http://127.0.0.1:{here.server_port}/v1"
    thread = threading.Thread(target=here.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield here
    here.shutdown()
    here.server_close()
    thread.join()


def said(text):
    return json.dumps({"choices": [{"message": {"content": text}}]})
