"""Services by their virtual address: `docker service create --network ours`, and its name answers."""

from __future__ import annotations

from collections import Counter

from tests.e2e.containers import Container, Playground, eventually

WEB = ["sh", "-c", "hostname -i | tee /www/index.html; exec httpd -f -p 80 -h /www"]

_TCP = """
import collections, socket, sys
address, count = sys.argv[1], int(sys.argv[2])
seen = collections.Counter()
for _ in range(count):
    with socket.create_connection((address, 80), 5) as connection:
        connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        answer = b""
        while part := connection.recv(4096):
            answer += part
    seen[answer.split()[-1].decode()] += 1
print(dict(seen))
"""


def connections(client: Container, address: str, count: int) -> Counter[str]:
    """How many of *count* connections each task has served."""
    return Counter(eval(client.python(_TCP, address, str(count))))


def test_thin(ground: Playground) -> None:
    network = ground.network()
    service = ground.service(network, 3, command=WEB)
    ground.wait_tasks(service, 3)
    clients = ground.everywhere(network)
    for client in clients:
        vip = eventually(lambda c=client: c.resolves(service))  # type: ignore[misc]
        print(client.host.name, vip)
        print(client.host.run(["sh", "-c", f"nsenter -t {client.pid} -n nft list ruleset"]).stdout)
        print(connections(client, vip.pop(), 30))
        print(client.exec("wget", "-qO-", f"http://{service}/"))
    raise AssertionError("look")
