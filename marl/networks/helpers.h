// Threads of our own that help with work cut into units, where a core is idle, and stay out of the way where none is.
//
// The calls of a network's passes come some 100 µs apart. A thread that sleeps in between takes as long to wake as it
// saves; one that waits awake takes the time of whoever needs the core. So helpers wait awake for a short while, yield
// as they wait, and look at the clock: where a yield took long, somebody else wanted the core, and where the caller
// had to wait for a unit, a helper lost its core in the middle of it. Either way nobody helps for many times as long as
// was lost. Units are taken one by one, so that a helper that is late costs nothing, and whoever does a unit does it
// alike: what is computed does not depend on who helped.
#include <atomic>
#include <cstdint>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

namespace helpers {
const int64_t AWAKE = 600'000;          // ns that a helper waits awake for the next work
const int64_t LATE = 50'000;            // ns of a yield, or of waiting beyond the pace of units, that count as lost
const int64_t FIRST = 1, MOST = 128;    // a rest is so many times as long as what was lost
const int64_t SOON = 5'000'000;         // ns after a rest within which a loss says that the core is still wanted
const int64_t LONGEST = 2'000'000'000;  // ns of rest at most
enum { YIELD_EVERY = 32 };              // pauses between two looks at the clock

static inline int64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * int64_t(1'000'000'000) + t.tv_nsec;
}
static inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct Crew {
    std::atomic<uint64_t> ticket{0};  // number of the job << 48 | members that it has room for << 32 | units not taken
    std::atomic<int64_t> open{0};     // its units that are not done
    void (*work)(void*, int64_t, int64_t) = nullptr;
    void* context = nullptr;
    int64_t count = 0;
    std::atomic<int64_t> rest{0};     // the time until which nobody helps
    std::atomic<int64_t> factor{FIRST};  // of the last rest
    std::atomic<int64_t> rests{0}, helped{0};  // how many rests there were; how many units were not the caller's
    std::atomic<int64_t> asleep{0};
    std::atomic<bool> taken{false};   // by a caller
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t called = PTHREAD_COND_INITIALIZER;
    uint64_t calls = 0;               // guarded by the mutex
    int64_t helpers = 0;
    const pid_t process = getpid();

    // Time was lost: a rest as long as that, and twice as many times as long each time it comes again soon after it.
    void lost(int64_t time, int64_t at) {
        rests.fetch_add(1);
        const int64_t again = 2 * factor.load();
        const int64_t by = at - time > rest.load() + SOON ? FIRST : again < MOST ? again : MOST;
        factor.store(by);
        rest.store(at + (by * time < LONGEST ? by * time : LONGEST));
    }

    // Do a unit of the job in hand, if there is one left. Of the job nothing is read before a unit is one's own: until
    // that is done there can't be another job.
    bool one(int64_t member) {
        uint64_t seen = ticket.load();
        while (uint32_t(seen) && member < int64_t(seen >> 32 & 0xffff))
            if (ticket.compare_exchange_weak(seen, seen - 1)) {
                work(context, count - int64_t(uint32_t(seen)), member);
                if (member) helped.fetch_add(1);
                open.fetch_sub(1);
                return true;
            }
        return false;
    }

    void help(int64_t member) {
        uint64_t heard = 0;
        for (;;) {
            for (int64_t began = now();;) {
                if (one(member)) {
                    began = now();
                    continue;
                }
                for (int i = 0; i < YIELD_EVERY; i++) pause();
                const int64_t before = now();
                if (before - began > AWAKE || before < rest.load()) break;
                sched_yield();
                const int64_t after = now();
                if (after - before > LATE) {
                    lost(after - before, after);
                    break;
                }
            }
            pthread_mutex_lock(&mutex);
            asleep.fetch_add(1);
            while (calls == heard) pthread_cond_wait(&called, &mutex);
            heard = calls;
            asleep.fetch_sub(1);
            pthread_mutex_unlock(&mutex);
        }
    }

    struct Recruit {
        Crew* crew;
        int64_t member;
    };
    static void* begin(void* given) {
        const Recruit recruit = *(Recruit*)given;
        delete (Recruit*)given;
        recruit.crew->help(recruit.member);
        return nullptr;
    }

    void grow(int64_t wanted) {
        if (helpers >= wanted) return;
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for those who know what to do about them
        for (; helpers < wanted; helpers++) {
            pthread_t thread;
            Recruit* recruit = new Recruit{this, helpers + 1};
            if (pthread_create(&thread, nullptr, begin, recruit)) {  // the work is done by those there are
                delete recruit;
                break;
            }
            pthread_detach(thread);
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
};

// The process's crew; another after a fork, which takes no threads along. Never freed: its threads wait in it.
static Crew* ours() {
    static std::atomic<Crew*> kept{nullptr};
    Crew* here = kept.load();
    if (here && here->process == getpid()) return here;
    Crew* fresh = new Crew;
    if (kept.compare_exchange_strong(here, fresh)) return fresh;
    delete fresh;
    return here;
}

// A call of several jobs, one after the other, by up to `members` threads: the caller, number 0, and its helpers.
class Shift {
    Crew* crew = nullptr;  // null = the caller is alone
    uint64_t members;

public:
    explicit Shift(int64_t most) : members(most < 0xffff ? most : 0xffff) {
        if (members < 2) return;
        Crew* here = ours();
        if (here->taken.exchange(true)) return;  // another of the process's threads is at it
        crew = here;
        crew->grow(members - 1);
        if (now() < crew->rest.load()) return;
        if (crew->asleep.load()) {
            pthread_mutex_lock(&crew->mutex);
            crew->calls++;
            pthread_mutex_unlock(&crew->mutex);
            pthread_cond_broadcast(&crew->called);
        }
    }
    ~Shift() { if (crew) crew->taken.store(false); }
    Shift(const Shift&) = delete;

    // Whether anybody is there to help.
    bool helped() const { return crew && now() >= crew->rest.load(); }

    // work(unit, member) for every unit below `count`, in any order and side by side; returns when all are done.
    template <typename Work>
    void share(int64_t count, const Work& work) {
        if (!crew || count < 2) {
            for (int64_t unit = 0; unit < count; unit++) work(unit, 0);
            return;
        }
        const auto call = [](void* of, int64_t unit, int64_t member) { (*(const Work*)of)(unit, member); };
        crew->work = call;
        crew->context = (void*)&work;
        crew->count = count;
        crew->open.store(count);
        crew->ticket.store((((crew->ticket.load() >> 48) + 1) << 48) | members << 32 | uint64_t(count));
        const int64_t began = now();
        int64_t mine = 0;
        while (crew->one(0)) mine++;
        const int64_t done = now(), pace = mine ? (done - began) / mine : 0;
        for (int64_t turn = 1; crew->open.load(); turn++) {
            pause();
            if (turn % YIELD_EVERY == 0 && now() - done > LATE) sched_yield();
        }
        const int64_t waited = now() - done;
        if (mine && waited > 2 * pace + LATE) crew->lost(waited, done + waited);
    }
};
}  // namespace helpers
