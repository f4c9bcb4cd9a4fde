"""Those that are measured.

To add a peer: its version in `benchmarks/peers/requirements.txt` or `package.json`, a script beside them that fills the
queue (`prepare N`) and works (`work`), and an entry in `peers.all_peers`. It then takes part in `drain`, and with a
statement that submits one job also in `latency`.
"""
