"A folder of model repositories, served over HTTP as the Hugging Face hub does it"

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


def commit_of(repo):
    "40 hexadecimal digits that change with the files of a repository"
    digest = hashlib.sha1()
    for file in sorted(o for o in repo.rglob('*') if o.is_file()):
        digest.update(str(file.relative_to(repo)).encode() + file.read_bytes())
    return digest.hexdigest()


def entry(file, repo):
    "One line of a repository's tree"
    return dict(
        type='file',
        oid=hashlib.sha1(file.read_bytes()).hexdigest(),
        size=file.stat().st_size,
        path=file.relative_to(repo).as_posix(),
    )


class Hub(BaseHTTPRequestHandler):
    """GET and HEAD of the addresses that a client asks for

    `/org/name/resolve/revision/file`, `/api/models/org/name[/revision/...]` and `/api/models/org/name/tree/revision`
    """

    protocol_version, root = 'HTTP/1.1', None

    def log_message(self, *_):
        pass

    def reply(self, status, body=b'', **headers):
        self.server.seen.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in (headers | {'Content-Length': len(body)}).items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def refuse(self, code, **headers):
        self.reply(404, X_Error_Code=code, X_Error_Message=f'{code}: {self.path}', **headers)

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip('/').split('/')
        api = parts[:2] == ['api', 'models']
        if api:
            parts = parts[2:]
        repo = Path(self.root, *parts[:2])
        what = parts[2] if len(parts) > 2 else None
        revision = parts[3] if len(parts) > 3 else 'main'
        inner = '/'.join(parts[4:])
        if len(parts) < 2 or '..' in parts or not repo.is_dir():
            return self.refuse('RepoNotFound')
        commit = commit_of(repo)
        if revision not in ('main', commit):
            return self.refuse('RevisionNotFound')
        files, headers = sorted(o for o in repo.rglob('*') if o.is_file()), dict(X_Repo_Commit=commit)
        if api and what in (None, 'revision'):
            answer = dict(
                id='/'.join(parts[:2]),
                modelId='/'.join(parts[:2]),
                sha=commit,
                private=False,
                gated=False,
                tags=[],
                downloads=0,
                likes=0,
                siblings=[dict(rfilename=entry(o, repo)['path']) for o in files],
            )
        elif api and what == 'tree':
            answer = [entry(o, repo) for o in files if not inner or Path(repo, inner) in o.parents]
            if inner and not answer:
                return self.refuse('EntryNotFound', **headers)
        elif not api and what == 'resolve' and Path(repo, inner).is_file():
            body = Path(repo, inner).read_bytes()
            return self.reply(
                200,
                body,
                ETag=f'"{hashlib.sha256(body).hexdigest()}"',
                Content_Type='application/octet-stream',
                **headers,
            )
        else:
            return self.refuse('EntryNotFound', **headers)
        self.reply(200, json.dumps(answer).encode(), Content_Type='application/json', **headers)

    do_HEAD = do_GET


@contextmanager
def hub(
    root,  # folder of folders `org/name`
):
    "`(address, seen)` while the server runs: `seen` grows by `(method, path, status)` with each request"
    with ThreadingHTTPServer(('127.0.0.1', 0), type('OfFolder', (Hub,), dict(root=root))) as server:
        server.seen, server.daemon_threads = [], True
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}', server.seen
        finally:
            server.shutdown()
            thread.join()
