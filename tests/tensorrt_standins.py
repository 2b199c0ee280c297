"""Stand-ins for TensorRT's objects that accept nothing the real bindings would not.

The bindings write every method's signature into its documentation. A stand-in for a class answers a call only if the
real class has the method and the arguments fit a signature in number, name and type; its answer must have the type the
signature returns. Enumerations, loggers and profilers are NVIDIA's own.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NEEDS_LIBRARY = ("Builder", "Runtime", "OnnxParser")
"""Classes whose constructors ask TensorRT's libraries for an object."""

_BUFFER_SLOT = 160  # offset of tp_as_buffer in CPython's type objects on 64-bit machines
_PLAIN: Mapping[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, (int, float)),
    "object": lambda value: True,
    "None": lambda value: value is None,
    "typing.SupportsInt": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "typing.SupportsFloat": lambda value: isinstance(value, (int, float)),
    "typing_extensions.Buffer": lambda value: isinstance(value, (bytes, bytearray, memoryview)),
    "tuple": lambda value: isinstance(value, tuple),
    "list": lambda value: isinstance(value, list),
}
_DEFAULTS = {"bool": True, "int": 0, "str": "", "None": None}


class ContractError(Exception):
    """The backend uses TensorRT in a way the real bindings do not allow. Not an error the backend may catch."""


class Signature:
    """One overload: argument names, types and defaults without ``self``, and the type returned."""

    def __init__(self, arguments: str, returns: str) -> None:
        self.arguments = [_argument(text) for text in _split(arguments)][1:]
        self.returns = _plain_name(returns)

    def problem(self, trt: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Why a call does not fit; None if it does."""
        names = [name for name, _, _ in self.arguments]
        if len(args) > len(names):
            return f"takes {len(names)} arguments, found {len(args)}"
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in names or name in given:
                return f"has no argument `{name}`, or two"
            given[name] = value
        for name, kind, has_default in self.arguments:
            if name not in given:
                if not has_default:
                    return f"lacks `{name}`"
            elif not fits(trt, given[name], kind):
                return f"wants {kind} as `{name}`, found {type(given[name]).__name__}"
        return None


def signatures(name: str, documentation: str | None) -> list[Signature]:
    """Every overload a documentation lists; properties' getters and setters have no name."""
    pattern = rf"^(?:\d+\. )?(?:{re.escape(name)})?\((.*)\) -> (.*)$"
    return [
        Signature(arguments, returns)
        for arguments, returns in re.findall(pattern, documentation or "", re.MULTILINE)
        if not arguments.startswith("*args")
    ]


def fits(trt: Any, value: Any, kind: str) -> bool:
    """Whether the bindings would take a value as an argument of this type."""
    if kind in _PLAIN:
        return _PLAIN[kind](value)
    expected = getattr(trt, kind, None)
    if expected is None:
        raise ContractError(f"the type {kind} of a signature is not known")
    return isinstance(value, expected) or (isinstance(value, StandIn) and issubclass(value._kind, expected))


class Recorder:
    """Answers of the device, and everything the backend asked: (class, member) in order."""

    def __init__(self, trt: Any, answers: Mapping[tuple[str, str], Any]) -> None:
        self.trt, self.answers = trt, dict(answers)
        self.asked: list[tuple[str, str]] = []

    def answer(self, owner: StandIn, member: str, returns: str, args: Sequence[Any] = ()) -> Any:
        """The device's answer, checked against the type returned; else something of that type."""
        kind = owner._kind.__name__
        self.asked.append((kind, member))
        if (kind, member) not in self.answers:
            if returns in _DEFAULTS:
                return _DEFAULTS[returns]
            return StandIn(self, getattr(self.trt, returns))
        value = self.answers[kind, member]
        value = value(owner, *args) if callable(value) else value
        if value is not None and not fits(self.trt, value, returns):
            raise ContractError(f"{kind}.{member} returns {returns}, and the stand-in gave {value!r}")
        return value


class StandIn:
    """An object of a class of the bindings, without TensorRT behind it. `_state` is the device's to use."""

    _OWN = ("_recorder", "_kind", "_state")

    def __init__(self, recorder: Recorder, kind: type) -> None:
        for name, value in zip(self._OWN, (recorder, kind, {}), strict=True):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        member = _member(self._kind, name)
        if isinstance(member, property):
            (signature,) = signatures("", member.fget.__doc__)
            return self._recorder.answer(self, name, signature.returns)
        return lambda *args, **kwargs: self._call(name, member, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        member = _member(self._kind, name)
        if not isinstance(member, property) or member.fset is None:
            raise ContractError(f"{self._kind.__name__}.{name} cannot be set")
        (signature,) = signatures("", member.fset.__doc__)
        if problem := signature.problem(self._recorder.trt, [value], {}):
            raise ContractError(f"{self._kind.__name__}.{name} {problem}")
        self._recorder.asked.append((self._kind.__name__, f"{name}="))
        self._state[name] = value

    def __bytes__(self) -> bytes:
        slot = ctypes.c_void_p.from_address(id(self._kind) + _BUFFER_SLOT).value
        if not slot or not ctypes.c_void_p.from_address(slot).value:
            raise ContractError(f"{self._kind.__name__} gives no bytes")
        self._recorder.asked.append((self._kind.__name__, "bytes"))
        return self._state["bytes"]

    def _call(self, name: str, member: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        overloads = signatures(name, member.__doc__)
        problems = [overload.problem(self._recorder.trt, args, kwargs) for overload in overloads]
        if not overloads or all(problems):
            raise ContractError(f"{self._kind.__name__}.{name} {'; '.join(filter(None, problems))}")
        self._state[name] = (*self._state.get(name, ()), (*args, *kwargs.values()))
        return self._recorder.answer(self, name, overloads[problems.index(None)].returns, (*args, *kwargs.values()))


class Package:
    """The module ``tensorrt``: the real one, but for the classes whose constructors need the libraries."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system
            return getattr(self._recorder.trt, name)
        real = getattr(self._recorder.trt, name, None)
        if real is None:
            raise ContractError(f"tensorrt {self._recorder.trt.__version__} has no {name}")
        self._recorder.asked.append(("tensorrt", name))
        if name in NEEDS_LIBRARY:
            return self._factory(name, real)
        return _Enumeration(self._recorder, real) if hasattr(real, "__members__") else real

    def _factory(self, name: str, real: type) -> Any:
        def create(*args: Any, **kwargs: Any) -> StandIn:
            (signature,) = signatures("__init__", real.__init__.__doc__)
            if problem := signature.problem(self._recorder.trt, args, kwargs):
                raise ContractError(f"{name} {problem}")
            made = StandIn(self._recorder, real)
            made._state["__init__"] = args
            return made

        create.__name__ = name
        return create


class _Enumeration:
    """A real enumeration whose members are noted as they are used."""

    def __init__(self, recorder: Recorder, real: Any) -> None:
        self._recorder, self._real = recorder, real

    def __getattr__(self, name: str) -> Any:
        if name not in self._real.__members__:
            raise ContractError(f"{self._real.__name__} has no member {name}")
        self._recorder.asked.append((self._real.__name__, name))
        return self._real.__members__[name]


def _member(kind: type, name: str) -> Any:
    if name.startswith("__") or not hasattr(kind, name):
        raise ContractError(f"{kind.__name__} has no {name}")
    return getattr(kind, name)


def _argument(text: str) -> tuple[str, str, bool]:
    name, _, rest = text.partition(":")
    kind, _, default = rest.partition(" = ")
    return name.strip(), _plain_name(kind), bool(default)


def _plain_name(kind: str) -> str:
    """The name in the bindings; where a signature gives the C++ one, that without its namespace."""
    return re.sub(r"^tensorrt\.tensorrt\.|^nvinfer1::|^nvonnxparser::I?", "", kind.strip())


def _split(arguments: str) -> list[str]:
    """Arguments at the outermost level of brackets."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
