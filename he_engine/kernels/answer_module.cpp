// _answer: all that a server needs. It multiplies and adds residues, and holds no key of any kind.
#include <memory>

#include "answer_kernel.hpp"
#include "binding.hpp"
#include "guard.hpp"

namespace he {
namespace {

const std::vector<Target<AnswerOps>>& targets() {
  static const auto found = runnable<AnswerOps>({
#if defined(__x86_64__)
      {"avx512", &answer_avx512},
      {"avx2", &answer_avx2},
#elif defined(__aarch64__)
      {"neon", &answer_neon},
#endif
      {"portable", &answer_portable},
  });
  return found;
}

class AnswerKernel {
 public:
  AnswerKernel(int64_t log_n, const std::vector<int64_t>& primes, int64_t stride, int64_t planes,
               const std::string& target)
      : target_(choose(targets(), target)) {
    for (const uint32_t q : checked_primes(log_n, primes, stride, planes)) moduli_.push_back(make_modulus(q));
    layout_ = {size_t{1} << log_n, static_cast<size_t>(stride), static_cast<size_t>(planes), moduli_.size(),
               moduli_.data()};
  }
  AnswerKernel(const AnswerKernel&) = delete;

  const std::string& target() const { return target_.name; }

  void answer(nb::handle blocks, nb::handle queries, nb::handle out) const {
    const size_t tiles = layout_.degree / kTile;
    const Array<const uint32_t> b(blocks, "blocks", {"K", layout_.primes, tiles, layout_.planes, kTile});
    std::vector<Array<const uint32_t>> c;  // they keep the arrays alive
    std::vector<const uint32_t*> words;
    for (const nb::handle query : queries) {
      c.emplace_back(query, "queries", std::initializer_list<Dim>{layout_.primes, tiles, layout_.planes, kTile});
      words.push_back(c.back().data());
    }
    const Array<uint32_t> t(out, "out", {c.size(), b.shape(0), layout_.primes,
                                            layout_.degree / layout_.stride});
    if (c.empty()) return;
    const nb::gil_scoped_release unlocked;
    const std::unique_ptr<AnswerScratch> scratch(c.size() == 1 ? nullptr : new AnswerScratch);
    guarded([&] {
      target_.ops->answer(layout_, b.data(), b.shape(0), words.data(), words.size(), t.data(), scratch.get());
    });
  }

  ptrdiff_t first_noncanonical(nb::handle words) const {
    const Array<const uint32_t> w(words, "words", {"K", layout_.primes, "M"});
    const nb::gil_scoped_release unlocked;
    ptrdiff_t found = -1;
    guarded([&] { found = target_.ops->first_noncanonical(layout_, w.data(), w.shape(0), w.shape(2)); });
    return found;
  }

 private:
  Target<AnswerOps> target_;
  std::vector<Modulus> moduli_;
  Layout layout_{};
};

}  // namespace
}  // namespace he

NB_MODULE(_answer, m) {
  namespace nb = nanobind;
  nb::set_leak_warnings(false);  // a kernel that lives until the interpreter ends is no leak
  using namespace nb::literals;
  m.doc() = "The server's kernel: sums of products of residues.";
  nb::exception<he::ReadFault>(m, "ReadFault", PyExc_OSError);
  m.def(
      "targets", [] { return he::names(he::targets()); },
      "Instruction sets that this CPU can run, best first.");
  nb::class_<he::AnswerKernel>(m, "AnswerKernel")
      .def(nb::init<int64_t, const std::vector<int64_t>&, int64_t, int64_t, const std::string&>(), "log_n"_a,
           "primes"_a, "stride"_a, "planes"_a, "target"_a = "")
      .def_prop_ro("target", &he::AnswerKernel::target)
      .def("answer", &he::AnswerKernel::answer, "blocks"_a, "queries"_a, "out"_a)
      .def("first_noncanonical", &he::AnswerKernel::first_noncanonical, "words"_a);
}
