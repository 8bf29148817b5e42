"""The whole visit: look at the device and at its network, and say what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.errors import EdgellamaError
from edgellama.net.facts import OVERHEAD_NUMBA_BYTES, OVERHEAD_NUMPY_BYTES
from edgellama.net.host_report import host_report, package_versions
from edgellama.node.admission import known_access
from edgellama.node.doctor.device import check_device
from edgellama.node.doctor.examination import examine_network
from edgellama.node.doctor.findings import FAIL, Finding, fine
from edgellama.node.doctor.network import check_network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama.net.paths import StatePaths
    from edgellama.node.admission import KeyChoice
    from edgellama.values import Address


def visit(paths: StatePaths, choice: KeyChoice, named: Sequence[Address]) -> list[Finding]:
    """Return what was found, in the order in which a person would look."""
    compiled = "numba" in package_versions(["numba"])
    host = host_report(paths, OVERHEAD_NUMBA_BYTES if compiled else OVERHEAD_NUMPY_BYTES)
    key, finding = _key(paths, choice)
    findings = [*check_device(host), finding]
    return findings + check_network(host, examine_network(host, paths, key, named))


def _key(paths: StatePaths, choice: KeyChoice) -> tuple[bytes, Finding]:
    """Return the key to look with, and where it comes from."""
    try:
        access = known_access(choice, paths)
    except EdgellamaError as error:
        return b"", Finding("key", FAIL, str(error), "join again with a code")
    if access is None:
        return b"", fine("key", "none yet: looking for open meshes and for any device")
    if not access.key:
        return b"", fine("key", "none: an open mesh")
    kept = "remembered from the mesh that this device joined" if access.is_kept else "as given"
    return access.key, fine("key", kept)
