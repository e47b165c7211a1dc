"""What this host's cores mean for a server: how many threads its workers get, whether they spin, what is pinned."""

from collections.abc import Iterator

from hermetic.enclave.publishers import TrustedPublishers
from hermetic.errors import ConfigurationError
from hermetic.provision.host import Finding
from hermetic.server.catalogue import Catalogue
from hermetic.server.config import ServerConfig
from hermetic.server.cpu_plan import Cores, CpuPlan
from hermetic.server.gpu_facts import known_gpus
from hermetic.server.gpu_plan import GpuPlan
from hermetic.server.repository import Repository

__all__ = ["examine_cores", "examine_plan"]

_SHARED = "processes share cores: threads do not spin, and nothing is pinned unless server.toml says so"


def examine_cores(cores: Cores) -> Iterator[Finding]:
    """Say how many cores there are, and whether they are there all the time."""
    count = f"{len(cores.usable)} usable"
    if cores.whole:
        yield Finding("processors", "cores", "good", count)
    else:
        yield Finding("processors", "cores", "weak", f"{count}, a quota of {cores.quota:g}", _SHARED)


def examine_plan(config: ServerConfig, cores: Cores) -> Iterator[Finding]:
    """Say how a server of this configuration would share the cores out, for the sealed files that are there now."""
    plan = CpuPlan(cores, config.cpu, config.front_ends)
    workers = _repository(config).expected(GpuPlan(known_gpus()))
    try:
        plan.begin(workers)
    except ConfigurationError as error:
        yield Finding("processors", "plan", "missing", str(error), "the server does not start")
        return
    shown = plan.describe()
    detail = (
        f"{config.front_ends} front ends, {len(workers)} workers with {shown['threads-per-worker']} threads "
        f"where none are said, {'spinning' if shown['spinning'] else 'not spinning'}, "
        f"{'each on cores of its own' if shown['pinned'] else 'on any core'}"
    )
    roomy = bool(shown["spinning"])
    yield Finding("processors", "plan", "good" if roomy else "weak", detail, "" if roomy else _SHARED)


def _repository(config: ServerConfig) -> Repository:
    """Return what the configuration serves, every model wanted."""
    try:
        publishers = TrustedPublishers.loads(config.publishers.read_text())
    except OSError as error:
        raise ConfigurationError(f"{config.publishers}: {error.strerror}") from error
    repository = Repository()
    for file in Catalogue(config.models, config.repository, publishers).look(settled=False).files.values():
        repository.put(file)
    for shelf in repository.shelves():
        shelf.wanted = True
    return repository
