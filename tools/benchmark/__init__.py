"""The parts of tools/bench.py: floors in C, workloads through pmwal's public calls, peers, the gate, tables and charts."""
