"""torch's own data-parallel wrappers around a factorized network: two processes take the steps that one would take.

DistributedDataParallel copies the network to every process. FSDP2 cuts parameters in pieces, and the factors of a layer
are not to be cut: a frame of which a process has some rows is none. They are handed over as `ignored_params`, stay
whole in every process, and their gradients are averaged before the step; everything else is cut.
"""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import wellcond as wc

SIZE, STEPS, MAX_COND = 2, 5, 1.5
OPTIMIZERS = {
    "sgd": lambda groups: wc.LowRankSGD(groups, lr=0.05, momentum=0.3, weight_decay=1e-3),
    "adamw": lambda groups: wc.LowRankAdamW(groups, lr=0.01),
}


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 4)]
    model = wc.factorize(nn.Sequential(*layers).double(), ratio=0.5, skip=["5"])
    return wc.constrain(model, max_cond=MAX_COND)


def factors(model):
    return [p for layer in wc.low_rank_layers(model).values() for p in (layer.U, layer.S, layer.V)]


def train(model, optimizer, part=slice(None), before_step=lambda: None):
    torch.manual_seed(1)
    x = torch.randn(64, 20, dtype=torch.float64)
    y = x[:, :4].argmax(1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        before_step()
        optimizer.step()


def data_parallel(model, make, part):
    train(DistributedDataParallel(model), make(wc.param_groups(model, max_cond=MAX_COND)), part)


def fully_sharded(model, make, part):
    from torch.distributed.fsdp import fully_shard

    whole = factors(model)
    mesh = dist.device_mesh.init_device_mesh("cpu", (SIZE,))
    fully_shard(model, mesh=mesh, ignored_params=set(whole))

    def average():
        for p in whole:
            dist.all_reduce(p.grad)
            p.grad /= SIZE

    train(model, make(wc.param_groups(model, max_cond=MAX_COND)), part, average)
    cut = {name for name, p in model.named_parameters() if isinstance(p, DTensor)}
    assert cut == {"0.bias", "2.bias", "3.weight", "3.bias", "5.weight", "5.bias"}


WRAPPERS = {"DistributedDataParallel": data_parallel, "FSDP2": fully_sharded}


def work(rank, address, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=SIZE)
    n = 64 // SIZE
    for wrapper, wrapped in WRAPPERS.items():
        for name, make in OPTIMIZERS.items():
            model = network()
            wrapped(model, make, slice(n * rank, n * (rank + 1)))
            state = {
                key: p.full_tensor() if isinstance(p, DTensor) else p.detach() for key, p in model.named_parameters()
            }
            torch.save(state, folder / f"{wrapper}-{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    arguments = (f"file://{folder / 'store'}", folder)
    mp.start_processes(work, arguments, nprocs=SIZE, start_method="fork")  # without importing torch anew
    return folder


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_processes_take_the_steps_of_one(trained, wrapper, name):
    alone = network()
    train(alone, OPTIMIZERS[name](wc.param_groups(alone, max_cond=MAX_COND)))
    for rank in range(SIZE):
        together = torch.load(trained / f"{wrapper}-{name}-{rank}.pt")
        for key, p in alone.named_parameters():
            torch.testing.assert_close(together[key], p.detach(), rtol=0, atol=1e-12, msg=f"{key} of process {rank}")
    for layer in wc.low_rank_layers(alone).values():  # the comparison was with a step that keeps the constraint
        assert wc.condition_number(layer.S.detach()) <= MAX_COND * (1 + 1e-9)
