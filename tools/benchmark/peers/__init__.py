"""The peers: one module for each adapter, and the child process that measures one."""

from __future__ import annotations

from benchmark.peers import level, lmdb_env, persist_queue, plain_file, pmemlog, pmwal_log, rocks, savior, sqlite
from benchmark.peers.base import DURABLE, PAYLOAD, WORKLOADS, Peer, payload_of

PEERS: dict[str, Peer] = {
    peer.name: peer
    for module in (pmwal_log, plain_file, sqlite, lmdb_env, rocks, level, persist_queue, savior, pmemlog)
    for peer in module.PEERS
}

__all__ = ["DURABLE", "PAYLOAD", "PEERS", "WORKLOADS", "Peer", "payload_of"]
