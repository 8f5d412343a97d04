import builtins

import pytest

from index import errors
from index.errors import FaissMissingError, StoredFileError


def test_all_names_every_exception_and_none_shadows_a_builtin() -> None:
    assert sorted(errors.__all__) == sorted(name for name in vars(errors) if name.endswith("Error"))
    assert not any(hasattr(builtins, name) for name in errors.__all__)


def test_a_missing_faiss_says_what_to_install() -> None:
    with pytest.raises(FaissMissingError, match=r"pip install 'forvalue-curator\[cpu\]'"):
        raise FaissMissingError
    assert not issubclass(FaissMissingError, StoredFileError)
