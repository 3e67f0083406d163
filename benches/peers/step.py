"""Training steps in PyTorch on one thread, for benches/step.rs.

For each line on its standard input one round of steps with eager and then with fused AdamW (zero_grad, forward, loss,
backward, update), and a line of JSON with the medians in milliseconds. The models are those of models.py in the
folder given, and here are those that it does not have; of recurrent ones the packed form, which is PyTorch's fastest. The
padded inputs are ready beforehand; the lengths come from the caller, one list for each batch.
"""
import argparse
import json
import statistics
import sys
import time
import types

import torch

CLASSES = 15

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("peers", help="folder with models.py")
parser.add_argument("model", choices=["attention", "autoencoder", "cnn", "gru", "linear", "lstm", "mlp"])
parser.add_argument("rows_max", type=int)
parser.add_argument("dim", type=int)
parser.add_argument("steps", type=int, help="steps of a round, for each of the two")
parser.add_argument("lengths", type=json.loads, help="[[rows, ...], ...]: of each record of each batch")
arguments = parser.parse_args()

# The peers' own module of this name wants a Kafka client; the models want two numbers of it.
common = types.ModuleType("common")
common.DIM, common.MAX_LEN = arguments.dim, arguments.rows_max
sys.modules["common"] = common
sys.path.insert(0, arguments.peers)
from models import MODELS, Classifier, GruPacked  # noqa: E402

HIDDEN, HEADS = 128, 4


class Linear(Classifier):
    def __init__(self, classes):
        super().__init__()
        self.out = torch.nn.Linear(arguments.dim, classes)

    def forward(self, x, mask, lengths):
        return self.out(x.sum(1) / lengths.unsqueeze(1))


class LstmPacked(GruPacked):
    def __init__(self, classes):
        super().__init__(classes)
        self.gru = torch.nn.LSTM(arguments.dim, HIDDEN, batch_first=True)

    def forward(self, x, mask, lengths):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths.long(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.gru(packed)
        return self.out(last[0])


class Attention(Classifier):
    def __init__(self, classes):
        super().__init__()
        self.input = torch.nn.Linear(arguments.dim, HIDDEN)
        self.positions = torch.nn.Parameter(torch.randn(arguments.rows_max, HIDDEN) * 0.02)
        self.attention = torch.nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
        self.norm = torch.nn.LayerNorm(HIDDEN)
        self.out = torch.nn.Linear(HIDDEN, classes)

    def forward(self, x, mask, lengths):
        e = self.input(x) + self.positions
        a, _ = self.attention(e, e, e, key_padding_mask=mask == 0, need_weights=False)
        y = self.norm(e + a) * mask.unsqueeze(2)
        return self.out(y.sum(1) / lengths.unsqueeze(1))


MODELS = {**MODELS, "gru": GruPacked, "linear": Linear, "lstm": LstmPacked, "attention": Attention}

torch.set_num_threads(1)
torch.manual_seed(0)


def batch_of(lengths):
    lengths = torch.tensor(lengths, dtype=torch.float32)
    mask = (torch.arange(arguments.rows_max) < lengths.unsqueeze(1)).float()
    x = torch.randn(len(lengths), arguments.rows_max, arguments.dim) * mask.unsqueeze(2) * 0.1
    return x, mask, lengths, torch.randint(0, CLASSES, (len(lengths),))


class Trainer:
    def __init__(self, fused):
        self.model = MODELS[arguments.model](CLASSES)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=fused)
        self.steps = 0

    def step(self):
        batch = batches[self.steps % len(batches)]
        self.steps += 1
        self.optimizer.zero_grad()
        loss = self.model.loss(*batch)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def round(self):
        times = []
        for _ in range(arguments.steps):
            started = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1e3


batches = [batch_of(lengths) for lengths in arguments.lengths]
trainers = {"eager": Trainer(False), "fused": Trainer(True)}
for trainer in trainers.values():
    trainer.round()
for _ in sys.stdin:
    print(json.dumps({name: trainer.round() for name, trainer in trainers.items()}), flush=True)
