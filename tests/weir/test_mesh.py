import click
import pytest
from click.testing import CliRunner

from tests.certificates import Authority
from tests.weir.test_programs import POOL, weir
from weir.mesh import mesh_options
from xds.hbone_tls import MeshCredentials


@pytest.fixture
def root(tmp_path):
    return Authority(tmp_path / "mesh")


def given(*arguments):
    """What a command with the options gets of them."""
    seen = []

    @click.command()
    @mesh_options
    def command(mesh):
        seen.append(mesh)

    result = CliRunner().invoke(command, [str(each) for each in arguments])
    return seen[0] if seen else result.output


def test_three_files_are_an_identity_and_none_are_none(root):
    certificate, key = root.issue("us", spiffe="spiffe://cluster.local/ns/weir/sa/weir")
    files = ("--mesh-cert", certificate, "--mesh-key", key, "--mesh-ca", root.ca)
    assert given(*files) == MeshCredentials(certificate, key, root.ca)
    assert given(*files, "--trust-domain", "td") == MeshCredentials(certificate, key, root.ca, "td")
    assert given() is None


def test_a_part_of_an_identity_is_a_mistake(root):
    certificate, key = root.issue("us")
    assert "go together" in given("--mesh-cert", certificate, "--mesh-key", key)
    assert "go together" in given("--mesh-ca", root.ca)
    assert "go together" in given("--trust-domain", "td")


def test_an_identity_that_cannot_work_stops_the_start_and_names_the_files(root, tmp_path):
    (tmp_path / "pools").mkdir()
    (tmp_path / "pools" / "pool.yaml").write_text(POOL)
    (certificate, _), (_, key) = root.issue("us"), root.issue("other")
    ended = weir(
        *("serve", "--plaintext", "--config", str(tmp_path / "pools")),
        *("--mesh-cert", str(certificate), "--mesh-key", str(key), "--mesh-ca", str(root.ca)),
    )
    assert ended.returncode == 1
    assert "us.pem and " in ended.stderr
    assert "Traceback" not in ended.stderr
