import pytest


@pytest.fixture(scope="session")
def shared_machines(s3_server):
    """A cluster on this machine for all tests of a process: a head that does no work, and whatever a test adds. Its
    workers see the S3 server."""
    from tests.helpers.machines import Machines

    machines = Machines(s3_server)
    yield machines
    machines.end()
