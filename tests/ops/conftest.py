import pytest

from tests.ops.configurations import configured


@pytest.fixture
def configuration(request):
    with configured(*request.param):
        yield
