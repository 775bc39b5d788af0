"""Whether HDFS is whole: every DataNode that the NameNode has seen is alive and answers.

What cannot be read while that holds is damaged; otherwise it is out of reach. Not every image has WebHDFS' client: no library.
"""

from __future__ import annotations

import json
import socket
import urllib.request

from etl.settings import settings

TIMEOUT_SECONDS = 5


def all_answer() -> bool:
    """Tell whether the NameNode and all DataNodes answer; also False where the NameNode does not say which there are."""
    for url in settings().webhdfs_url.split(";"):
        try:
            with urllib.request.urlopen(  # noqa: S310 - the setting's own address
                f"{url.rstrip('/')}/jmx?qry=Hadoop:service=NameNode,name=NameNodeInfo", timeout=TIMEOUT_SECONDS
            ) as answer:
                (nodes,) = json.load(answer)["beans"]
            live, dead = json.loads(nodes["LiveNodes"]), json.loads(nodes["DeadNodes"])
        except (OSError, ValueError, KeyError):
            continue
        return bool(live) and not dead and all(_answers(node["xferaddr"]) for node in live.values())
    return False


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True
