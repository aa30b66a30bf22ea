"""What Scrapy asks for next: the crawl's frontier takes the place of its own queues."""

import os
import sqlite3
import sys
from collections import deque
from typing import Any, NoReturn

import scrapy
from scrapy.core.scheduler import BaseScheduler


class Scheduler(BaseScheduler):
    """Scrapy's scheduler: what is asked for again (redirects, retries) first, then the frontier's pages."""

    def __init__(self) -> None:
        self.again: deque[scrapy.Request] = deque()

    def open(self, spider: Any) -> None:
        self.spider = spider

    def has_pending_requests(self) -> bool:
        return bool(self.again) or not self.spider.frontier.ended()

    def enqueue_request(self, request: scrapy.Request) -> bool:
        self.again.append(request)
        return True

    def next_request(self) -> scrapy.Request | None:
        try:
            return self.again.popleft() if self.again else self.spider.next_request()
        except sqlite3.Error as error:
            end(error)


def end(error: object) -> NoReturn:
    """The frontier cannot be written, such as on a full disk: what it holds is whole, and all else is in vain."""
    print(error, file=sys.stderr, flush=True)  # noqa: T201 - the protocol
    os._exit(4)
