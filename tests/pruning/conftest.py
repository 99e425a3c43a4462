import pytest

from tests.conftest import make_images


@pytest.fixture
def images():
    return make_images(96, seed=1)
