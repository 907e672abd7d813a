"""A token service for the reference registry: `user`/`pass` may do everything below team/, everybody may pull."""

import base64
import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

port, key, certificate, log = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
chain = [line for line in open(certificate).read().split("\n") if line and not line.startswith("-")]


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(subject, service, access):
    now = int(time.time())
    header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(chain)]}
    claims = {"iss": "issuer", "sub": subject, "aud": service, "exp": now + 60, "nbf": now - 5, "iat": now, "jti": str(now), "access": access}
    text = encode(json.dumps(header).encode()) + "." + encode(json.dumps(claims).encode())
    signed = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key], input=text.encode(), capture_output=True, check=True)
    return text + "." + encode(signed.stdout)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query)
        given = self.headers.get("Authorization", "")
        user = ""
        if given:
            user, _, password = base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")
            if (user, password) != ("user", "pass"):
                body = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]})
                return self.answer(401, body)
        access = []
        for scope in query.get("scope", []):
            kind, name, actions = scope.split(":")
            allowed = ["pull"] + (["push"] if user and name.startswith("team/") else [])
            access.append({"type": kind, "name": name, "actions": [a for a in actions.split(",") if a in allowed]})
        with open(log, "a") as file:
            print(user or "-", *query.get("scope", []), file=file)
        self.answer(200, json.dumps({"token": token(user, query["service"][0], access)}))

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *words):
        pass


ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
