"""Opens a page in headless Chromium and looks at it, over the DevTools protocol."""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage",
          "--remote-debugging-port=0")  # fmt: skip


def visit(page, folder, script, width=1280, height=900, dark=False, screenshot=None):
    """Load a local file, evaluate a JavaScript expression in it, and return its value and what was told.

    Told are the console's messages, errors, refusals of the content policy, and every address that was asked for beside
    the file itself. screenshot: a path for a PNG of the whole page. folder: for the browser's own files.
    """
    with _browser(Path(folder)) as endpoint:
        return asyncio.run(_visit(endpoint, Path(page).resolve().as_uri(), script, width, height, dark, screenshot))


@contextmanager
def _browser(folder):
    command = [shutil.which("chromium") or "chromium", *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        for line in process.stderr:
            if line.startswith("DevTools listening on "):
                yield line.split()[-1]
                return
        raise AssertionError("Chromium did not start")
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its group alone: the processes that it started
        process.wait()


async def _visit(endpoint, address, script, width, height, dark, screenshot):
    from websockets.asyncio.client import connect

    async with connect(endpoint, max_size=None, proxy=None) as socket:
        told, loaded, number = [], asyncio.Event(), 0
        answers = {}

        async def listen():
            async for message in socket:
                event = json.loads(message)
                if "id" in event:
                    answers.pop(event["id"]).set_result(event)
                    continue
                values = event["params"]
                match event["method"]:
                    case "Runtime.consoleAPICalled":
                        told.append(" ".join(str(argument.get("value")) for argument in values["args"]))
                    case "Runtime.exceptionThrown":
                        told.append(values["exceptionDetails"]["text"])
                    case "Log.entryAdded":
                        told.append(values["entry"]["text"])
                    case "Page.loadEventFired":
                        loaded.set()
                    case "Network.requestWillBeSent":
                        url = values["request"]["url"]
                        if url != address and not url.startswith("data:"):
                            told.append(f"asked for {url}")

        async def call(method, session=None, **parameters):
            nonlocal number
            number += 1
            answer = answers[number] = asyncio.get_running_loop().create_future()
            envelope = {"id": number, "method": method, "params": parameters}
            await socket.send(json.dumps(envelope | ({"sessionId": session} if session else {})))
            result = await asyncio.wait_for(answer, 60)
            assert "error" not in result, result
            return result["result"]

        listener = asyncio.create_task(listen())
        target = await call("Target.createTarget", url="about:blank")
        session = (await call("Target.attachToTarget", targetId=target["targetId"], flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await call(f"{domain}.enable", session)
        await call("Emulation.setDeviceMetricsOverride", session, width=width, height=height, deviceScaleFactor=1,
                   mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await call("Emulation.setEmulatedMedia", session, features=[scheme])
        await call("Page.navigate", session, url=address)
        await asyncio.wait_for(loaded.wait(), 60)
        result = await call("Runtime.evaluate", session, expression=script, returnByValue=True,
                            awaitPromise=True)  # fmt: skip
        if screenshot:
            picture = await call("Page.captureScreenshot", session, captureBeyondViewport=True)
            Path(screenshot).write_bytes(base64.b64decode(picture["data"]))
        listener.cancel()
        return result["result"].get("value"), told
