"""One thread of BLAS inside, and what was there before outside."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from ctrlgen.threads import one_blas_thread


def threads():
    import scipy.linalg  # noqa: F401

    return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]


def test_blas_is_limited_inside_only():
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert before
        assert set(one_blas_thread(threads)()) == {1}
        assert threads() == before


def test_what_was_there_comes_back_after_an_error():
    @one_blas_thread
    def fail():
        raise KeyError(*threads())

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with pytest.raises(KeyError, match="1"):
            fail()
        assert threads() == before


def test_arguments_names_and_results_pass():
    @one_blas_thread
    def product(a, b, *, scale=1.0):
        """Documented."""
        return scale * (a @ b)

    np.testing.assert_array_equal(product(np.eye(2), b=np.ones(2), scale=3.0), [3.0, 3.0])
    assert (product.__name__, product.__doc__) == ("product", "Documented.")
