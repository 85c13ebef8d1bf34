"""`fit` on a `DataLoader`: the same as on data in memory, where the loader gives the same batches."""

import collections
import functools

import pytest
import torch
from conftest import waiting_is_an_error
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    StackDataset,
    SubsetRandomSampler,
    TensorDataset,
)

import vsc_pyro as vsc
from vsc_pyro.acceleration import CompiledSVI
from vsc_pyro.training.batches import LoaderBatches, MemoryBatches, get_batches

QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture
def images(digits):
    return digits.train.images[:230].round()


def fitted(make, data, **settings):
    """Weights and history of a fit, which leaves the caller's random state and that of a loader as they were."""
    model = make(seed=settings.pop("model_seed", 0))
    generators = [torch.default_generator, getattr(data, "generator", None) or torch.Generator()]
    before = [generator.get_state() for generator in generators]
    history = vsc.fit(model, data, **({"epochs": 3} | settings), **QUIET)
    assert all(torch.equal(*states) for states in zip(before, [g.get_state() for g in generators], strict=True))
    return model.state_dict(), history


def assert_same(a, b):
    assert a[1].elbo == b[1].elbo
    assert all(torch.equal(a[0][name], b[0][name]) for name in a[0])


class InTheOrderOfFit(Sampler):
    def __init__(self, num_data):
        self.num_data = num_data
        self.generator = torch.Generator()

    def __len__(self):
        return self.num_data

    def __iter__(self):
        yield from torch.randperm(self.num_data, generator=self.generator).tolist()


def as_fit(dataset, **settings):
    """A loader that gives what `fit` makes of the same data in memory, and draws from no generator but its own."""
    return DataLoader(dataset, sampler=InTheOrderOfFit(len(dataset)), generator=torch.Generator(), **settings)


Pair = collections.namedtuple("Pair", ["image", "label"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "compile"),
    [*((kind, False) for kind in ("tensor", "tuple", "list", "namedtuple", "uint8", "float64")), ("list", True)],
)
def test_a_loader_of_the_same_batches_ends_in_the_same_weights(small_vae, images, kind, compile, monkeypatch):
    monkeypatch.setattr("vsc_pyro.training.loop.CompiledSVI", functools.partial(CompiledSVI, backend="eager"))
    x = images.to({"uint8": torch.uint8, "float64": torch.float64}.get(kind, torch.float32))
    labels = torch.arange(len(x))
    dataset = {
        "tensor": x,
        "list": TensorDataset(x, labels),
        "tuple": StackDataset(x, labels),
        "namedtuple": [Pair(*pair) for pair in zip(x, labels, strict=True)],
    }.get(kind, x)
    loader = as_fit(dataset, batch_size=50)
    settings = {"seed": 3, "compile": compile}
    assert_same(fitted(small_vae, loader, **settings), fitted(small_vae, images, batch_size=50, **settings))


def shuffled(x, **settings):
    return DataLoader(TensorDataset(x), batch_size=50, shuffle=True, **settings)


def generators_of_all_kinds(x):
    """Loaders that shuffle by torch's random state, by a generator, and by two that a sampler and the loader have."""
    yield shuffled(x)
    yield shuffled(x, generator=torch.Generator().manual_seed(8))
    yield DataLoader(x, 50, sampler=RandomSampler(x, generator=torch.Generator()), generator=torch.Generator())


def test_the_seed_decides_the_order(small_vae, images):
    for loader in generators_of_all_kinds(images):
        first, again, other = (fitted(small_vae, loader, seed=seed) for seed in (1, 1, 2))
        assert_same(first, again)
        assert first[1].elbo != other[1].elbo


class Noisy(torch.utils.data.Dataset):
    """Binarised as it is read, from torch's random state: that of the process or of a worker."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return torch.bernoulli(self.images[index])


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_next_epoch_as_if_never_interrupted(small_vae, digits, tmp_path):
    grey = digits.train.images[:230]
    loaders = [*generators_of_all_kinds(grey), DataLoader(Noisy(grey), 50, shuffle=True)]
    loaders.append(DataLoader(Noisy(grey), 50, shuffle=True, num_workers=1))
    loaders.append(shuffled(grey[:200], generator=torch.Generator()))  # whose sampler does not end with the last batch
    for number, loader in enumerate(loaders):
        checkpoint = tmp_path / f"{number}.pt"
        whole = fitted(small_vae, loader, epochs=4)
        fitted(small_vae, loader, epochs=2, checkpoint=checkpoint)
        resumed = fitted(small_vae, loader, epochs=4, checkpoint=checkpoint, resume=True, model_seed=9)
        assert_same(whole, resumed)
    with pytest.raises(ValueError, match=r"of 230 data .* by RandomSampler, 0 generators.*now .*of 180 data"):
        fitted(small_vae, shuffled(grey[:180]), checkpoint=tmp_path / "0.pt", resume=True, epochs=5)
    other = shuffled(grey, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"0 generators of its own \(now .* 1 generators of its own"):
        fitted(small_vae, other, checkpoint=tmp_path / "0.pt", resume=True, epochs=5)


class Counting(Sampler):
    """Torch's `DistributedSampler` is told the epoch by such a method, and shuffles by nothing else."""

    def __init__(self, num_data):
        self.num_data = num_data
        self.epochs = []

    def __len__(self):
        return self.num_data

    def __iter__(self):
        return iter(range(self.num_data))

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_samplers_are_told_the_epoch(small_vae, images, tmp_path):
    sampler = Counting(len(images))
    loader = DataLoader(images, 50, sampler=sampler)
    fitted(small_vae, loader, epochs=3, checkpoint=tmp_path / "c.pt")
    assert sampler.epochs == [0, 0, 1, 2]  # the first of them is for what is looked at beforehand
    fitted(small_vae, loader, epochs=5, checkpoint=tmp_path / "c.pt", resume=True)
    assert sampler.epochs[4:] == [0, 3, 4]


class Stream(IterableDataset):
    def __init__(self, images, length=None):
        self.images = images
        if length is not None:
            self.length = length

    def __len__(self):
        if not hasattr(self, "length"):
            raise TypeError("a stream has no end")
        return self.length

    def __iter__(self):
        return iter(self.images)


class Once(Stream):
    def __iter__(self):
        images, self.images = self.images, self.images[:0]
        return iter(images)


def test_numbers_of_data_and_losses_are_per_datum(small_vae, images):
    random = SubsetRandomSampler(range(100))
    for loader, num_data, num_steps in [
        (DataLoader(images, 50), 230, 5),
        (DataLoader(images, 50, drop_last=True), 230, 4),
        (DataLoader(images, 50, sampler=random), 100, 2),
        (DataLoader(images, batch_sampler=BatchSampler(random, 30, drop_last=False)), 100, 4),
        (DataLoader(images, sampler=BatchSampler(random, 30, drop_last=False), batch_size=None), 100, 4),
        (DataLoader(images, batch_sampler=[[0, 1], [2, 3, 4]]), 230, 2),
        (DataLoader(Stream(images, len(images)), 50), 230, 5),
    ]:
        model = small_vae()
        history = vsc.fit(model, loader, epochs=1, lr=1e-9, **QUIET)
        batches = get_batches(loader, None, 0)
        assert (model.num_data, batches.num_data, batches.num_steps) == (num_data, num_data, num_steps)
        assert batches.full_size == len(next(iter(loader)))
        # What an untrained model, which starts at the mean image, makes of whichever images these were.
        assert -35 < history.elbo[0] < -20


def test_a_stream_that_ends_early_is_an_epoch(small_vae, images, capsys):
    history = vsc.fit(small_vae(), DataLoader(Stream(images[:120], 230), 50), epochs=2, device="cpu")
    assert -35 < history.elbo[0] < -20
    assert "6/10" in capsys.readouterr().err


def test_pseudo_inputs_start_at_the_first_data(images):
    encoder = vsc.SpikeSlabEncoder(64, 4, hidden=(16,))
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(4, 64), vsc.PseudoInputPrior(encoder, 12))
    loader = DataLoader(images.flatten(1), 5)  # fewer in a batch than pseudo-inputs
    vsc.fit(model, loader, epochs=1, lr=1e-9, **QUIET)
    distances = torch.cdist(model.prior.pseudo_inputs.detach().round(), images.flatten(1), p=1)
    assert model.prior.prepared
    assert distances.min(1).values.max() == 0


def test_what_is_looked_at_beforehand_is_bounded(digits):
    batches = LoaderBatches(DataLoader(digits.train.images, 300), seed=0)
    assert torch.equal(batches.sample, digits.train.images[:1200])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: DataLoader(StackDataset(image=x), 50), "batches must be tensors .*, got a dict; let the DataLoader"),
        (lambda x: DataLoader(range(9), 3), r"batches must be tensors .*, got a tensor of shape \(3,\)"),
        (
            lambda x: DataLoader(Stream(x), 50),
            r"known length.*got one of Stream \(a stream has no end\); give that class a",
        ),
        (
            lambda x: DataLoader(x, batch_size=None),
            "makes the batches.*got one with batch_size=None; construct it with a batch",
        ),
        (lambda x: DataLoader(x, 500, drop_last=True), "at least one batch, got one of 230 data and 0 batches"),
        (lambda x: DataLoader(Once(x, 230), 50), "yielded no batch in epoch 1; Once must yield its data again"),
        (lambda x: DataLoader(255 * x, 50), "data must lie in the support of the likelihood"),
        (lambda x: DataLoader(x / 0, 50), "data holds .* NaN or infinite values"),
        (lambda x: DataLoader(x[..., 1:], 50), "does not take data of shape"),
    ],
)
def test_loaders_that_cannot_be_trained_on(small_vae, images, make, message):
    with pytest.raises(ValueError, match=message):
        vsc.fit(small_vae(), make(images), epochs=1, **QUIET)


def late(x, row, value):
    """Data of which the one of that row, after what is looked at beforehand, holds that value."""
    x = x.repeat(6, 1, 1, 1)
    x[row, 0, 3, 3] = value
    return x


class Listed(torch.utils.data.Dataset):
    """Batches as they are listed, of any shape and type."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def listed(*batches):
    return DataLoader(Listed(batches), batch_size=1, collate_fn=lambda one: one[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: DataLoader(late(x, 1200, 255.0), 100), "batch 13 of epoch 1 .* support .* values from 0 to 255"),
        (lambda x: DataLoader(late(x, 1379, 1.7), 100), "batch 14 of epoch 1 of the DataLoader: data must lie in the"),
        (lambda x: DataLoader(late(x, 1100, -0.1), 100), "batch 12 of epoch 1 .* support"),
        (lambda x: DataLoader(late(x, 1250, torch.nan), 100), "batch 13 of epoch 1 .* 1 NaN or infinite .* datum 50"),
        (lambda x: DataLoader(late(x.double(), 1250, 1e300), 100), "batch 13 .* infinite values in .*float32"),
        (lambda x: listed(*[x] * 5, 255 * x), "batch 6 of epoch 1 .* values from 0 to 255"),
        (lambda x: listed(*[x] * 5, x.flatten(1)), r"batch 6 .* have shape \(B, 1, 8, 8\) and .* got shape \(B, 64\)"),
        (lambda x: listed(*[x] * 5, x.byte()), "batch 6 .* type torch.float32, got .* type torch.uint8"),
        (lambda x: listed(x, x.flatten(1)), "batch 2 .* all batches must have shape"),
    ],
)
def test_a_later_batch_that_is_no_data_is_named(small_vae, images, make, message):
    with pytest.raises(ValueError, match=message):
        vsc.fit(small_vae(), make(images), epochs=2, **QUIET)


class Turning(torch.utils.data.Dataset):
    """Data that leave the support in their third pass: the first is looked at beforehand."""

    def __init__(self, images):
        self.images, self.passes = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.passes += index == 0
        return self.images[index] * (2 if self.passes == 3 and index > 100 else 1)


def test_every_epoch_is_checked(small_vae, images):
    with pytest.raises(ValueError, match="batch 3 of epoch 2 of the DataLoader"):
        vsc.fit(small_vae(), DataLoader(Turning(images), 50), epochs=2, **QUIET)


@pytest.mark.cuda
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_on_a_gpu_support_is_told_at_the_end_of_the_epoch(small_vae, images, device, where):
    bad = late(images, 1200, 255.0).to(where)
    with pytest.raises(ValueError, match="batch 13 of epoch 1 of the DataLoader: data must lie in the support"):
        vsc.fit(small_vae(), DataLoader(bad, 100), epochs=2, device=device, progress=False)


def test_a_range_that_the_first_data_do_not_have_is_told():
    def fitted_on(x):
        encoder = vsc.SpikeSlabEncoder(16, 3, hidden=(8,))
        model = vsc.VAE(encoder, vsc.NormalDecoder(3, 16, hidden=(8,)), vsc.PseudoInputPrior(encoder, 4))
        vsc.fit(model, DataLoader(TensorDataset(x), 200), epochs=2, **QUIET)

    x = torch.rand(1400, 16)
    fitted_on(x)
    x[1200:] += 5
    with pytest.warns(
        UserWarning, match="pseudo-inputs stay within .* these data range from .* shuffle a DataLoader"
    ) as seen:
        fitted_on(x)
    assert len(seen) == 1


def test_a_loader_has_its_own_batch_size(small_vae, images):
    with pytest.raises(ValueError, match="batch_size=20 is for data in memory, and a DataLoader has its own"):
        vsc.fit(small_vae(), DataLoader(images, 50), batch_size=20, **QUIET)
    model = small_vae()
    model.encoder.network.insert(2, torch.nn.BatchNorm1d(32))
    with pytest.raises(ValueError, match="batch_size=229 leaves a last batch of one of the 230 data"):
        vsc.fit(model, DataLoader(images, 229), epochs=1, **QUIET)
    vsc.fit(model, DataLoader(images, 229, drop_last=True), epochs=1, **QUIET)
    assert MemoryBatches(vsc.Dataset(images), 229).smallest == 1
    assert get_batches(images, None, 0).batch_size == 200


@pytest.mark.cuda
@pytest.mark.parametrize("pin_memory", [False, True])
def test_copies_to_a_gpu_do_not_wait(small_vae, images, device, pin_memory):
    dataset = TensorDataset((255 * images).to(torch.uint8))
    batches = LoaderBatches(DataLoader(dataset, 50, pin_memory=pin_memory), seed=0)
    batches.to(torch.empty(0, device=device))
    next(batches.epoch(0))
    with waiting_is_an_error():
        got = list(batches.epoch(0))
    assert torch.equal(torch.cat(got).cpu(), 255 * images)
    vsc.fit(small_vae(), DataLoader(images, 50, pin_memory=pin_memory), epochs=2, device=device, progress=False)
