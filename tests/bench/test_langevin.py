"""Langevin side by side: eight Gaussians, 10 000 particles, 1000 steps, float32; and a 2-128-128-128-1 network.

Run: python -m pytest tests/bench/test_langevin.py --override-ini addopts= --benchmark-columns=min,median,rounds
Every row reports the mean energy of its result, which must agree: a fast wrong answer is no answer.
"""

import ctypes
import shutil
import subprocess
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg

PARTICLES, STEPS, STEP = 10_000, 1000, 0.01
ANGLES = np.arange(8) * np.pi / 4
MEANS = 4 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
VARIANCE = 0.25
MIXTURE = cg.GaussianMixture(MEANS, VARIANCE)
NETWORK = cg.MLPEnergy(2, width=128, depth=3, confinement=0.1, key=0)
NETWORK_STEPS = 200
START = np.random.default_rng(0).normal(size=(PARTICLES, 2)).astype(np.float32) * 4
FLOPS = PARTICLES * NETWORK_STEPS * 4 * (2 * 128 + 2 * 128 * 128 + 128)  # of the matrix products, both passes


def measure(benchmark, run, energy, steps, flops=None):
    benchmark.group = type(energy).__name__
    clock = time.perf_counter()
    run()
    first = time.perf_counter() - clock
    out = np.asarray(benchmark.pedantic(run, rounds=7, warmup_rounds=1), np.float64)
    mean = energy(out).mean()
    benchmark.extra_info |= {
        "mean_energy": round(float(mean), 4),
        "first_call_s": round(first, 2),
        "particle_steps_per_s": f"{PARTICLES * steps / benchmark.stats.stats.min:.3g}",
    }
    if flops:
        benchmark.extra_info["GFLOP/s"] = round(flops / benchmark.stats.stats.min / 1e9, 1)
    return mean


def reference(energy, steps):
    """Mean energy by an independent, slow and plain NumPy loop on fewer particles."""
    rng, x = np.random.default_rng(1), START[:1500].astype(np.float64)
    for _ in range(steps):
        x = x - STEP * energy.gradient(x) + np.sqrt(2 * STEP) * rng.standard_normal(x.shape)
    values = energy(x)
    return values.mean(), values.std() / np.sqrt(len(values))


@pytest.fixture(scope="module")
def truth():
    return {"mixture": reference(MIXTURE, STEPS), "network": reference(NETWORK, NETWORK_STEPS)}


def agrees(mean, truth):
    assert abs(mean - truth[0]) < 5 * truth[1]


@pytest.mark.parametrize(
    ("name", "energy", "steps"), [("mixture", MIXTURE, STEPS), ("network", NETWORK, NETWORK_STEPS)]
)
def test_ctrlgen(benchmark, truth, name, energy, steps):
    loop = cg.ClosedLoop(cg.Langevin(1.0, STEP), energy)
    run = lambda: loop.simulate(START, steps * STEP, record=2).final  # noqa: E731
    agrees(measure(benchmark, run, energy, steps, FLOPS if name == "network" else None), truth[name])


def torch_energy(name):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'ctrlgen[bench]'")
    if name == "mixture":
        means = torch.tensor(MEANS, dtype=torch.float32)
        return lambda x: -torch.logsumexp(-0.5 / VARIANCE * ((x[:, None] - means) ** 2).sum(-1), dim=1)
    w, b = ([torch.tensor(np.asarray(a)) for a in arrays] for arrays in (NETWORK.weights, NETWORK.biases))

    def network(x):
        y = x
        for weight, bias in zip(w[:-1], b[:-1], strict=True):
            y = torch.nn.functional.silu(y @ weight.T + bias)
        return (y @ w[-1].T + b[-1])[:, 0] + 0.05 * (x**2).sum(1)

    return network


@pytest.mark.parametrize(
    ("name", "energy", "steps"), [("mixture", MIXTURE, STEPS), ("network", NETWORK, NETWORK_STEPS)]
)
def test_torchebm_autograd(benchmark, truth, name, energy, steps):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'ctrlgen[bench]'")
    core = pytest.importorskip("torchebm.core", reason="torchebm is not installed: pip install 'ctrlgen[bench]'")
    samplers = pytest.importorskip("torchebm.samplers", reason="torchebm is not installed")
    function = torch_energy(name)

    class Model(core.BaseModel):
        def forward(self, x):
            return function(x)

    sampler = samplers.LangevinDynamics(Model(), step_size=STEP, noise_scale=1.0)
    run = lambda: sampler.sample(x=torch.tensor(START), n_steps=steps).numpy()  # noqa: E731
    agrees(measure(benchmark, run, energy, steps, FLOPS if name == "network" else None), truth[name])


def test_official_style_loop_network(benchmark, truth):
    """The Energy Matching sampling loop, restated: torch autograd, one Euler–Maruyama step at a time."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'ctrlgen[bench]'")
    function = torch_energy("network")

    def run():
        x = torch.tensor(START)
        for _ in range(NETWORK_STEPS):
            x = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(function(x).sum(), x)
            x = x.detach() - STEP * slope + np.sqrt(2 * STEP) * torch.randn_like(x)
        return x.detach().numpy()

    agrees(measure(benchmark, run, NETWORK, NETWORK_STEPS, FLOPS), truth["network"])


@pytest.mark.parametrize(
    ("name", "energy", "steps"), [("mixture", MIXTURE, STEPS), ("network", NETWORK, NETWORK_STEPS)]
)
def test_blackjax_sgld(benchmark, truth, name, energy, steps):
    sgld = pytest.importorskip("blackjax.sgmcmc.sgld", reason="blackjax is not installed: pip install 'ctrlgen[bench]'")
    kernel = sgld.build_kernel()

    if name == "mixture":
        means = jnp.asarray(MEANS, jnp.float32)

        def log_density(x):
            return jax.nn.logsumexp(-0.5 / VARIANCE * jnp.sum((x - means) ** 2, axis=-1))
    else:

        def log_density(x):
            y = x
            for w, b in zip(NETWORK.weights[:-1], NETWORK.biases[:-1], strict=True):
                y = jax.nn.silu(w @ y + b)
            return -(NETWORK.weights[-1][0] @ y + NETWORK.biases[-1][0] + 0.05 * jnp.sum(x * x))

    gradient = jax.vmap(jax.grad(log_density))

    @jax.jit
    def chain(x, key):
        return jax.lax.scan(
            lambda c, k: (kernel(k, c, lambda position, _: gradient(position), None, STEP), None),
            x, jax.random.split(key, steps),
        )[0]  # fmt: skip

    run = lambda: jax.block_until_ready(chain(jnp.asarray(START), jax.random.key(0)))  # noqa: E731
    agrees(measure(benchmark, run, energy, steps, FLOPS if name == "network" else None), truth[name])


def test_fused_c(benchmark, truth, tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the practical limit is not measured")
    library = tmp_path_factory.mktemp("fused") / "fused_langevin.so"
    source = Path(__file__).with_name("fused_langevin.c")
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library), "-lm"], check=True)
    function = ctypes.CDLL(str(library)).langevin
    pointer = ctypes.POINTER(ctypes.c_float)
    mx, my = (np.ascontiguousarray(MEANS[:, i], np.float32) for i in range(2))

    def run():
        x, y = (np.ascontiguousarray(START[:, i]) for i in range(2))
        function(
            x.ctypes.data_as(pointer), y.ctypes.data_as(pointer), ctypes.c_long(PARTICLES), ctypes.c_long(STEPS),
            ctypes.c_float(STEP), ctypes.c_float(1.0), mx.ctypes.data_as(pointer), my.ctypes.data_as(pointer),
            ctypes.c_int(8), ctypes.c_float(1 / VARIANCE), ctypes.c_uint64(1),
        )  # fmt: skip
        return np.stack([x, y], axis=1)

    agrees(measure(benchmark, run, MIXTURE, STEPS), truth["mixture"])


@pytest.mark.parametrize("who", ["jax", "numpy"])
def test_matrix_product_of_the_same_shape(benchmark, who):
    """What the machine's sgemm does at (10000, 128) x (128, 128): the ceiling of the network's rate."""
    benchmark.group = "MLPEnergy"
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(128, 128)).astype(np.float32), rng.normal(size=(128, PARTICLES)).astype(np.float32)
    if who == "jax":
        product, a, b = eqx.filter_jit(lambda p, q: p @ q), jnp.asarray(a), jnp.asarray(b)
        run = lambda: jax.block_until_ready(product(a, b))  # noqa: E731
    else:
        c = np.ascontiguousarray(b.T)
        run = lambda: c @ a  # noqa: E731
    run()
    benchmark.pedantic(run, rounds=50, warmup_rounds=5)
    benchmark.extra_info["GFLOP/s"] = round(2 * 128 * 128 * PARTICLES / benchmark.stats.stats.min / 1e9, 1)
