// _client: what a key holder computes. Encryption, verification's sums, and recovery.
#include <memory>

#include "binding.hpp"
#include "buffers.hpp"
#include "client_kernel.hpp"
#include "tables.hpp"

namespace he {
namespace {

const std::vector<Target<ClientOps>>& targets() {
  static const auto found = runnable<ClientOps>({
#if defined(__x86_64__)
      {"avx512", &client_avx512},
      {"avx2", &client_avx2},
#elif defined(__aarch64__)
      {"neon", &client_neon},
#endif
      {"portable", &client_portable},
  });
  return found;
}

std::vector<uint32_t> checked_roots(int64_t log_n, const std::vector<uint32_t>& primes,
                                    const std::vector<int64_t>& roots) {
  if (roots.size() != primes.size())
    throw std::invalid_argument("roots: got " + std::to_string(roots.size()) + " of them, expected " +
                                std::to_string(primes.size()));
  for (size_t p = 0; p < primes.size(); ++p) {
    const uint32_t q = primes[p];
    require(q % (uint32_t{2} << log_n) == 1, "primes", q, "1 mod " + std::to_string(2 << log_n));
    const bool good = roots[p] > 0 && roots[p] < q &&
                      power(static_cast<uint32_t>(roots[p]), uint64_t{1} << log_n, make_modulus(q)) == q - 1;
    require(good, "roots", roots[p],
            "a primitive " + std::to_string(2 << log_n) + "-th root of 1 mod its prime");
  }
  return {roots.begin(), roots.end()};
}

class ClientKernel {
 public:
  ClientKernel(int64_t log_n, const std::vector<int64_t>& primes, const std::vector<int64_t>& roots,
               int64_t stride, int64_t planes, const std::string& target)
      : target_(choose(targets(), target)) {
    const std::vector<uint32_t> q = checked_primes(log_n, primes, stride, planes);
    tables_ =
        std::make_unique<Tables>(size_t{1} << log_n, static_cast<size_t>(stride), static_cast<size_t>(planes),
                                 q, checked_roots(log_n, q, roots), *target_.ops);
  }

  const std::string& target() const { return target_.name; }

  void forward(nb::handle polys) const { transform(polys, ring().forward, false, l().degree); }
  void inverse(nb::handle polys) const { transform(polys, ring().inverse, true, l().degree); }
  void inverse_decimated(nb::handle folded) const {
    transform(folded, ring().decimated, true, ring().rows(), "folded");
  }

  nb::object fold(nb::handle polys) const {
    const Array<const uint32_t> x(polys, "polys", {"K", l().primes, l().degree});
    Fresh<uint32_t> out({x.shape(0), l().primes, ring().rows()});
    {
      const nb::gil_scoped_release unlocked;
      ops().fold(l(), x.shape(0), x.data(), out.data());
    }
    return out.release();
  }

  nb::object expand_secrets(nb::handle keystream) const {
    const Array<const uint64_t> words(keystream, "keystream", {"K", l().degree / 4});
    Fresh<uint32_t> out({words.shape(0), l().primes, l().degree});
    {
      const nb::gil_scoped_release unlocked;
      const Scratch scratch(expand_scratch(l()));
      ops().expand_secrets(ring(), words.shape(0), words.data(), out.data(), scratch.data());
    }
    return out.release();
  }

  nb::object expand_weights(nb::handle keystream) const {
    const Array<const uint64_t> words(keystream, "keystream", {"K", "m", l().primes, ring().rows()});
    Fresh<uint32_t> out({words.shape(0), words.shape(1), l().primes, ring().rows()});
    {
      const nb::gil_scoped_release unlocked;
      ops().expand_weights(ring(), words.shape(0) * words.shape(1), words.data(), out.data());
    }
    return out.release();
  }

  void encrypt_blocks(nb::handle rows, nb::handle noise, nb::handle secrets, nb::handle index_public,
                      nb::handle query_public, nb::handle weights, nb::handle blocks, nb::handle hint,
                      nb::handle fingerprint) const {
    const size_t tiles = l().degree / kTile, P = l().primes, I = l().planes, N = l().degree;
    const Array<const int32_t> v(rows, "rows", {"K", ring().rows(), I * l().stride});
    const size_t K = v.shape(0);
    const Array<const uint64_t> e(noise, "noise", {K, I, N});
    const Array<const uint32_t> s(secrets, "secrets", {K, P, N});
    const Array<const uint32_t> a(index_public, "index_public", {P, tiles, I, kTile});
    const Array<const uint32_t> a2(query_public, "query_public", {P, tiles, I, kTile});
    const Array<const uint32_t> w(weights, "weights", {K, "m", P, ring().rows()});
    const Array<uint32_t> b(blocks, "blocks", {K, P, tiles, I, kTile});
    const Array<uint32_t> h(hint, "hint", {K, P, N});
    const Array<uint32_t> f(fingerprint, "fingerprint", {w.shape(1), P, tiles, I, kTile});
    const nb::gil_scoped_release unlocked;
    const Scratch scratch(blocks_scratch(l()));
    ops().encrypt_blocks(ring(),
                         {K, w.shape(1), v.data(), e.data(), s.data(), a.data(), a2.data(), w.data(), b.data(),
                          h.data(), f.data()},
                         scratch.data());
  }

  void encrypt_query(nb::handle query, nb::handle keystream, nb::handle index_public, nb::handle query_public,
                     nb::handle ciphertext, nb::handle secret, nb::handle mask) const {
    const size_t tiles = l().degree / kTile, P = l().primes, I = l().planes, N = l().degree;
    const Array<const int64_t> y(query, "query", {I * l().stride});
    const Array<const uint64_t> words(keystream, "keystream", {N / 4 + I * N});
    const Array<const uint32_t> a(index_public, "index_public", {P, tiles, I, kTile});
    const Array<const uint32_t> a2(query_public, "query_public", {P, tiles, I, kTile});
    const Array<uint32_t> c(ciphertext, "ciphertext", {P, tiles, I, kTile});
    const Array<uint32_t> t(secret, "secret", {P, N});
    const Array<uint32_t> z(mask, "mask", {P, N});
    const nb::gil_scoped_release unlocked;
    const Scratch scratch(query_scratch(l()));
    ops().encrypt_query(ring(), {y.data(), words.data(), a.data(), a2.data(), c.data(), t.data(), z.data()},
                        scratch.data());
  }

  nb::object weighted_sum(nb::handle weights, nb::handle values) const {
    const Array<const uint32_t> w(weights, "weights", {"K", "m", l().primes, "L"});
    const Array<const uint32_t> x(values, "values", {w.shape(0), l().primes, w.shape(3)});
    Fresh<uint32_t> out({w.shape(1), l().primes});
    {
      const nb::gil_scoped_release unlocked;
      ops().weighted_sum(l(), w.shape(0), w.shape(1), w.shape(3), w.data(), x.data(), out.data());
    }
    return out.release();
  }

  nb::object recover(nb::handle answers, nb::handle hints, nb::handle secrets, nb::handle secret,
                     nb::handle mask) const {
    require(l().primes <= 2, "primes", static_cast<int64_t>(l().primes),
            "one or two to recover (scores are int64)");
    const Array<const uint32_t> scores(answers, "answers", {"K", l().primes, ring().rows()});
    const size_t K = scores.shape(0);
    const Array<const uint32_t> h(hints, "hints", {K, l().primes, l().degree});
    const Array<const uint32_t> s(secrets, "secrets", {K, l().primes, l().degree});
    const Array<const uint32_t> t(secret, "secret", {l().primes, l().degree});
    const Array<const uint32_t> z(mask, "mask", {l().primes, l().degree});
    Fresh<int64_t> out({K, ring().rows()});
    {
      const nb::gil_scoped_release unlocked;
      const Scratch scratch(recover_scratch(l()));
      ops().recover(ring(), {K, scores.data(), h.data(), s.data(), t.data(), z.data(), out.data()},
                    scratch.data());
    }
    return out.release();
  }

  nb::object pack_hint(nb::handle hint, int64_t drop_bits) const {
    const HintFormat format = hint_format(drop_bits);
    const Array<const uint32_t> h(hint, "hint", {"K", l().primes, l().degree});
    Fresh<uint8_t> out({h.shape(0), l().degree * format.width / 8});
    {
      const nb::gil_scoped_release unlocked;
      const Scratch scratch(hint_scratch(l()));
      ops().pack_hint(ring(), format, h.shape(0), h.data(), out.data(), scratch.data());
    }
    return out.release();
  }

  nb::object unpack_hint(nb::handle packed, int64_t drop_bits) const {
    const HintFormat format = hint_format(drop_bits);
    const Array<const uint8_t> bytes(packed, "packed", {"K", l().degree * format.width / 8});
    Fresh<uint32_t> out({bytes.shape(0), l().primes, l().degree});
    ptrdiff_t bad;
    {
      const nb::gil_scoped_release unlocked;
      const Scratch scratch(hint_scratch(l()));
      bad = ops().unpack_hint(ring(), format, bytes.shape(0), bytes.data(), out.data(), scratch.data());
    }
    if (bad >= 0)
      throw std::invalid_argument("packed: value " + std::to_string(bad) + " is not canonical (expected < " +
                                  std::to_string(format.limit) + ")");
    return out.release();
  }

 private:
  HintFormat hint_format(int64_t drop_bits) const {
    require(l().primes <= 2, "primes", static_cast<int64_t>(l().primes),
            "one or two to pack (coefficients of hints take 64 bits)");
    uint64_t q = 1;
    for (size_t p = 0; p < l().primes; ++p) q *= l().moduli[p].q;
    int64_t bits = 0;
    while (q >> bits != 0) ++bits;
    require(drop_bits >= 0 && drop_bits < bits, "drop_bits", drop_bits, "0 to " + std::to_string(bits - 1));
    const auto b = static_cast<size_t>(drop_bits);
    return {b, static_cast<size_t>(bits) - b, ((q - 1) >> b) + 1};
  }
  void transform(nb::handle object, const Twiddles* tables, bool inverse, size_t size,
                 const char* name = "polys") const {
    const Array<uint32_t> x(object, name, {"K", l().primes, size});
    const nb::gil_scoped_release unlocked;
    ops().transform(tables, inverse, l(), x.shape(0), x.data());
  }
  const ClientOps& ops() const { return *target_.ops; }
  const Ring& ring() const { return tables_->ring(); }
  const Layout& l() const { return ring().layout; }

  Target<ClientOps> target_;
  std::unique_ptr<Tables> tables_;
};

}  // namespace
}  // namespace he

NB_MODULE(_client, m) {
  namespace nb = nanobind;
  nb::set_leak_warnings(false);  // a kernel that lives until the interpreter ends is no leak
  using namespace nb::literals;
  using Kernel = he::ClientKernel;
  m.doc() = "The key holder's kernels: encryption, sums for verification, recovery.";
  m.def(
      "targets", [] { return he::names(he::targets()); },
      "Instruction sets that this CPU can run, best first.");
  nb::class_<Kernel>(m, "ClientKernel")
      .def(nb::init<int64_t, const std::vector<int64_t>&, const std::vector<int64_t>&, int64_t, int64_t,
                    const std::string&>(),
           "log_n"_a, "primes"_a, "roots"_a, "stride"_a, "planes"_a, "target"_a = "")
      .def_prop_ro("target", &Kernel::target)
      .def("forward", &Kernel::forward, "polys"_a)
      .def("inverse", &Kernel::inverse, "polys"_a)
      .def("fold", &Kernel::fold, "polys"_a)
      .def("inverse_decimated", &Kernel::inverse_decimated, "folded"_a)
      .def("expand_secrets", &Kernel::expand_secrets, "keystream"_a)
      .def("expand_weights", &Kernel::expand_weights, "keystream"_a)
      .def("encrypt_blocks", &Kernel::encrypt_blocks, "rows"_a, "noise"_a, "secrets"_a, "index_public"_a,
           "query_public"_a, "weights"_a, "blocks"_a, "hint"_a, "fingerprint"_a)
      .def("encrypt_query", &Kernel::encrypt_query, "query"_a, "keystream"_a, "index_public"_a,
           "query_public"_a, "ciphertext"_a, "secret"_a, "mask"_a)
      .def("weighted_sum", &Kernel::weighted_sum, "weights"_a, "values"_a)
      .def("recover", &Kernel::recover, "answers"_a, "hints"_a, "secrets"_a, "secret"_a, "mask"_a)
      .def("pack_hint", &Kernel::pack_hint, "hint"_a, "drop_bits"_a)
      .def("unpack_hint", &Kernel::unpack_hint, "packed"_a, "drop_bits"_a);
}
