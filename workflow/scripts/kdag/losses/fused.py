"""Cross-entropy plus divergence from hidden states, chunk by chunk, gradient included.

The logits [N, V] of student and teacher never exist as a whole. The heads turn a chunk of rows into
logits in two reused buffers; then, a few rows at a time so that the fp32 work stays in the cache,
logits become loss and gradient, which takes the place of the student's logits; then one product
brings the gradient back to the hidden states. The backward pass only scales it.
"""

import math

import torch

from kdag.losses import products
from kdag.losses.base import by_autograd, value_and_grad
from kdag.losses.cap import capped, slope
from kdag.losses.compiling import Compiled, wanted
from kdag.losses.sizes import BLOCK_ELEMENTS, CHUNK_ELEMENTS

IGNORE = -100


def distill_loss(
    student_hidden,
    student_head,
    teacher_hidden,
    teacher_head,
    targets,
    *,
    divergence,
    divergence_params,
    kl_weight,
    temperature,
    temperature_squared=True,
    use_ce=True,
    num_items=None,
    chunk_tokens=None,
    teacher_logits=None,
    student_cap=None,
    teacher_cap=None,
):
    """Sum over tokens of (1 - w) CE + w T^2 D, divided by num_items -> (loss, metrics).

    divergence: D, what `divergences.load` gave; None where kl_weight is 0.

    student_hidden [N, d_s], student_head [V, d_s], teacher_hidden [N, d_t], teacher_head [V, d_t],
    targets [N], already shifted: targets[i] is the token that row i predicts; rows of -100 are
    skipped. CE is at temperature 1, D compares the distributions at temperature T; T^2 only with
    `temperature_squared`. `use_ce=False` is T^2 D alone; kl_weight = 0 is CE alone and needs no
    teacher. `num_items` is the number of tokens of the whole effective batch, so that micro-batches
    add up; default: the tokens of this call. `chunk_tokens`: rows of logits held at a time; default
    by the size of the vocabulary. `teacher_logits`: where the teacher is stored in another form than
    its hidden states (teacher/storage.py), the function (stored rows, teacher_head) -> logits [n, V];
    `teacher_hidden` is then the dict of its stored tensors, the first dimension of each N.
    `student_cap`, `teacher_cap`: c, where a model's logits are c tanh(z / c) of the head's product z; the
    teacher's is applied to its hidden states alone, since other forms are stored under it.

    metrics: sums over this call's tokens, in nats, detached, without weights and T^2: `ce_sum`,
    `divergence_sum` (0 where not computed), and their number `tokens`.

    The products run in each head's dtype (or autocast's), everything else in fp32. No gradient
    reaches the teacher; the student head's is computed where it requires one.
    """
    ce_weight, kl_weight = (1 - kl_weight, kl_weight) if use_ce else (0.0, 1.0)
    if not 0 <= kl_weight <= 1:
        raise ValueError(f"kl_weight = {kl_weight} is outside [0, 1]")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} is not positive")
    check_shapes("student", student_hidden, student_head, targets)
    if kl_weight == 0:
        teacher_hidden = teacher_head = None
    elif teacher_hidden is None or teacher_head is None:
        raise ValueError("a divergence (kl_weight > 0 or use_ce=False) needs a teacher")
    else:
        if teacher_logits is None:
            check_shapes("teacher", teacher_hidden, teacher_head, targets)
        elif any(len(tensor) != len(targets) for tensor in teacher_hidden.values()):
            lengths = {name: len(tensor) for name, tensor in teacher_hidden.items()}
            raise ValueError(f"the stored teacher's tensors {lengths} must have {len(targets)} rows")
        if len(student_head) != len(teacher_head):
            raise ValueError(
                f"student head has {len(student_head)} rows, teacher head {len(teacher_head)}: "
                "cut both to the tokenizer's length"
            )

    rows = (targets != IGNORE).nonzero().squeeze(1)
    if len(rows) < len(targets):
        student_hidden, targets = student_hidden[rows], targets[rows]
        teacher_hidden = select(teacher_hidden, rows)
    settings = {
        "ce_weight": ce_weight,
        "kl_weight": kl_weight * (temperature**2 if temperature_squared else 1),
        "temperature": temperature if kl_weight else 1,
        "divergence": value_and_grad(divergence, divergence_params or {}) if kl_weight else None,
        "chunk_tokens": chunk_tokens or even_chunks(len(rows), len(student_head)),
        "with_grad": torch.is_grad_enabled(),
        "teacher_logits": teacher_logits,
        "student_cap": student_cap,
        "teacher_cap": None if teacher_logits else teacher_cap,
    }
    device = student_hidden.device.type
    student_hidden, student_head = same_dtype(student_hidden, student_head)
    if teacher_hidden is not None and teacher_logits is None:
        teacher_hidden, teacher_head = same_dtype(teacher_hidden.detach(), teacher_head.detach())
    with torch.autocast(device, enabled=False):
        loss, ce_sum, divergence_sum = FusedDistillation.apply(
            student_hidden, student_head, teacher_hidden, teacher_head, targets, settings
        )
    metrics = {"ce_sum": ce_sum, "divergence_sum": divergence_sum, "tokens": len(rows)}
    return loss / (max(len(rows), 1) if num_items is None else num_items), metrics


def select(stored, rows):
    """Rows of a tensor or of each of a dict of them; None of None."""
    if isinstance(stored, dict):
        return {name: tensor[rows] for name, tensor in stored.items()}
    return None if stored is None else stored[rows]


def check_shapes(side, hidden, head, targets):
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(
            f"{side}: hidden {list(hidden.shape)} and head {list(head.shape)} must be [N, d] and [V, d]"
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {list(targets.shape)} must be [N] of {side} hidden {list(hidden.shape)}")


def same_dtype(hidden, head):
    """Both in autocast's dtype where it is on, else in the head's."""
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else head.dtype
    return hidden.to(dtype), head.to(dtype)


def even_chunks(tokens, vocabulary):
    """Rows per chunk: at most CHUNK_ELEMENTS logits, all chunks about the same."""
    chunks = max(1, -(-tokens * vocabulary // CHUNK_ELEMENTS))
    return max(1, -(-tokens // chunks))


_scratch = {}


def scratch(name, shape, like, dtype=None):
    """An uninitialised tensor, the same memory at every call: fresh pages cost a fifth of it.

    One loss at a time, therefore; CUDA's allocator keeps its pages anyway.
    """
    dtype = dtype or like.dtype
    if like.device.type != "cpu":
        return products.aligned(shape, like, dtype)
    elements = math.prod(shape)
    held = _scratch.get((name, dtype))
    if held is None or len(held) < elements:
        held = _scratch[name, dtype] = torch.empty(elements, dtype=dtype)
    return held[:elements].view(shape)


class FusedDistillation(torch.autograd.Function):
    """Sums over tokens: weighted loss, CE, divergence; the loss's gradient is found on the way."""

    @staticmethod
    def forward(ctx, hidden, head, teacher_hidden, teacher_head, targets, settings):
        need_hidden = settings["with_grad"] and ctx.needs_input_grad[0]
        need_head = settings["with_grad"] and ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None  # over block.scale
        size = min(settings["chunk_tokens"], len(targets))
        logits = scratch("student", (size, len(head)), head)
        teacher_logits = None
        decode = settings["teacher_logits"]
        if teacher_head is not None and decode is None:
            teacher_logits = scratch("teacher", logits.shape, teacher_head)
        block = Block(logits, teacher_logits, settings)
        grad_head = torch.zeros_like(head, dtype=block.dtype) if need_head else None

        for start in range(0, len(targets), max(size, 1)):
            rows = slice(start, min(start + size, len(targets)))
            count = rows.stop - rows.start
            products.to_logits(hidden[rows], head, out=logits[:count])
            if teacher_head is not None and decode:
                block.teacher_logits = decode(select(teacher_hidden, rows), teacher_head)
            elif teacher_head is not None:
                products.to_logits(teacher_hidden[rows], teacher_head, out=teacher_logits[:count])
            block.run(targets[rows])
            if need_hidden:
                products.to_hidden(logits[:count], head, out=grad_hidden[rows])
            if need_head:
                out = scratch("head", head.shape, head)
                grad_head += products.to_head(logits[:count], hidden[rows], out=out)

        ctx.scale, ctx.head_dtype = block.scale, head.dtype
        ctx.save_for_backward(grad_hidden, grad_head)
        loss = settings["ce_weight"] * block.ce_sum + settings["kl_weight"] * block.divergence_sum
        ctx.mark_non_differentiable(block.ce_sum, block.divergence_sum)
        return loss, block.ce_sum, block.divergence_sum

    @staticmethod
    def backward(ctx, grad_loss, *_):
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grad_loss * ctx.scale
        if grad_hidden is not None:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        if grad_head is not None:
            grad_head = (grad_head * scale).to(ctx.head_dtype)
        return grad_hidden, grad_head, None, None, None, None


class Block:
    """From a chunk's logits to its loss and gradient.

    `run` leaves in `logits` the gradient of the loss with respect to them, divided by `scale`, and
    adds to `ce_sum` and `divergence_sum`. A few rows at a time, so that the work stays in a CPU's caches;
    on a GPU the whole chunk, compiled.
    """

    def __init__(self, logits, teacher_logits, settings):
        self.logits, self.teacher_logits = logits, teacher_logits
        temperature, divergence = settings["temperature"], settings["divergence"]
        kl_scale = settings["kl_weight"] / temperature
        self.scale = max(settings["ce_weight"], kl_scale)
        self.goal = {
            "temperature": temperature,
            "ce_factor": settings["ce_weight"] / self.scale,
            "kl_factor": kl_scale / self.scale,
            "cap": settings["student_cap"],
            "teacher_cap": settings["teacher_cap"],
        }
        # Apart, since what is compiled must be the same function in the next chunk.
        self.gradient, self.params = divergence or (None, {})
        self.dtype = torch.promote_types(logits.dtype, torch.float32)
        self.ce_sum = logits.new_zeros((), dtype=self.dtype)
        self.divergence_sum = logits.new_zeros((), dtype=self.dtype)
        compiles = wanted(logits.device) and self.gradient is not by_autograd
        compiles = compiles and compiled_block.takes(self.gradient, self.params, self.goal)
        self.function, self.buffers, self.rows = compiled_block, None, max(1, len(logits))
        if not compiles:
            elements = BLOCK_ELEMENTS.get(logits.device.type, 2**20)
            if logits.device.type == "cpu":
                elements *= torch.get_num_threads()
            self.rows = max(1, elements // logits.shape[1])
            shape = 5 + (self.goal["cap"] is not None), min(self.rows, len(logits)), logits.shape[1]
            self.function, self.buffers = run_block, scratch("block", shape, logits, self.dtype)

    def run(self, targets):
        for start in range(0, len(targets), self.rows):
            rows = slice(start, min(start + self.rows, len(targets)))
            teacher_logits = None if self.teacher_logits is None else self.teacher_logits[rows]
            # A copy: what is compiled is compiled again for tensors that begin within another.
            given = self.logits[rows], teacher_logits, targets[rows].unsqueeze(1).clone()
            settings = {"gradient": self.gradient, "params": self.params, "goal": self.goal}
            if self.buffers is not None:
                settings["buffers"] = self.buffers[:, : rows.stop - rows.start]
            ce_sum, divergence_sum = self.function(*given, **settings)
            self.ce_sum += ce_sum
            self.divergence_sum += divergence_sum


def run_block(logits, teacher_logits, targets, *, gradient, params, goal, buffers=None):
    """logits [n, V] become their gradient; targets [n, 1]. Returns the sums of CE and of the divergence.

    gradient, params: value_and_grad's; goal: Block's. buffers: five times [n, V], six under a cap, to be
    written over; without them the compiler finds room, and the logits serve as none.
    """
    temperature, ce_factor, kl_factor = goal["temperature"], goal["ce_factor"], goal["kl_factor"]
    cap, teacher_cap = goal["cap"], goal["teacher_cap"]
    in_place = buffers is not None
    if not in_place:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        buffers = [torch.empty_like(logits, dtype=dtype) for _ in range(5 + (cap is not None))]
    x, y, q, p, e, *slopes = buffers
    ce_sum = divergence_sum = 0
    if cap is not None:
        # In full precision, and not over the logits, which take the gradient in the end.
        logits, given = capped(x.copy_(logits), cap), logits
        slope(logits, cap, slopes[0])
    target_logits = logits.gather(1, targets).to(x.dtype)
    x, peak, log_sum = softmax(logits, temperature, x, q, in_place)
    untemper = bool(ce_factor) and temperature not in (1, 2)
    if untemper:
        torch.mul(x, temperature, out=e).exp_()
    grad = None
    if kl_factor:
        if teacher_cap is not None:
            teacher_logits = capped(y.copy_(teacher_logits), teacher_cap)
        y, _, teacher_log_sum = softmax(teacher_logits, temperature, y, p, in_place)
        value, grad = gradient(x, y, q, p, log_sum, teacher_log_sum, **params)
        divergence_sum = value.sum()
        if kl_factor != 1:
            grad.mul_(kl_factor)
    if ce_factor:
        if untemper:
            log_sum = 0
        elif temperature == 2:
            e, log_sum = q.square_(), 2 * log_sum
        else:
            e = q
        total = e.sum(-1, keepdim=True)
        ce_sum = (peak + log_sum + total.log() - target_logits).sum()
        factor = ce_factor / total
        grad = e.mul_(factor) if grad is None else grad.addcmul_(e, factor)
        grad.scatter_add_(1, targets, torch.full_like(target_logits, -ce_factor))
    if cap is not None:
        logits, grad = given, grad.mul_(slopes[0])
    if grad is not logits:
        logits.copy_(grad)
    return ce_sum, divergence_sum


compiled_block = Compiled(run_block)


def softmax(logits, temperature, x, q, in_place):
    """x = (logits - peak) / T, `in_place` of the logits where they are in fp32; q = softmax(x).

    Returns x, the peak and ln sum exp x, both [n, 1].
    """
    x = logits if in_place and logits.dtype == x.dtype else x.copy_(logits)
    peak = x.amax(-1, keepdim=True)
    torch.add(peak * (-1 / temperature), x, alpha=1 / temperature, out=x)
    total = torch.exp(x, out=q).sum(-1, keepdim=True)
    q.mul_(1 / total)
    return x, peak, total.log()
