import jax
import pytest

from ul2.sharding.mesh import make_mesh


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Compiles each of the few toy programs once for all tests of this folder."""
    folder = tmp_path_factory.mktemp("compiled")
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.fixture
def one_device():
    return make_mesh("auto", jax.devices()[:1])
