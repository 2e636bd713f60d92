"""A library that stands in for CuPy where there is no GPU: NumPy's numbers under CuPy's rules.

Hand it to minifit as `xp`. What on a GPU would fail, copy in silence or wait then fails, or is noted, on a laptop:

- `asarray` and `.get()` are the only doors between host and device. CuPy has a few more (a host array as an index or
  assigned to all of an array, a NumPy function that hands over to CuPy), each a hidden copy; here they are TypeErrors.
- Python and NumPy scalars are welcome, as in CuPy. Lists are not.
- Only the names and arguments in the tables below exist. CuPy 13 and 14 have them, which test_cupy.py verifies. What
  stands after a * is passed by name only: CuPy has other arguments between it and those before the *.
- A reduction gives a 0-d array. Whatever makes the host wait for the device is noted in SYNCHRONISATIONS.
- Nobody iterates over an array. An index out of range raises; on the device it would wrap around.
- Kernels are compiled for the host, by its C++ compiler, c++. A test that needs one is skipped where there is none.
"""

import ctypes
import subprocess
import tempfile
from collections import namedtuple
from functools import cache
from pathlib import Path
from shutil import which
from types import SimpleNamespace

import numpy
import pytest

SYNCHRONISATIONS = []  # what made the host wait, in order: "float", "bool", "get", "mask" ...

# Elementwise, of arrays and scalars, with these named arguments and no where=.
UFUNCS = """
    abs absolute add ceil divide equal exp expm1 floor greater greater_equal invert isfinite isinf isnan less
    less_equal log log1p logical_and logical_not logical_or maximum minimum multiply negative not_equal power
    reciprocal sign sqrt square subtract tanh true_divide
"""
UFUNC_NAMED = "out dtype casting"

FUNCTIONS = {
    "broadcast_to": "array shape",
    "concatenate": "tup axis out",
    "copyto": "dst src casting where",
    "dot": "a b out",
    "empty_like": "prototype dtype order * shape",
    "expand_dims": "a axis",
    "matmul": "a b * out",
    "max": "a axis out keepdims",
    "moveaxis": "a source destination",
    "ones_like": "a dtype order",
    "stack": "tup axis out",
    "sum": "a axis dtype out keepdims",
    "take": "a indices axis out",
    "tensordot": "a b axes",
    "where": "condition x y",
    "zeros_like": "a dtype order * shape",
}
CREATIONS = {
    "arange": "start stop step dtype",
    "empty": "shape dtype order",
    "full": "shape fill_value dtype order",
    "ones": "shape dtype order",
    "zeros": "shape dtype order",
}
STRIDE_TRICKS = {"as_strided": "x shape strides", "sliding_window_view": "x window_shape axis"}
EINSUM_NAMED = "dtype optimize"
METHODS = {
    "all": "axis out keepdims",
    "any": "axis out keepdims",
    "argmax": "axis out * keepdims",
    "argmin": "axis out * keepdims",
    "astype": "dtype order * copy",
    "clip": "min max out",
    "copy": "order",
    "dot": "b out",
    "fill": "value",
    "flatten": "order",
    "max": "axis out keepdims",
    "mean": "axis dtype out keepdims",
    "min": "axis out keepdims",
    "prod": "axis dtype out keepdims",
    "ravel": "order",
    "repeat": "repeats axis",
    "reshape": "shape * order",  # the shape one tuple or several integers
    "squeeze": "axis",
    "std": "axis dtype out ddof keepdims",
    "sum": "axis dtype out keepdims",
    "swapaxes": "axis1 axis2",
    "take": "indices axis out",
    "transpose": "axes",
    "var": "axis dtype out ddof keepdims",
    "view": "dtype",
}
UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}
COMPARISONS = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}
OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
}


Flags = namedtuple("Flags", "c_contiguous f_contiguous owndata")  # on a device nothing is read-only


class ndarray:
    """An array on a device that is not there."""

    __slots__ = ("_memory",)
    __hash__ = None
    __array_ufunc__ = None  # a host array's operator gives way to the reflected one here, which refuses

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion to a NumPy array is not allowed: .get() does it explicitly")

    def __array_function__(self, function, *args):
        raise TypeError(f"numpy.{function.__name__} was given a device array: ask the library that array_module names")

    def __iter__(self):
        raise TypeError("iteration over a device array: every step is a launch of its own")

    def __len__(self):
        return len(self._memory)

    def __getitem__(self, index):
        index = _index(index)
        if not any(i is ... for i in index):
            index = (*index, ...)  # so that a single element is an array too, and a view
        return _device(self._memory[index])

    def __setitem__(self, index, value):
        self._memory[_index(index)] = _operand(value)

    def __float__(self):
        return float(self._wait("float"))

    def __int__(self):
        return int(self._wait("int"))

    def __bool__(self):
        return bool(self._wait("bool"))

    def __str__(self):
        return str(self._wait("str"))

    def __format__(self, specification):
        return format(self._wait("format")[()], specification)

    def __repr__(self):
        return f"strict.{self._memory!r}"

    shape = property(lambda self: self._memory.shape)
    dtype = property(lambda self: self._memory.dtype)
    ndim = property(lambda self: self._memory.ndim)
    size = property(lambda self: self._memory.size)
    itemsize = property(lambda self: self._memory.itemsize)
    nbytes = property(lambda self: self._memory.nbytes)
    strides = property(lambda self: self._memory.strides)
    T = property(lambda self: _device(self._memory.T))

    @property
    def flags(self):
        return Flags(*(getattr(self._memory.flags, name) for name in Flags._fields))

    def get(self):
        return self._wait("get").copy()

    def item(self):
        return self._wait("item").item()

    def tolist(self):
        return self._wait("tolist").tolist()

    def _wait(self, what):
        SYNCHRONISATIONS.append(what)
        return self._memory


def asarray(a, dtype=None):
    """To the device; the array itself where it is there."""
    if isinstance(a, ndarray):
        return a if dtype is None else a.astype(dtype, copy=False)
    return _device(numpy.array(a, dtype))


def ascontiguousarray(a, dtype=None):
    return _device(numpy.ascontiguousarray(_array(a), dtype))


def asnumpy(a):
    return a.get()


def einsum(subscripts, *operands, **named):
    _check("einsum", EINSUM_NAMED, named)
    return _call(numpy.einsum, subscripts, *map(_array, operands), **named)


def __getattr__(name):
    raise AttributeError(f"strict has no {name}: CuPy has none, or it is not yet in the tables of tests/strict.py")


def _device(result):
    """An array or a NumPy scalar, on the device: CuPy has no scalars of its own, only 0-d arrays."""
    if result.dtype.char not in "?bBhHiIlLqQefdFD":
        raise ValueError(f"unsupported dtype {result.dtype}")
    a = ndarray()
    a._memory = result if isinstance(result, numpy.ndarray) else numpy.array(result)
    return a


def _array(value):
    if isinstance(value, ndarray):
        return value._memory
    raise TypeError(f"unsupported type {type(value)}: a device array is needed")


def _operand(value):
    """What an elementwise function takes: a device array or a scalar."""
    if isinstance(value, ndarray):
        return value._memory
    if isinstance(value, (int, float, complex, numpy.number, numpy.bool)):
        return value
    raise TypeError(f"unsupported type {type(value)}: a device array or a scalar is needed")


def _setting(value):
    """What is no array: a shape, an axis, a dtype, a name, a number."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_setting, value))
    if value is None or isinstance(value, (str, type, numpy.dtype, int, float, complex, numpy.number, numpy.bool)):
        return value
    raise TypeError(f"unsupported type {type(value)}: an argument that lives on the host is needed")


def _argument(value):
    """A device array, several to be joined, or a setting."""
    if isinstance(value, (list, tuple)):
        return [_argument(v) for v in value]
    return value._memory if isinstance(value, ndarray) else _setting(value)


def _index(index):
    return tuple(map(_one_index, index if isinstance(index, tuple) else (index,)))


def _one_index(i):
    if i is None or i is Ellipsis:
        return i
    if isinstance(i, slice):
        return slice(*(None if end is None else _integer(end) for end in (i.start, i.stop, i.step)))
    if not isinstance(i, ndarray):
        return _integer(i)
    if i.dtype.kind == "b":
        SYNCHRONISATIONS.append("mask")  # CuPy counts what is true, even to assign one scalar to it
    elif i.dtype.kind not in "iu":
        raise IndexError(f"an array that indexes must be of integers or booleans, not of {i.dtype}")
    return i._memory


def _integer(i):
    if isinstance(i, (int, numpy.integer)) and not isinstance(i, bool):
        return i
    raise TypeError(f"unsupported index of {type(i)}: an integer, a slice or a device array is needed")


def arguments(allowed):
    """Of a row of a table: (the arguments that may be passed by position, in order; those by name only)."""
    by_position, _, by_name = allowed.partition("*")
    return by_position.split(), by_name.split()


def _check(name, allowed, named, positional=0):
    by_position, by_name = arguments(allowed)
    if positional > len(by_position) or not set(named) <= {*by_position, *by_name}:
        raise TypeError(f"{name} takes {allowed}; not {', '.join(named) or f'{positional} arguments by position'}")


def _call(function, *args, **named):
    """A NumPy function on memory; what it wrote to `out` is given back as the array that it is."""
    out = named.get("out")
    named = {k: _array(v) if k in ("out", "where") else _setting(v) for k, v in named.items() if v is not None}
    result = function(*args, **named)
    return out if out is not None or result is None else _device(result)


def _function(name, allowed, take=_argument, home=numpy):
    function = getattr(home, name)

    def call(*args, **named):
        _check(name, allowed, named, len(args))
        return _call(function, *map(take, args), **named)

    return call


def _ufunc(name):
    function = getattr(numpy, name)

    def call(*args, **named):
        _check(name, UFUNC_NAMED, named)
        if len(args) != function.nin:
            raise TypeError(f"{name} takes {function.nin} arrays, not {len(args)}")
        return _call(function, *map(_operand, args), **named)

    return call


def _method(name, allowed):
    take = _argument if name in ("clip", "dot", "take") else _setting

    def call(self, *args, **named):
        _check(name, allowed, named, 1 if name in ("reshape", "transpose") else len(args))
        return _call(getattr(self._memory, name), *map(take, args), **named)

    return call


def _operator(name, reflected=False, in_place=False):
    function = getattr(numpy, name)

    def call(self, *other):
        operands = [self._memory, *map(_operand, other)]
        if in_place:
            function(*operands, out=self._memory)
            return self
        return _device(function(*reversed(operands) if reflected else operands))

    return call


# What a kernel finds in CUDA without asking. Headers of the host would take most of the time to compile.
CUDA = """
typedef __PTRDIFF_TYPE__ ptrdiff_t; typedef __SIZE_TYPE__ size_t;
template <class A> A min(A a, A b) { return b < a ? b : a; }
template <class A> A max(A a, A b) { return a < b ? b : a; }
inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline double sqrt(double x) { return __builtin_sqrt(x); }
struct Complex { double re, im; Complex(double x = 0) : re(x), im(0) {} };
"""


class ElementwiseKernel:
    """A loop over the elements of its outputs, which are always given. Indices of raw arrays are checked."""

    def __init__(self, in_params, out_params, operation, name="kernel"):
        if not which("c++"):
            pytest.skip("there is no C++ compiler, c++, for the kernels of the stand-in")
        split = [[p.split() for p in params.split(",")] for params in (in_params, out_params)]
        self.params = [(p[0] == "raw", *p[-2:]) for p in split[0] + split[1]]  # (raw, type, name)
        self.ins, self.operation, self.name = len(split[0]), operation, name

    def __call__(self, *args):
        if len(args) != len(self.params):
            raise TypeError(f"{self.name} takes {len(self.params)} arguments, outputs included, not {len(args)}")
        types, outs = {}, [_array(a) for a in args[self.ins :]]
        for (_, kind, name), a in zip(self.params, args, strict=True):
            if isinstance(a, ndarray):
                known = types.setdefault(kind, a.dtype) if len(kind) == 1 else numpy.dtype(kind)
                if known != a.dtype:
                    raise TypeError(f"Type is mismatched. {name} {a.dtype} {known}")
        ready = []
        for i, ((raw, kind, _), a) in enumerate(zip(self.params, args, strict=True)):
            if not isinstance(a, ndarray):
                ready.append(numpy.array(_operand(a), types[kind] if len(kind) == 1 else kind))
            elif raw:
                ready.append(numpy.ascontiguousarray(a._memory))
            elif i < self.ins:
                ready.append(numpy.ascontiguousarray(numpy.broadcast_to(a._memory, outs[0].shape)))
            else:
                ready.append(numpy.ascontiguousarray(a._memory))
                if a.shape != outs[0].shape:
                    raise ValueError("Out shape is mismatched")
        scalars = tuple(not isinstance(a, ndarray) for a in args)
        run = self._compiled(tuple(sorted((k, str(t)) for k, t in types.items())), scalars)
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in ready]
        if run(ctypes.c_ssize_t(outs[0].size), *pointers, *(ctypes.c_size_t(a.size) for a in ready)):
            raise IndexError(f"{self.name}: an index of a raw array is out of range")
        for out, a in zip(outs, ready[self.ins :], strict=True):
            out[...] = a
        return args[self.ins] if len(outs) == 1 else tuple(args[self.ins :])

    @cache  # noqa: B019  kernels live as long as the module that made them
    def _compiled(self, types, scalars):
        names = {"complex128": "Complex", "float32": "float", "float64": "double", "int32": "int"}
        names |= {"uint16": "unsigned short", "uint8": "unsigned char", "uint64": "unsigned long long"}
        lines = [CUDA, "template <class A> struct Raw { A *a; size_t n; bool *wrong;"]
        lines += ["A &operator[](size_t i) const { if (i < n) return a[i]; *wrong = true; return a[0]; } };"]
        lines += [f"typedef {names[t]} {k};" for k, t in types]
        pointers = ", ".join(f"void *p{j}" for j in range(len(self.params)))
        lines += [f'extern "C" int run(ptrdiff_t count, {pointers}, {pointers.replace("void *p", "size_t n")}) {{']
        lines += ["bool wrong = false;"]
        each = []
        for j, ((raw, kind, name), scalar) in enumerate(zip(self.params, scalars, strict=True)):
            kind = ("const " if j < self.ins else "") + names.get(kind, kind)
            if scalar:
                lines.append(f"{kind} {name} = *({kind} *)p{j};")
            elif raw:
                lines.append(f"const Raw<{kind}> {name} = {{({kind} *)p{j}, n{j}, &wrong}};")
            else:
                each.append(f"{kind} &{name} = (({kind} *)p{j})[i];")
        lines += ["for (ptrdiff_t i = 0; i < count; ++i) {", *each, self.operation, "}", "return wrong; }"]
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
            source.write_text("\n".join(lines))
            subprocess.run(["c++", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
            return ctypes.CDLL(library).run


for _name in UFUNCS.split():
    globals()[_name] = _ufunc(_name)
for _name, _allowed in FUNCTIONS.items():
    globals()[_name] = _function(_name, _allowed, _operand if _name in ("copyto", "where") else _argument)
for _name, _allowed in CREATIONS.items():
    globals()[_name] = _function(_name, _allowed, _setting)
for _name, _allowed in METHODS.items():
    setattr(ndarray, _name, _method(_name, _allowed))
for _name, _long in {**UNARY, **COMPARISONS, **OPERATORS, "matmul": "matmul"}.items():
    setattr(ndarray, f"__{_name}__", _operator(_long))
for _name, _long in {**OPERATORS, "matmul": "matmul"}.items():
    setattr(ndarray, f"__r{_name}__", _operator(_long, reflected=True))
for _name, _long in OPERATORS.items():  # there is no @= in CuPy
    setattr(ndarray, f"__i{_name}__", _operator(_long, in_place=True))
_tricks = {name: _function(name, allowed, home=numpy.lib.stride_tricks) for name, allowed in STRIDE_TRICKS.items()}
lib = SimpleNamespace(stride_tricks=SimpleNamespace(**_tricks))

bool_, int8, int32, int64, uint8 = numpy.bool_, numpy.int8, numpy.int32, numpy.int64, numpy.uint8
float16, float32, float64 = numpy.float16, numpy.float32, numpy.float64
inf, nan, newaxis, pi = numpy.inf, numpy.nan, None, numpy.pi

# What the record of a run asks of the device.
__version__ = "0"
cuda = SimpleNamespace(
    Device=lambda: SimpleNamespace(id=0),
    runtime=SimpleNamespace(getDeviceCount=lambda: 1, getDeviceProperties=lambda device: {"name": b"no device"}),
)
