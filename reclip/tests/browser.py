"A browser without a window, by the DevTools protocol: one process for all pages of the site"

import contextlib, json, os, re, shutil, subprocess, tempfile

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
FLAGS = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars')


def browser_path():
    "Where a browser of the Chromium family lies, or None; the variable CHROME comes first"
    return os.environ.get('CHROME') or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    "One tab of one process"

    def __init__(self, path):
        import websocket

        self.folder = tempfile.mkdtemp()
        args = [path, *FLAGS, '--remote-debugging-port=0', '--remote-allow-origins=*', f'--user-data-dir={self.folder}']
        pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([*args, 'about:blank'], **pipes)
        address = next(filter(None, (re.search(r'ws://\S+', line) for line in self.process.stderr)))[0]
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.count, self.session = 0, {}
        self.events = []
        target = self('Target.createTarget', url='about:blank')['targetId']
        self.session = dict(sessionId=self('Target.attachToTarget', targetId=target, flatten=True)['sessionId'])
        for part in ('Page', 'Runtime', 'Log', 'Network'):
            self(part + '.enable')

    def _next(self):
        message = json.loads(self.socket.recv())
        if 'method' in message:
            self.events.append(message)
        return message

    def __call__(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps(dict(id=self.count, method=method, params=params) | self.session))
        while (message := self._next()).get('id') != self.count:
            pass
        if 'error' in message:
            raise RuntimeError(f'{method}: {message["error"]["message"]}')
        return message['result']

    def size(self, width, height, dark=False):
        "The size of the window, and whether its user prefers dark pages"
        self('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = dict(name='prefers-color-scheme', value='dark' if dark else 'light')
        self('Emulation.setEmulatedMedia', features=[scheme])

    def open(self, url):
        "Open a page, and wait until all of it is there"
        self.events.clear()
        self('Page.navigate', url=url)
        while not any(e['method'] == 'Page.loadEventFired' for e in self.events):
            self._next()

    def run(self, script):
        "The value of a JavaScript expression, awaited"
        answer = self('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in answer:
            raise RuntimeError(json.dumps(answer['exceptionDetails'])[:500])
        return answer['result'].get('value')

    def complaints(self):
        "Errors of the page just opened, and what it asked from a network"
        out = []
        for e in self.events:
            p = e['params']
            if e['method'] == 'Runtime.exceptionThrown':
                details = p['exceptionDetails']
                out.append(details.get('exception', {}).get('description') or details['text'])
            elif e['method'] == 'Log.entryAdded' and p['entry']['level'] == 'error':
                out.append(f'{p["entry"]["text"]} {p["entry"].get("url", "")}')
            elif e['method'] == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'assert'):
                out.append(' '.join(str(a.get('value', a.get('description'))) for a in p['args']))
            elif e['method'] == 'Network.requestWillBeSent' and re.match('https?:', p['request']['url']):
                out.append(f'asks for {p["request"]["url"]}')
        return out

    def close(self):
        "End the process, and leave nothing behind"
        self.socket.close()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.stderr.close()
        shutil.rmtree(self.folder, ignore_errors=True)
