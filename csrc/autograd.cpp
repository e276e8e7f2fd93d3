// One autograd node in C++ for every loss of rows: an operator that makes (loss, statistics), and one that makes
// gradients of them. It does what amkd_fast/ops/row_loss.py does in Python, for less than the kernels of a small call
// cost.
//
// A module of its own, as it is bound to the torch that it was compiled with. Nothing needs it.
#include <ATen/Context.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <deque>
#include <string>
#include <vector>

namespace amkd {
namespace {

using at::Tensor;
using c10::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Loss {
  c10::OperatorHandle forward, backward;
  std::vector<int64_t> own{};     // tensors whose gradients the backward operator makes, in its order
  std::string kinds{};            // of the numbers: float, int or bool, by their first letter
  size_t numbers = 0;             // how many of them the forward operator takes
  size_t tensors = 0;             // likewise
  size_t all_tensors = 0;         // with those that only `others` sees
  bool asks_determinism = false;  // the backward operator has torch's flag as its last number
  PyObject* others = nullptr;     // RowLoss.others of row_loss.py; lives as long as the process
};

std::deque<Loss> losses;  // only ever added to, under the GIL: what is in it stays where it is

// What a graph keeps of a call beside tensors: the loss's number, a bit for each tensor that is there, the call's
// numbers.
using Numbers = c10::intrusive_ptr<c10::ivalue::Tuple>;
constexpr size_t kAhead = 2;

const Loss& loss_of(const Numbers& numbers) { return losses[numbers->elements()[0].toInt()]; }

// Every tensor of the call in its place, from those that are there: autograd knows no absent ones in a list.
variable_list in_place(const Numbers& numbers, at::TensorList there) {
  const auto bits = numbers->elements()[1].toInt();
  variable_list all(loss_of(numbers).all_tensors);
  size_t next = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (bits >> i & 1) all[i] = there[next++];
  }
  return all;
}

void push_numbers(torch::jit::Stack& stack, const Numbers& numbers) {
  const auto begin = numbers->elements().begin() + kAhead;
  stack.insert(stack.end(), begin, begin + loss_of(numbers).numbers);
}

void push_tensors(torch::jit::Stack& stack, const Numbers& numbers, const variable_list& tensors) {
  for (size_t i = 0; i < loss_of(numbers).tensors; ++i) {
    stack.push_back(tensors[i].defined() ? IValue(tensors[i]) : IValue());
  }
}

// Tensors made under torch.inference_mode cannot be saved, and have no version that could tell of a change either.
bool cannot_be_saved(const Tensor& x) { return x.defined() && x.is_inference(); }

// Whether torch.func looks at the tensors.
bool is_transforming() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

PyObject* steal(PyObject* object) {
  if (object == nullptr) throw python_error();
  return object;
}

PyObject* number_to_python(const IValue& x) {
  if (x.isDouble()) return steal(PyFloat_FromDouble(x.toDouble()));
  if (x.isBool()) return steal(PyBool_FromLong(x.toBool()));
  return steal(PyLong_FromLongLong(x.toInt()));
}

IValue number_from_python(PyObject* x, char kind) {
  if (kind == 'f') {
    const double value = PyFloat_AsDouble(x);
    if (value == -1.0 && PyErr_Occurred()) throw python_error();
    return value;
  }
  const long long value = PyLong_AsLongLong(x);
  if (value == -1 && PyErr_Occurred()) throw python_error();
  return kind == 'b' ? IValue(value != 0) : IValue(static_cast<int64_t>(value));
}

// By others(grad_loss, tensors, stats, needed, numbers): gradients that are not the operator's, and all that are
// differentiated again.
void add_other_gradients(variable_list& found, const Loss& loss, const Tensor& grad_loss, const variable_list& tensors,
                         const Tensor& stats, const std::vector<bool>& needed, const Numbers& numbers) {
  pybind11::gil_scoped_acquire gil;
  const auto owned = [](PyObject* object) { return pybind11::reinterpret_steal<pybind11::object>(steal(object)); };
  const auto n = static_cast<Py_ssize_t>(tensors.size());
  auto given = owned(PyTuple_New(n)), asked = owned(PyTuple_New(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyTuple_SET_ITEM(given.ptr(), i, steal(THPVariable_Wrap(tensors[i])));
    PyTuple_SET_ITEM(asked.ptr(), i, PyBool_FromLong(needed[i]));
  }
  const auto& elements = numbers->elements();
  auto call = owned(PyTuple_New(static_cast<Py_ssize_t>(elements.size() - kAhead)));
  for (size_t i = kAhead; i < elements.size(); ++i) {
    PyTuple_SET_ITEM(call.ptr(), static_cast<Py_ssize_t>(i - kAhead), number_to_python(elements[i]));
  }
  auto grad = owned(THPVariable_Wrap(grad_loss)), left = owned(THPVariable_Wrap(stats));
  auto gradients = owned(
      PyObject_CallFunctionObjArgs(loss.others, grad.ptr(), given.ptr(), left.ptr(), asked.ptr(), call.ptr(), nullptr));
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* gradient = PyList_GetItem(gradients.ptr(), i);
    if (gradient == nullptr) throw python_error();
    if (gradient != Py_None) found[i] = THPVariable_Unpack(gradient);
  }
}

}  // namespace

// Its name is what PyTorch shows of a graph.
struct RowLoss : torch::autograd::Function<RowLoss> {
  static constexpr bool is_traceable = true;  // the backward pass reads what is saved and nothing else

  // The statistics go past autograd: nothing has a gradient through them.
  static Tensor forward(AutogradContext* ctx, const Numbers& numbers, Tensor* stats, at::TensorList tensors) {
    auto loss = run(numbers, stats, tensors);
    variable_list saved{*stats};
    saved.insert(saved.end(), tensors.begin(), tensors.end());
    for (auto& x : saved) {
      if (!cannot_be_saved(x)) continue;
      ctx->saved_data["unsaved"] = c10::fmap(saved, [](const Tensor& y) { return cannot_be_saved(y) ? y : Tensor(); });
      for (auto& y : saved) y = cannot_be_saved(y) ? Tensor() : y;
      break;
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["numbers"] = numbers;
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto numbers = ctx->saved_data.at("numbers").toTuple();
    auto saved = ctx->get_saved_variables();
    if (const auto unsaved = ctx->saved_data.find("unsaved"); unsaved != ctx->saved_data.end()) {
      const auto kept = unsaved->second.toTensorVector();
      for (size_t i = 0; i < saved.size(); ++i) saved[i] = kept[i].defined() ? kept[i] : saved[i];
    }
    const Tensor stats = saved.front();
    const auto tensors = in_place(numbers, at::TensorList(saved).slice(1));
    variable_list found(tensors.size());
    std::vector<bool> needed(tensors.size());
    for (size_t i = 0, next = 0; i < tensors.size(); ++i) {
      needed[i] = tensors[i].defined() && ctx->needs_input_grad(next++);
    }
    if (grads[0].defined()) add_gradients(found, needed, numbers, grads[0], tensors, stats);
    variable_list there(2);  // of the numbers and the statistics
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i].defined()) there.push_back(found[i]);
    }
    return there;
  }

  static void add_gradients(variable_list& found, std::vector<bool>& needed, const Numbers& numbers,
                            const Tensor& grad_loss, const variable_list& tensors, const Tensor& stats) {
    const Loss& loss = loss_of(numbers);
    bool by_operator = false;
    for (const auto i : loss.own) by_operator = by_operator || needed[i];
    // As backends.differentiates: of a gradient that is differentiated again, or of a batch of them, all is plain
    // PyTorch.
    const bool plain = at::GradMode::is_enabled() || is_transforming();
    if (by_operator && !plain) {
      torch::jit::Stack stack;
      stack.reserve(tensors.size() + loss.kinds.size() + 2);
      stack.emplace_back(grad_loss);
      push_tensors(stack, numbers, tensors);
      stack.emplace_back(stats);
      push_numbers(stack, numbers);
      if (loss.asks_determinism) stack.emplace_back(at::globalContext().deterministicAlgorithms());
      loss.backward.callBoxed(stack);
      for (size_t i = 0; i < loss.own.size(); ++i) {
        const auto at = loss.own[i];
        if (needed[at]) found[at] = stack[i].toTensor();
        needed[at] = false;
      }
    }
    for (const bool need : needed) {
      if (!need) continue;
      add_other_gradients(found, loss, grad_loss, tensors, stats, needed, numbers);
      break;
    }
  }

  // By the operator, without a graph.
  static Tensor run(const Numbers& numbers, Tensor* stats, at::TensorList tensors) {
    at::AutoDispatchBelowADInplaceOrView below;
    at::AutoGradMode no_grad(false);
    torch::jit::Stack stack;
    stack.reserve(16);
    push_tensors(stack, numbers, in_place(numbers, tensors));
    push_numbers(stack, numbers);
    loss_of(numbers).forward.callBoxed(stack);
    *stats = std::move(stack[1]).toTensor();
    return std::move(stack[0]).toTensor();
  }
};

namespace {

struct {
  PyObject *cpu = PyUnicode_InternFromString("cpu"), *cuda = PyUnicode_InternFromString("cuda");
} names;

// Whether something wants to see the call itself, which a boxed call would go past.
bool is_watched() {
  return c10::impl::TorchDispatchModeTLS::any_modes_set() || at::impl::torch_function_mode_enabled() ||
         at::tracer::impl::is_dispatch_enabled() || is_transforming();
}

// row_loss(loss, numbers, *tensors): (loss, statistics), or None where the Function in Python has to do it.
PyObject* row_loss(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (is_watched()) Py_RETURN_NONE;
  const auto id = PyLong_AsSsize_t(arguments[0]);
  const Loss& loss = losses.at(id);
  variable_list tensors;  // those that are there
  tensors.reserve(loss.all_tensors);
  int64_t bits = 0;
  bool has_graph = false;
  for (Py_ssize_t i = 2; i < count; ++i) {
    if (arguments[i] == Py_None) continue;
    if (!THPVariable_CheckExact(arguments[i])) Py_RETURN_NONE;
    bits |= int64_t{1} << (i - 2);
    tensors.push_back(THPVariable_Unpack(arguments[i]));
    has_graph = has_graph || tensors.back().requires_grad();
  }
  std::vector<IValue> elements;
  elements.reserve(loss.kinds.size() + kAhead);
  elements.emplace_back(static_cast<int64_t>(id));
  elements.emplace_back(bits);
  TORCH_CHECK_VALUE(PyTuple_GET_SIZE(arguments[1]) == static_cast<Py_ssize_t>(loss.kinds.size()), "numbers: must be ",
                    loss.kinds.size());
  for (size_t i = 0; i < loss.kinds.size(); ++i) {
    elements.push_back(number_from_python(PyTuple_GET_ITEM(arguments[1], i), loss.kinds[i]));
  }
  const auto numbers = c10::ivalue::Tuple::create(std::move(elements));
  Tensor loss_value, stats;
  {
    pybind11::gil_scoped_release no_gil;
    const at::TensorList there(tensors);
    has_graph = has_graph && at::GradMode::is_enabled();
    loss_value = has_graph ? RowLoss::apply(numbers, &stats, there) : RowLoss::run(numbers, &stats, there);
  }
  PyObject* both = steal(PyTuple_New(2));
  PyTuple_SET_ITEM(both, 0, THPVariable_Wrap(std::move(loss_value)));
  PyTuple_SET_ITEM(both, 1, THPVariable_Wrap(std::move(stats)));
  return both;
  END_HANDLE_TH_ERRORS
}

// A ReLU over its own input. Backwards it overwrites the gradient, too, where nobody else holds that: new memory costs
// more than the work on it.
struct Relu : torch::autograd::Function<Relu> {
  static Tensor forward(AutogradContext* context, const Tensor& x) {
    Tensor result = x;
    result.relu_();
    context->mark_dirty({result});
    context->save_for_backward({result});
    return result;
  }

  static variable_list backward(AutogradContext* context, variable_list& grads) {
    const Tensor result = context->get_saved_variables()[0];
    Tensor& grad = grads[0];
    if (!grad.defined()) return {Tensor()};
    const bool alone = !at::GradMode::is_enabled() && grad.use_count() == 1 && grad.has_storage() &&
                       grad.storage().use_count() == 1 && grad.scalar_type() == result.scalar_type() &&
                       grad.strides() == result.strides() && !is_transforming();
    return {alone ? at::threshold_backward_out(grad, grad, result, 0) : at::threshold_backward(grad, result, 0)};
  }
};

// relu(x): over x, or None where PyTorch's own has to do it.
PyObject* relu(PyObject*, PyObject* argument) {
  HANDLE_TH_ERRORS
  if (!THPVariable_CheckExact(argument) || is_watched()) Py_RETURN_NONE;
  const Tensor& x = THPVariable_Unpack(argument);
  if (!at::GradMode::is_enabled() || !x.requires_grad() || x.is_leaf() || x.is_view()) Py_RETURN_NONE;
  Tensor result;
  {
    pybind11::gil_scoped_release no_gil;
    result = Relu::apply(x);
  }
  return THPVariable_Wrap(std::move(result));
  END_HANDLE_TH_ERRORS
}

bool is_floating(const Tensor& x) {
  const auto type = x.scalar_type();
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

bool is_like(const Tensor& x, const Tensor& first) {
  return x.scalar_type() == first.scalar_type() && x.device() == first.device() && x.layout() == at::kStrided &&
         x.sizes() == first.sizes();
}

// ready(labels, *logits): the device type of logits [B, K] that are right as they are, all of one dtype, shape and
// device, with labels [B] or None; None where the checks in Python have to look at them, or torch.func does.
PyObject* ready(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (is_transforming()) Py_RETURN_NONE;
  for (Py_ssize_t i = arguments[0] == Py_None ? 1 : 0; i < count; ++i) {
    if (!THPVariable_CheckExact(arguments[i])) Py_RETURN_NONE;
  }
  const Tensor& first = THPVariable_Unpack(arguments[1]);
  if (!is_floating(first) || first.dim() != 2 || first.size(1) == 0 || first.layout() != at::kStrided) Py_RETURN_NONE;
  for (Py_ssize_t i = 2; i < count; ++i) {
    if (!is_like(THPVariable_Unpack(arguments[i]), first)) Py_RETURN_NONE;
  }
  if (arguments[0] != Py_None) {
    const Tensor& labels = THPVariable_Unpack(arguments[0]);
    const bool is_class = labels.scalar_type() == at::kLong || labels.scalar_type() == at::kInt;
    if (!is_class || labels.dim() != 1 || labels.size(0) != first.size(0)) Py_RETURN_NONE;
    if (labels.device() != first.device() || labels.layout() != at::kStrided) Py_RETURN_NONE;
  }
  return Py_NewRef(first.is_cpu() ? names.cpu : first.is_cuda() ? names.cuda : Py_None);
  END_HANDLE_TH_ERRORS
}

// alike(images, *others): whether images [B, …] and all others that are not None have one floating dtype, shape and
// device.
PyObject* alike(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (is_transforming() || !THPVariable_CheckExact(arguments[0])) Py_RETURN_FALSE;
  const Tensor& first = THPVariable_Unpack(arguments[0]);
  if (!is_floating(first) || first.dim() < 2 || first.layout() != at::kStrided) Py_RETURN_FALSE;
  for (Py_ssize_t i = 1; i < count; ++i) {
    if (arguments[i] == Py_None) continue;
    if (!THPVariable_CheckExact(arguments[i]) || !is_like(THPVariable_Unpack(arguments[i]), first)) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
  END_HANDLE_TH_ERRORS
}

// tail(statistics, count): the last `count` of them, each alone.
PyObject* tail(PyObject*, PyObject* const* arguments, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Tensor& stats = THPVariable_Unpack(arguments[0]);
  const auto count = PyLong_AsSsize_t(arguments[1]);
  at::AutoDispatchBelowAutograd below;  // nothing has a gradient through them
  PyObject* found = steal(PyTuple_New(count));
  for (Py_ssize_t i = 0; i < count; ++i) PyTuple_SET_ITEM(found, i, THPVariable_Wrap(stats.select(0, i - count)));
  return found;
  END_HANDLE_TH_ERRORS
}

// add(forward, backward, own, others, more_tensors, more_numbers, asks_determinism), as in RowLoss of row_loss.py: the
// number of a loss whose operators have these names.
PyObject* add(PyObject*, PyObject* arguments) {
  HANDLE_TH_ERRORS
  const char *forward = nullptr, *backward = nullptr, *more_numbers = nullptr;
  PyObject *own = nullptr, *others = nullptr;
  int more_tensors = 0, asks_determinism = 0;
  if (!PyArg_ParseTuple(arguments, "ssO!Oisp", &forward, &backward, &PyTuple_Type, &own, &others, &more_tensors,
                        &more_numbers, &asks_determinism)) {
    throw python_error();
  }
  auto& dispatcher = c10::Dispatcher::singleton();
  Loss loss{dispatcher.findSchemaOrThrow(forward, ""), dispatcher.findSchemaOrThrow(backward, "")};
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(own); ++i) {
    loss.own.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(own, i)));
  }
  for (const auto& argument : loss.forward.schema().arguments()) {
    const std::string type = argument.type()->str();
    if (type[0] == 'T') {
      ++loss.tensors;
    } else {
      loss.kinds.push_back(type[0]);
    }
  }
  loss.numbers = loss.kinds.size();
  loss.kinds += more_numbers;
  loss.all_tensors = loss.tensors + more_tensors;
  loss.asks_determinism = asks_determinism != 0;
  loss.others = Py_NewRef(others);
  losses.push_back(std::move(loss));
  return PyLong_FromSize_t(losses.size() - 1);
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    {"row_loss", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(row_loss)), METH_FASTCALL, nullptr},
    {"ready", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(ready)), METH_FASTCALL, nullptr},
    {"alike", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(alike)), METH_FASTCALL, nullptr},
    {"tail", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(tail)), METH_FASTCALL, nullptr},
    {"relu", relu, METH_O, nullptr},
    {"add", add, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_autograd", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

}  // namespace amkd

PyMODINIT_FUNC PyInit__autograd() { return PyModule_Create(&amkd::module); }
