"""Mirrors on this machine: servers that answer as a test says, and what bad ones answer."""

import gzip
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html><h1>Sorry</h1>"

# what a bad mirror answers, given the right file, and the words for it
BAD = {
    "404": (lambda right: (404, PAGE, len(PAGE)), "HTTP 404"),
    "500": (lambda right: (500, PAGE, len(PAGE)), "HTTP 500"),
    "an error page called a success": (lambda right: (200, PAGE, len(PAGE)), "wrong checksum"),
    "nothing": (lambda right: (200, b"", 0), "wrong checksum"),
    "a body that breaks off": (lambda right: (200, right[:-20], len(right)), "broke off"),
    "a body cut short": (lambda right: (200, right[:-20], len(right) - 20), "wrong checksum"),
    "another file": (lambda right: (200, gzip.compress(b"other"), len(gzip.compress(b"other"))), "wrong checksum"),
}


@contextmanager
def started():
    """start(answer) starts a server and returns it and its address; answer(file) is (status, body, claimed length)."""
    servers = []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path.rpartition("/")[2])
                status, body, length = answer(server.asked[-1])
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return server, f"http://127.0.0.1:{server.server_port}/published/"

    try:
        yield start
    finally:
        for server, thread in servers:
            server.shutdown()
            server.server_close()
            thread.join()


def intact(files):
    return lambda file: (200, files[file], len(files[file]))


def nobody():
    """The address of a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"
