"""When a server that was flooded is well again, told by a process that did not flood it.

    python bench/probe.py PORT PATH BODY LIMIT_MS FROM WITHIN_S

Waits for the moment FROM (of `time.monotonic`, which all processes of a machine share), then asks
one request after another over a new connection each. Prints as JSON the seconds from that moment
until ten in a row are answered 200 with a median within the limit (null if never within WITHIN_S),
and what it got until then.
"""

import http.client
import json
import statistics
import sys
import time
from collections import Counter


def one(port: int, path: str, body: str) -> tuple[str, float]:
    """Status (or the kind of error) and milliseconds of one request."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        status = str(answer.status)
    except (OSError, http.client.HTTPException) as error:
        status = type(error).__name__
    finally:
        connection.close()
    return status, 1000 * (time.perf_counter() - start)


def main() -> None:
    """Probe until it is well."""
    port, path, body = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    limit_ms, start, within_s = (float(word) for word in sys.argv[4:7])
    seen, recovery_s = Counter[str](), None
    time.sleep(max(start - time.monotonic(), 0.0))
    while recovery_s is None and time.monotonic() - start < within_s:
        began_s = time.monotonic() - start
        answers = [one(port, path, body) for _ in range(10)]
        seen.update(status for status, _ in answers)
        well = all(status == "200" for status, _ in answers)
        if well and statistics.median(ms for _, ms in answers) <= limit_ms:
            recovery_s = round(began_s, 3)
    print(json.dumps({"recovery_s": recovery_s, "got": dict(seen)}))


if __name__ == "__main__":
    main()
