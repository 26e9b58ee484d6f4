// A page of a mapped file that the disk cannot read any more is a SIGBUS in whoever reads it: here, an exception.
#pragma once

#include <csetjmp>
#include <csignal>
#include <stdexcept>

namespace he {

struct ReadFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace guard {

inline thread_local sigjmp_buf* current = nullptr;  // of the thread's guarded call
inline struct sigaction before;                     // what is done about any other SIGBUS

inline void on_fault(int number, siginfo_t* info, void* context) {
  static volatile sig_atomic_t passed_on = 0;
  if (current != nullptr) siglongjmp(*current, 1);
  const bool first = passed_on == 0;
  passed_on = 1;
  if (first && (before.sa_flags & SA_SIGINFO)) {
    before.sa_sigaction(number, info, context);
  } else if (first && before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(number);
  } else {
    std::signal(number, SIG_DFL);  // the instruction that failed runs again, and ends the process
  }
}

// Whoever has put another handler in our place is asked after us.
inline void install() {
  struct sigaction found;
  sigaction(SIGBUS, nullptr, &found);
  if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == on_fault) return;
  struct sigaction ours = {};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  before = found;
  sigaction(SIGBUS, &ours, nullptr);
}

}  // namespace guard

// Calls f, which may be left at any read of memory: it must own nothing. Throws ReadFault.
template <class F>
void guarded(const F& f) {
  struct Left {
    ~Left() { guard::current = nullptr; }
  } left;
  sigjmp_buf here;
  guard::install();
  if (sigsetjmp(here, 1) != 0) throw ReadFault("a mapped file cannot be read");
  guard::current = &here;
  f();
}

}  // namespace he
