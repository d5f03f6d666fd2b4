"""Writes a policy as one C99 file and a header: no allocation, no library but math.h, no state of its own.

Every group has a function that takes an agent's number, its observation, and where they exist its memory and the
choices it may make. Weights are float32, or int8 with a step for each row (`networks.quantised`); sums are float32.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.deploy.c_code.functions import FUNCTIONS, MAIN, OF_GROUP, READ_MASK
from agents.deploy.c_code.networks import Operation, operations, quantised
from agents.models.actor import Actor
from agents.models.heads import Categorical, ClippedNormal, TanhNormal
from agents.models.policy_heads.exploring import Deterministic, EpsilonGreedy
from agents.models.policy_heads.hybrid import Hybrid
from agents.policies.policy import Policy
from envs.spec import GroupSpec
from marl.core.errors import UserError

Weights = Literal["float32", "int8"]
ABSENT = "-1e30f"  # the logit of a choice that is not allowed


@dataclass
class Group:
    """What callers of a group's function see. kind: the C type of an action's numbers."""

    name: str
    agents: int
    features: int
    actions: int
    kind: str
    memory: int = 0
    choices: int = 0  # sum(nvec) where they are masked

    @property
    def upper(self) -> str:
        return f"POLICY_{self.name.upper()}"

    @property
    def signature(self) -> str:
        """The function."""
        parts = ["int agent", "const float *observation"]
        parts += ["float *memory"] if self.memory else []
        parts += ["const unsigned char *allowed"] if self.choices else []
        return f"void policy_{self.name}({', '.join([*parts, f'{self.kind} *action'])})"


class CWriter:
    """The C file and the header of a policy.

    Raises UserError for networks, heads and names of groups that can't be written.
    """

    def __init__(self, policy: Policy, weights: Weights = "float32") -> None:
        self.weights: Weights = weights
        self.used: set[str] = set()
        self.tables: list[str] = []
        self.bodies: list[str] = []
        self.groups = [self._group(policy.spec.groups[name], actor) for name, actor in policy.actors.items()]
        names = [group.upper for group in self.groups]  # which macros begin with
        if len(set(names)) < len(names):
            raise UserError(f"format=c: the names of groups are the same in C: {', '.join(policy.actors)}")

    def source(self, comment: str) -> str:
        """policy.c."""
        head = [f"/* {comment} */", '#include "policy.h"', "", "#include <math.h>", ""]
        functions = ["\n" + text.strip() for name, text in FUNCTIONS.items() if name in self.used]
        return "\n".join([*head, *self.tables, *functions, *self.bodies, self._main()])

    def header(self, comment: str) -> str:
        """policy.h."""
        lines = [f"/* {comment} */", "#ifndef POLICY_H", "#define POLICY_H", "", "#ifdef __cplusplus"]
        lines += ['extern "C" {', "#endif", ""]
        for group in self.groups:
            lines += [
                f"#define {group.upper}_AGENTS {group.agents}",
                f"#define {group.upper}_FEATURES {group.features} /* numbers of an observation */",
                f"#define {group.upper}_ACTIONS {group.actions} /* numbers of an action */",
            ]
            says = [f"What agent 0 to {group.agents - 1} does where it sees `observation`, in the environment's units."]
            if group.memory:
                lines += [f"#define {group.upper}_MEMORY {group.memory} /* numbers that an agent remembers */"]
                says += ["`memory` is the agent's own: zeros at an episode's beginning, and written to."]
            if group.choices:
                lines += [f"#define {group.upper}_CHOICES {group.choices} /* of all its actions together */"]
                says += ["`allowed` is 0 for each choice that is forbidden; a null pointer allows all."]
            lines += [f"/* {' '.join(says)} */", f"{group.signature};", ""]
        return "\n".join([*lines, "#ifdef __cplusplus", "}", "#endif", "", "#endif", ""])

    def _group(self, spec: GroupSpec, actor: Actor) -> Group:
        head = actor.head
        continuous = head.continuous if isinstance(head, Hybrid) else head
        if type(continuous) not in (TanhNormal, ClippedNormal, Categorical, EpsilonGreedy, Deterministic):
            raise UserError(f"format=c: the head {type(head).__name__} can't be written as C")
        if "action" in actor.masks and not spec.action.nvec:
            raise UserError(f"format=c: group {spec.name}: masks of continuous actions can't be written as C")
        numbers = head.n_continuous  # of an action, before its choices
        width = continuous.n_features if numbers else 0
        rows = [*range(numbers), *range(width, head.n_features)]
        memory = actor.memory_shape[1] if actor.memory_shape else 0
        masked = sum(spec.action.nvec) if "action" in actor.masks else 0
        name = c_name(spec.name)
        own = f"of_{name}"  # what the names of its tables and networks begin with
        kind = "float" if numbers else "int"
        group = Group(name, spec.n_agents, spec.observation_size, head.raw_size, kind, memory, masked)
        inputs = actor.inputs
        calls = []
        for i, network in enumerate(actor.network.networks):
            self._network(f"{own}_{i}", operations(network, rows), inputs.size, memory)
            calls.append(f"{own}_{i}(x, {'memory, ' if memory else ''}y);")
        body = ["", group.signature, "{", f"    float x[{inputs.size}], y[{len(rows)}];"]
        body += self._inputs(own, actor, group)
        if len(calls) == 1:
            body.append(f"    {calls[0]}")
        else:
            body += ["    switch (agent) {"]
            for i, call in enumerate(calls[:-1]):
                body += [f"    case {i}:", f"        {call}", "        break;"]
            body += ["    default:", f"        {calls[-1]}", "        break;", "    }"]
        body += self._head(own, continuous, group, numbers, tuple(spec.action.nvec), len(rows))
        uses_agent = any(re.search(r"\bagent\b", line) for line in body[4:])
        body += [] if uses_agent else ["    (void)agent;"]
        self.bodies += [*body, "}"]
        return group

    def _inputs(self, name: str, actor: Actor, group: Group) -> list[str]:
        inputs, n = actor.inputs, group.features
        term, after = "observation[i]", ""
        if inputs.norm is not None:
            scale, shift = (self._table(f"{name}_{key}", getattr(inputs.norm, key)) for key in ("scale", "shift"))
            term = f"{term} * {scale}[i] + {shift}[i]"
            limits = getattr(inputs.norm, "limits", None)
            limit = (
                literal(float(inputs.norm.limit)) if limits is None else f"{self._table(f'{name}_limit', limits)}[i]"
            )
            self.used.add("clip")
            term = f"clip({term}, -{limit}, {limit})"
        if inputs.units is not None:
            term = f"{term} / {self._table(f'{name}_unit', inputs.units)}[i]"
        lines = [f"    for (int i = 0; i < {n}; i++)", f"        x[i] = {term};{after}"]
        if inputs.ids is not None:
            lines += [
                f"    for (int i = 0; i < {group.agents}; i++)",
                f"        x[{n} + i] = i == agent ? 1.0f : 0.0f;",
            ]
        return lines

    def _network(self, name: str, steps: Sequence[Operation], size: int, memory: int) -> None:
        """A function that computes y from x; the memory is the cells' h, then their c."""
        cells = [step for step in steps if step.kind in ("gru", "lstm")]
        widest = max([step.size for step in steps[:-1] if step.kind == "linear"], default=0)
        gates = max([len(cell.tensors["bias_ih"]) for cell in cells], default=0)
        lines = ["", f"static void {name}(const float *x, {'float *memory, ' if memory else ''}float *y)", "{"]
        buffers = min(2, sum(step.kind == "linear" for step in steps[:-1]))
        arrays = [f"{buffer}[{widest}]" for buffer in "ab"[:buffers]] + [f"{g}[{gates}]" for g in "pq" if gates]
        lines += [f"    float {', '.join(arrays)};"] if arrays else []
        here, cell = "x", 0
        for i, step in enumerate(steps):
            table, last = f"{name}_{i}", i == len(steps) - 1
            if step.kind == "linear":
                target = "y" if last else "b" if here == "a" else "a"
                lines.append(self._linear(table, step.tensors["weight"], step.tensors["bias"], here, target))
                here = target
            elif step.kind in ("gru", "lstm"):
                h = f"memory + {cell * step.size}"
                for kind, source, target in (("ih", here, "p"), ("hh", h, "q")):
                    weight, bias = step.tensors[f"weight_{kind}"], step.tensors[f"bias_{kind}"]
                    lines.append(self._linear(f"{table}_{kind}", weight, bias, source, target))
                c = f", memory + {(len(cells) + cell) * step.size}" if step.kind == "lstm" else ""
                lines.append(f"    {step.kind}(p, q, {h}{c}, {step.size});")
                self.used |= {step.kind, "sigmoid"}
                here, cell = h, cell + 1
            elif step.tensors:
                numbers = [self._table(f"{table}_{key}", value) for key, value in step.tensors.items()]
                numbers += [literal(step.eps)] if step.kind == "layer_norm" else []
                lines.append(f"    {step.kind}({', '.join([*numbers, here, str(step.size)])});")
                self.used.add(step.kind)
            else:
                lines.append(f"    {step.kind}_all({here}, {step.size});")
                self.used.add(f"{step.kind}_all")
        self.bodies += [*lines, "}"]

    def _linear(self, name: str, weight: Tensor, bias: Tensor | None, source: str, target: str) -> str:
        rows, columns = weight.shape
        arguments = []
        if self.weights == "int8":
            steps, scale = quantised(weight)
            arguments += [self._table(f"{name}_weight", steps), self._table(f"{name}_step", scale)]
        else:
            arguments += [self._table(f"{name}_weight", weight)]
        arguments.append("0" if bias is None else self._table(f"{name}_bias", bias))
        function = "linear8" if self.weights == "int8" else "linear"
        self.used.add(function)
        return f"    {function}({', '.join([*arguments, str(rows), str(columns), source, target])});"

    def _head(
        self, name: str, head: object, group: Group, numbers: int, nvec: tuple[int, ...], outputs: int
    ) -> list[str]:
        """From the network's outputs y to the action: its numbers, then its choices."""
        lines = []
        if numbers:
            place = f"agent * {numbers} + i"
            shape = group.agents, numbers
            if isinstance(head, ClippedNormal):
                low, high = (self._table(f"{name}_{k}", getattr(head, k).expand(shape)) for k in ("low", "high"))
                self.used.add("clip")
                value = f"clip(y[i], {low}[{place}], {high}[{place}])"
            else:
                centre, half = (
                    self._table(f"{name}_{k}", getattr(head, k).expand(shape)) for k in ("centre", "half_range")
                )
                value = f"{centre}[{place}] + {half}[{place}] * tanhf(y[i])"
            lines += [f"    for (int i = 0; i < {numbers}; i++)", f"        action[i] = {value};"]
        if group.choices:
            lines += [
                f"    for (int i = {numbers}; allowed && i < {outputs}; i++)",
                f"        if (!allowed[i - {numbers}])" if numbers else "        if (!allowed[i])",
                f"            y[i] = {ABSENT};",
            ]
        at = numbers
        for i, n in enumerate(nvec):
            self.used.add("choice")
            lines.append(f"    action[{numbers + i}] = {'(float)' if numbers else ''}choice(y + {at}, {n});")
            at += n
        return lines

    def _table(self, name: str, values: Tensor) -> str:
        """The name of an array with these numbers."""
        small = values.dtype == torch.int8
        words = [str(x) if small else literal(x) for x in values.detach().flatten().tolist()]
        lines, line = [], "   "
        for word in words:
            if len(line) + len(word) + 2 > 118:
                lines.append(line)
                line = "   "
            line += f" {word},"
        kind = "signed char" if small else "float"
        self.tables += [f"static const {kind} {name}[{len(words)}] = {{", *lines, line, "};"]
        return name

    def _main(self) -> str:
        memory, groups = [], []
        for g in self.groups:
            arguments = ["agent", "observation"] + ([f"{g.name}_memory[agent]"] if g.memory else [])
            arguments += (["allowed"] if g.choices else []) + ["action"]
            if g.memory:
                memory.append(f"    static float {g.name}_memory[{g.agents}][{g.memory}];\n")
            words = {
                "AGENTS": f"{g.upper}_AGENTS",
                "FEATURES": f"{g.upper}_FEATURES",
                "ACTIONS": f"{g.upper}_ACTIONS",
                "CHOICES": f"{g.upper}_CHOICES",
                "KIND": g.kind,
                "CALL": f"policy_{g.name}({', '.join(arguments)});",
                "FORMAT": "%d" if g.kind == "int" else "%.9g",
                "PRINTED": "action[i]" if g.kind == "int" else "(double)action[i]",
            }
            words["MASK"] = filled(READ_MASK, words) if g.choices else ""
            groups.append(filled(OF_GROUP, words))
        return filled(MAIN, {"MEMORY": "".join(memory), "GROUPS": "".join(groups)})


def filled(template: str, words: Mapping[str, str]) -> str:
    """A template with each `@NAME@` replaced, in one pass: a word may look like another's name."""
    return re.sub(r"@(\w+)@", lambda found: words[found[1]], template)


def c_name(group: str) -> str:
    """A group's name where C allows letters, digits and underscores."""
    return re.sub(r"\W", "_", group, flags=re.ASCII)


def literal(value: float) -> str:
    """A float32 as C writes it; nine digits give back every bit."""
    if value != value:
        return "NAN"
    if abs(value) == float("inf"):
        return "INFINITY" if value > 0 else "-INFINITY"
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"
