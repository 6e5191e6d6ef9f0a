"""Health of a container: exit code 0 if the address in HEALTH_URL answers 200."""

import http.client
import os
import sys
from urllib.parse import urlsplit

url = urlsplit(os.environ["HEALTH_URL"])
connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port or 80, timeout=4)
try:
    connection.request("GET", url.path)
    answer = connection.getresponse()
    said = answer.read(500).decode(errors="replace")
except OSError as error:
    sys.exit(f"{url.geturl()} cannot be reached: {error}")
if answer.status != http.client.OK:
    sys.exit(f"{url.geturl()} answered {answer.status}: {said}")
