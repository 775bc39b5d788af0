"""`bash/stream_csv.sh` on the stack: what reaches the topic, what is rejected, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import broker
from etl.settings import ROOT
from etl.stack import control, supervision
from tests.api.server import running
from tests.brokers import messages
from tests.postgres import rows

VERB = str(ROOT / "bash" / "stream_csv.sh")
LINES = """\
,customer_id,terminal_id,transacted_at,amount,currency,channel,device
0,0,7,2018-04-01 00:00:31,57.16,EUR,chip,card
1,1,7,2018-04-01 00:00:31,57.16,EUR,chip,card
2,1,7,2018-04-01 00:00:31,57.16,EUR,chip,card
3,1,7,2018-04-01 00:00:31,57.16,EUR,chip,4111 1111 1111 1111
4,1,7,2018-04-01 00:00:31,-1,EUR,chip,
5,2,8,,1.00,EUR,online,
"""


def of_its_own() -> str:
    """Return the lines, the good ones unlike those of an earlier file on the same stack: equal lines are the same transactions."""
    return re.sub(r"(?m)^([0125]),", rf"{time.time_ns()}\1,", LINES)


@pytest.fixture(scope="module")
def kafka(stack: None) -> Iterator[None]:
    control.up({"postgres", "kafka"})
    yield
    supervision.call("stopProcess", "kafka")


def stored() -> list[tuple[int, int, str]]:
    """Key, customer and amount of what the topic holds."""
    found = [json.loads(message) for message in messages(broker.TRANSACTIONS)]
    return [(one["transaction_id"], one["customer_id"], one["amount"]) for one in found]


def test_a_file_is_sent_twice_under_the_same_ids_and_its_bad_lines_are_recorded_once(kafka: None, tmp_path: Path):
    path = tmp_path / "stream.csv"
    path.write_text(of_its_own())
    before = set(stored())
    told = [subprocess.run([VERB, path, "--to", "kafka"], capture_output=True, text=True, check=True).stderr for _ in range(2)]
    assert all("acknowledged=4 rejected=2" in words for words in told)
    new = [row for row in stored() if row not in before]
    assert sorted((customer, amount) for _, customer, amount in new) == [(0, "57.16")] * 2 + [(1, "57.16")] * 4 + [(2, "1.00")] * 2
    assert len({key for key, _, _ in new}) == 4
    assert rows(
        f"SELECT line, column_name, payload FROM ops.rejects WHERE origin = '{path}' ORDER BY line", role="etl", dbname="warehouse"
    ) == [
        (5, "device", "3,1,7,2018-04-01 00:00:31,57.16,EUR,chip,**** **** **** ****"),
        (6, "amount", "4,1,7,2018-04-01 00:00:31,-1,EUR,chip,"),
    ]


def test_an_api_that_speaks_tls_is_sent_to_by_its_authority_and_by_no_other(kafka: None, tmp_path: Path):
    for name in ("ours", "theirs"):
        subprocess.run([ROOT / "bash" / "certificates.sh", tmp_path / name], check=True, capture_output=True)
    path = tmp_path / "stream.csv"
    path.write_text(of_its_own())
    before = set(stored())

    def sent(authority: str) -> subprocess.CompletedProcess[str]:
        ours = {"WAREHOUSE_API_KEY_FILE": str(tmp_path / "api.key"), "WAREHOUSE_API_CA_FILE": str(tmp_path / authority)}
        # The API's own certificate is not known to whoever sends.
        environment = {name: value for name, value in api.environment.items() if "_TLS_" not in name}
        return subprocess.run([VERB, path], env={**environment, **ours}, capture_output=True, text=True, check=False)

    with running(tmp_path, is_tls=True, WAREHOUSE_API_TLS_CERTIFICATE_FILE=str(tmp_path / "ours" / "broker.pem")) as api:
        (tmp_path / "api.key").write_text(api.key)
        refused = sent("theirs/ca.pem")
        assert (refused.returncode, set(stored()) - before) == (3, set())
        assert "the certificate of the API is not trusted (" in refused.stderr
        missing = sent("nowhere.pem")
        assert missing.returncode == 3
        assert "nowhere.pem holds no certificates" in missing.stderr
        told = sent("ours/ca.pem")
    assert told.returncode == 0, told.stderr
    assert "acknowledged=4 rejected=2" in told.stderr
    new = [row for row in stored() if row not in before]
    assert sorted((customer, amount) for _, customer, amount in new) == [(0, "57.16"), (1, "57.16"), (1, "57.16"), (2, "1.00")]


@pytest.mark.slow
def test_a_stop_sends_what_is_gathered_and_says_how_far_it_came(kafka: None):
    before = len(stored())
    command = [VERB, "--generate", "--rate", "50", "--customers", "50", "--terminals", "50", "--to", "kafka"]
    # A group of its own, as a terminal gives it: Ctrl-C goes to all of it.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    deadline = time.monotonic() + 60
    while len(stored()) < before + 20:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    count = re.search(r"sent\s+line=\d+ acknowledged=(\d+) rejected=0", told)
    assert count is not None
    assert len(stored()) == before + int(count[1])
