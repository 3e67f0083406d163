"""Writes pytorch.json: what PyTorch makes of models that parity.json does not have.

    python3 tests/truth/fixtures.py > tests/truth/pytorch.json

All in f64. Inputs, first weights and steps are those of parity.json: element i of parameter p is 0.3 s(i, p) with
s(i, phase) = sin(0.7 i + 0.01 i^2 + phase); two batches in turns, 20 steps of AdamW, losses before each update.
"""
import json
import math

import torch
from torch import nn
from torch.nn import functional as F

B, T, D, H, C = 4, 8, 16, 12, 3
LENGTHS = [[8, 5, 3, 1], [2, 8, 6, 7]]
LABELS = [[0, 1, 2, 1], [2, 0, 1, 2]]
STEPS = 20


def chirp(count, phase):
    i = torch.arange(count, dtype=torch.float64)
    return torch.sin(0.7 * i + 0.01 * i * i + phase)


def batch(k):
    x = torch.stack([chirp(10**6, 0)[((k * 4 + b) * T) * D:((k * 4 + b) * T + T) * D].view(T, D) for b in range(B)])
    lengths = torch.tensor(LENGTHS[k])
    mask = torch.arange(T) < lengths.unsqueeze(1)
    return x * mask.unsqueeze(2), mask, lengths, torch.tensor(LABELS[k])


class Mean(nn.Module):
    def __init__(self, outputs, hidden=None):
        super().__init__()
        if hidden is None:
            self.out = nn.Linear(D, outputs)
        else:
            self.l1, self.l2 = nn.Linear(D, hidden), nn.Linear(hidden, outputs)

    def forward(self, x, mask, lengths):
        mean = x.sum(1) / lengths.unsqueeze(1)
        return self.out(mean) if hasattr(self, "out") else self.l2(F.relu(self.l1(mean)))


class Cnn(nn.Module):
    def __init__(self, outputs, widths):
        super().__init__()
        convolution = {str(w): nn.Conv1d(D, H, w, padding="same") for w in widths}
        self.conv = nn.ModuleDict(convolution) if len(widths) > 1 else convolution[str(widths[0])]
        self.out = nn.Linear(H * len(widths), outputs)

    def forward(self, x, mask, lengths):
        each = self.conv.values() if isinstance(self.conv, nn.ModuleDict) else [self.conv]
        features = [F.relu(c(x.transpose(1, 2))).masked_fill(~mask.unsqueeze(1), 0).amax(2) for c in each]
        return self.out(torch.cat(features, 1))


class Recurrent(nn.Module):
    def __init__(self, outputs, kind, bidirectional):
        super().__init__()
        self.rnn = kind(D, H, batch_first=True, bidirectional=bidirectional)
        self.out = nn.Linear(H * (1 + bidirectional), outputs)

    def forward(self, x, mask, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, last = self.rnn(packed)
        last = last[0] if isinstance(last, tuple) else last
        return self.out(torch.cat(list(last), 1))


class Attention(nn.Module):
    def __init__(self, outputs, heads, positions):
        super().__init__()
        self.__dict__["kind"] = positions
        setattr(self, "in", nn.Linear(D, H))
        self.attention = nn.MultiheadAttention(H, heads, batch_first=True)
        self.norm = nn.LayerNorm(H)
        if positions == "learned":
            self.positions = nn.Parameter(torch.zeros(T, H))
        self.out = nn.Linear(H, outputs)

    def forward(self, x, mask, lengths):
        e = getattr(self, "in")(x)
        if self.kind == "learned":
            e = e + self.positions
        elif self.kind == "sinusoidal":
            t, i = torch.arange(T, dtype=torch.float64).unsqueeze(1), torch.arange(0, H, 2, dtype=torch.float64)
            angle = t / 10_000 ** (i / H)
            e = e + torch.stack([angle.sin(), angle.cos()], 2).flatten(1)
        a, _ = self.attention(e, e, e, key_padding_mask=~mask, need_weights=False)
        y = self.norm(e + a) * mask.unsqueeze(2)
        return self.out(y.sum(1) / lengths.unsqueeze(1))


CASES = {
    "linear": ("linear", {}, lambda outputs: Mean(outputs)),
    "mlp that regresses": ("mlp", {"hidden": H}, lambda outputs: Mean(outputs, H)),
    "cnn": ("cnn", {"channels": H, "widths": [3]}, lambda outputs: Cnn(outputs, [3])),
    "cnn of four widths": ("cnn", {"channels": H, "widths": [1, 2, 4, 5]}, lambda outputs: Cnn(outputs, [1, 2, 4, 5])),
    "gru, bidirectional": ("gru", {"hidden": H, "bidirectional": True}, lambda o: Recurrent(o, nn.GRU, True)),
    "lstm": ("lstm", {"hidden": H}, lambda outputs: Recurrent(outputs, nn.LSTM, False)),
    "lstm, bidirectional, that regresses":
        ("lstm", {"hidden": H, "bidirectional": True}, lambda o: Recurrent(o, nn.LSTM, True)),
    "attention": ("attention", {"hidden": H, "heads": 3, "positions": "learned"}, lambda o: Attention(o, 3, "learned")),
    "attention, sinusoidal":
        ("attention", {"hidden": H, "heads": 2, "positions": "sinusoidal"}, lambda o: Attention(o, 2, "sinusoidal")),
    "attention without positions that regresses":
        ("attention", {"hidden": H, "heads": 4, "positions": "none"}, lambda o: Attention(o, 4, "none")),
}


RECIPE = {"label_smoothing": 0.1, "class_weights": [0.5, 1.0, 2.0], "clip_norm": 0.5, "warm_up": 4}


def cosine(done, warm_up=RECIPE["warm_up"]):
    if done < warm_up:
        return (done + 1) / warm_up
    return (1 + math.cos(math.pi * (done - warm_up) / (STEPS - warm_up))) / 2


def train(kind, values, build, regress, recipe=None):
    model = build(1 if regress else C).double()
    parameters = []
    for index, (name, parameter) in enumerate(model.named_parameters()):
        parameter.data = 0.3 * chirp(parameter.numel(), index).view(parameter.shape)
        parameters.append({"name": name, "shape": list(parameter.shape)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine if recipe else lambda done: 1.0)
    batches = [batch(k) for k in range(2)]

    def outputs_and_loss(k, recipe=None):
        x, mask, lengths, labels = batches[k]
        outputs = model(x, mask, lengths)
        if regress:
            # Numbers that stand for the classes.
            return outputs, F.mse_loss(outputs.squeeze(1), 0.75 * labels.double() - 1.0)
        if recipe:
            weights = torch.tensor(recipe["class_weights"]).double()
            return outputs, F.cross_entropy(outputs, labels, weights, label_smoothing=recipe["label_smoothing"])
        return outputs, F.cross_entropy(outputs, labels)

    first, losses = None, []
    for step in range(STEPS):
        outputs, loss = outputs_and_loss(step % 2, recipe)
        first = outputs.flatten().tolist() if first is None else first
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if recipe:
            nn.utils.clip_grad_norm_(model.parameters(), recipe["clip_norm"])
        optimizer.step()
        schedule.step()
    for parameter, (_, values_) in zip(parameters, model.named_parameters()):
        parameter["final_sum"] = round(values_.sum().item(), 7)
    rounded = lambda numbers: [round(number, 7) for number in numbers]  # noqa: E731
    after = [outputs_and_loss(k)[1].item() for k in range(2)]
    return {"kind": kind, "values": values, "regress": regress, "recipe": recipe, "parameters": parameters,
            "first_output": rounded(first), "losses": rounded(losses), "losses_after_20_steps": rounded(after)}


assert math.isclose(batch(0)[0].sum().item(), 8.2878849, abs_tol=1e-6)
cases = {name: train(kind, values, build, "regress" in name) for name, (kind, values, build) in CASES.items()}
# Weights, smoothing, clipping and a schedule together.
cases["mlp by a recipe"] = train("mlp", {"hidden": H}, lambda outputs: Mean(outputs, H), False, RECIPE)
# And one of parity.json's own, so that this program is known to do the same.
check = train("gru", {}, lambda outputs: Recurrent(outputs, nn.GRU, False), False)
assert abs(check["losses"][19] - json.load(open("tests/truth/parity.json"))["models"]["gru"]["losses"][19]) < 1e-7
print(json.dumps({"torch": torch.__version__, "models": cases}, indent=1))
