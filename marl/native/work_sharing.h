// Threads of our own that help with work cut into units, where a core is idle, and stay out of the way where none is.
//
// The calls of a network's passes come some 100 µs apart. A thread that sleeps in between takes as long to wake as it
// saves. One that waits awake takes the time of another that needs the core. So helpers wait awake for a short while,
// yield as they wait, and look at the clock. Where a yield took long, another thread wanted the core. Where the caller
// had to wait for a unit, a helper lost its core in the middle of it. Either way no helper works for many times as long
// as was lost. Units are taken one by one, so that a helper that is late costs nothing. Every thread computes a unit
// identically: results do not depend on who helped.
#include <atomic>
#include <cstdint>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

namespace helpers {
const int64_t AWAKE_NS = 1'000'000;        // ns that a helper waits awake for the next work
const int64_t LATE_NS = 50'000;            // ns of a yield, or of waiting beyond the pace of units, that count as lost
const int64_t FIRST_FACTOR = 1, MOST_FACTOR = 128;    // a rest is so many times as long as what was lost
const int64_t RECENT_NS = 5'000'000;         // ns after a rest within which a loss says that the core is still wanted
const int64_t LONGEST_NS = 2'000'000'000;  // ns of rest at most
enum { PAUSES_PER_YIELD = 32 };              // pauses between two looks at the clock
enum { MOST_MEMBERS = 0xff, MOST_UNITS = 0xfffff };  // of a job

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

struct WorkerPool {
    // Number of the job << 48 | members that it has room for << 40 | first unit not taken << 20 | end of those not taken.
    std::atomic<uint64_t> ticket{0};
    std::atomic<int64_t> open{0};     // its units that are not done
    void (*work)(void*, int64_t, int64_t) = nullptr;
    void* context = nullptr;
    int64_t base = 0;                 // number of the job's first unit
    std::atomic<int64_t> rest{0};     // the time until which no thread helps
    std::atomic<int64_t> factor{FIRST_FACTOR};  // of the last rest
    std::atomic<int64_t> backoffs{0}, helped{0};  // how many times helpers backed off; how many units were not the caller's
    std::atomic<int64_t> asleep{0};
    std::atomic<bool> taken{false};   // by a caller
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t called = PTHREAD_COND_INITIALIZER;
    uint64_t calls = 0;               // guarded by the mutex
    int64_t helpers = 0;
    const pid_t process = getpid();

    // Time was lost: a rest as long as that, and twice as many times as long each time it comes again soon after it.
    void lost(int64_t time, int64_t at) {
        backoffs.fetch_add(1);
        const int64_t again = 2 * factor.load();
        const int64_t by = at - time > rest.load() + RECENT_NS ? FIRST_FACTOR : again < MOST_FACTOR ? again : MOST_FACTOR;
        factor.store(by);
        rest.store(at + (by * time < LONGEST_NS ? by * time : LONGEST_NS));
    }

    // Do a unit of the job in hand, if there is one left. Of the job nothing is read before a unit is one's own: until
    // that is done there can't be another job.
    bool one(int64_t member) {
        uint64_t snapshot = ticket.load();
        for (;;) {
            const int64_t first = snapshot >> 20 & MOST_UNITS, end = snapshot & MOST_UNITS;
            if (first == end || member >= int64_t(snapshot >> 40 & MOST_MEMBERS)) return false;
            const bool last = member % 2;  // from the end: neighbours share what a member prepares for them
            if (ticket.compare_exchange_weak(snapshot, last ? snapshot - 1 : snapshot + (1 << 20))) {
                work(context, base + (last ? end - 1 : first), member);
                if (member) helped.fetch_add(1);
                open.fetch_sub(1);
                return true;
            }
        }
    }

    void help(int64_t member) {
        uint64_t heard = 0;
        for (;;) {
            for (int64_t began = now();;) {
                if (one(member)) {
                    began = now();
                    continue;
                }
                for (int i = 0; i < PAUSES_PER_YIELD; i++) pause();
                const int64_t before = now();
                if (before - began > AWAKE_NS || before < rest.load()) break;
                sched_yield();
                const int64_t after = now();
                if (after - before > LATE_NS) {
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

    struct Helper {
        WorkerPool* pool;
        int64_t member;
    };
    static void* begin(void* given) {
        const Helper helper = *(Helper*)given;
        delete (Helper*)given;
        helper.pool->help(helper.member);
        return nullptr;
    }

    void enlist(int64_t wanted) {
        if (helpers >= wanted) return;
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for those who know what to do about them
        for (; helpers < wanted; helpers++) {
            pthread_t thread;
            Helper* helper = new Helper{this, helpers + 1};
            if (pthread_create(&thread, nullptr, begin, helper)) {  // the work is done by those there are
                delete helper;
                break;
            }
            pthread_detach(thread);
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
};

static std::atomic<WorkerPool*> alone{nullptr};
static std::atomic<WorkerPool*>* current = &alone;  // where the pool of all libraries stands, once that was said

// The process's pool; another after a fork, which takes no threads along. Never freed: its threads wait in it.
static WorkerPool* ours() {
    WorkerPool* here = current->load();
    if (here && here->process == getpid()) return here;
    WorkerPool* fresh = new WorkerPool;
    if (current->compare_exchange_strong(here, fresh)) return fresh;
    delete fresh;
    return here;
}

// A call of several jobs, one after the other, by up to `members` threads: the caller, number 0, and its helpers.
class Shift {
    WorkerPool* pool = nullptr;  // null = the caller is alone
    uint64_t members;

public:
    explicit Shift(int64_t most) : members(most < MOST_MEMBERS ? most : MOST_MEMBERS) {
        if (members < 2) return;
        WorkerPool* here = ours();
        if (here->taken.exchange(true)) return;  // another of the process's threads is at it
        pool = here;
        pool->enlist(members - 1);
        if (now() < pool->rest.load()) return;
        if (pool->asleep.load()) {
            pthread_mutex_lock(&pool->mutex);
            pool->calls++;
            pthread_mutex_unlock(&pool->mutex);
            pthread_cond_broadcast(&pool->called);
        }
    }
    ~Shift() { if (pool) pool->taken.store(false); }
    Shift(const Shift&) = delete;

    // Whether any thread is there to help.
    bool helped() const { return pool && now() >= pool->rest.load(); }

    // work(unit, member) for every unit below `count`, in any order and side by side; returns when all are done.
    template <typename Work>
    void share(int64_t count, const Work& work) {
        if (!pool || count < 2) {
            for (int64_t unit = 0; unit < count; unit++) work(unit, 0);
            return;
        }
        const auto call = [](void* of, int64_t unit, int64_t member) { (*(const Work*)of)(unit, member); };
        for (int64_t base = 0; base < count; base += MOST_UNITS)
            job(call, (void*)&work, base, count - base < MOST_UNITS ? count - base : MOST_UNITS);
    }

private:
    void job(void (*work)(void*, int64_t, int64_t), void* context, int64_t base, int64_t count) {
        pool->work = work;
        pool->context = context;
        pool->base = base;
        pool->open.store(count);
        pool->ticket.store((((pool->ticket.load() >> 48) + 1) << 48) | members << 40 | uint64_t(count));
        int64_t done = now(), pace = 0;  // of the longest unit: they differ
        for (int64_t began = done; pool->one(0); began = done) {
            done = now();
            if (done - began > pace) pace = done - began;
        }
        for (int64_t turn = 1; pool->open.load(); turn++) {
            pause();
            if (turn % PAUSES_PER_YIELD == 0 && now() - done > LATE_NS) sched_yield();
        }
        const int64_t waited = now() - done;
        if (pace && waited > 2 * pace + LATE_NS) pool->lost(waited, done + waited);
    }
};
}  // namespace helpers

// The libraries of a process have one pool: its place, a pointer, null at first.
extern "C" void use_pool(void* place) { helpers::current = (std::atomic<helpers::WorkerPool*>*)place; }
