"""How this project's own programs log in to a DVC remote over SSH; DVC imports this by its name."""

from typing import Any

from asyncssh import SSHClient
from dvc_ssh import SSHFileSystem

CONNECT_SECONDS, ALIVE_SECONDS = 20, 15
"""How long a connection may take, and how often a silent one is asked for a sign; it is given up after three."""


class CheckedSSH(SSHFileSystem):
    """DVC's, which takes any host for the one that is meant, asks a person for what it lacks, and waits for minutes.

    A host counts by the keys in `~/.ssh/known_hosts`, as for `ssh`, and nobody is asked.
    """

    def _prepare_credentials(self, **config: Any) -> dict[str, Any]:
        given = {name: value for name, value in config.items() if not name.startswith("ask_")}
        return {
            **super()._prepare_credentials(**given),
            "known_hosts": (),
            "client_factory": SSHClient,
            "connect_timeout": CONNECT_SECONDS,
            "keepalive_interval": ALIVE_SECONDS,
        }
