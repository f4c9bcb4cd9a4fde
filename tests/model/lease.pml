/* The life of one job's leases, for spin: claim, heartbeat, reap, finish, cancel and retry by workers that may stand still
 * between any two steps for as long as they like, a reaper that may do so too, and a person.
 *
 * Each statement is one atomic step, as the lock on the job's row makes it. What a worker knows is what it was told when
 * it claimed. What is true is kept apart from that, in `holder`: which claim stands, counted by the model and read by no
 * statement. The assertions say that nothing is done to a claim but by those who may, that no life of the job has two
 * ends, and that when nothing more can happen nothing is stuck.
 *
 * Without a definition this is what the SQL functions do. Each of these takes one thing away, and must fail:
 *   NO_TOKEN_IN_FINISH     an outcome counts while the job runs, whoever says it
 *   NO_TOKEN_IN_HEARTBEAT  a heartbeat counts while the job runs, whoever sends it
 *   NO_TOKEN_IN_REAP       the reaper takes what it has seen while it runs. Ours looks again under the lock on the row, which
 *                          names the lease as well as a token would
 *   ATTEMPT_AS_TOKEN       the fence is `attempt`, which a reap, a snooze and a retry take back
 *   TOKEN_RESET_BY_RETRY   the token begins anew when a person retries the job
 *   NO_REAPER              nobody takes jobs from the dead
 */

#ifndef WORKERS
#define WORKERS 3
#endif
#define CLAIMS 6   /* in all: the model has to end */
#define LOSSES 3   /* after so many lost leases the job fails */
#define ATTEMPTS 2
#define RETRIES 2

mtype = { queued, running, completed, failed, cancelled };

mtype state = queued;
byte token;
byte attempt;
byte losses;
bool over;      /* the lease's time has passed */
byte outcomes;  /* ends since the job was made or retried */
byte retries;

byte claims;    /* the truth: how many claims there were, */
byte holder;    /* and which of them stands (0: none) */

#ifdef ATTEMPT_AS_TOKEN
#define FENCE attempt
#else
#define FENCE token
#endif

#ifdef NO_TOKEN_IN_FINISH
#define MAY_FINISH (state == running)
#else
#define MAY_FINISH (state == running && FENCE == told)
#endif

#ifdef NO_TOKEN_IN_HEARTBEAT
#define MAY_BEAT (state == running)
#else
#define MAY_BEAT (state == running && FENCE == told)
#endif

#ifdef NO_TOKEN_IN_REAP
#define MAY_REAP (state == running)
#else
#define MAY_REAP (state == running && over)
#endif

#define ENDED (state == completed || state == failed || state == cancelled)

inline give_up() {
  assert(holder != 0);
  holder = 0;
  over = false
}

inline end_as(how) {
  outcomes++;
  assert(outcomes == 1);
  state = how
}

proctype Worker() {
  byte told;  /* what the claim has told: the fence */
  byte mine;  /* which claim it is, in truth */
end_idle:
  do
  :: atomic { state == queued && claims < CLAIMS ->
       assert(holder == 0);
       state = running; token++; attempt++; claims++; over = false;
       holder = claims; mine = claims; told = FENCE }
     do
     :: atomic { MAY_BEAT -> assert(holder == mine); over = false }
     :: atomic { !MAY_BEAT -> break }                                /* it is told that the lease is lost */
     :: atomic { MAY_FINISH -> assert(holder == mine); give_up(); end_as(completed); break }
     :: atomic { MAY_FINISH -> assert(holder == mine); give_up();    /* a failed attempt */
          if
          :: attempt >= ATTEMPTS -> end_as(failed)
          :: else -> state = queued
          fi; break }
     :: atomic { MAY_FINISH -> assert(holder == mine); give_up(); attempt--; state = queued; break } /* snooze, release */
     :: atomic { !MAY_FINISH -> break }                              /* its outcome is refused */
     :: break                                                        /* it is killed, and started again */
     od;
     atomic { told = 0; mine = 0 }
  od
}

proctype Time() {
end_time:
  do
  :: atomic { state == running && !over -> over = true }
  od
}

proctype Reaper() {
end_reaper:
  do
  :: state == running && over;                                       /* it looks; anything may happen now */
     if
     :: atomic { MAY_REAP ->
          assert(over);                                              /* no lease is taken before its time */
          give_up(); attempt--; losses++;
          if
          :: losses >= LOSSES -> end_as(failed)
          :: else -> state = queued
          fi }
     :: atomic { !MAY_REAP -> skip }
     fi
  od
}

proctype Person() {
  do
  :: atomic { !ENDED ->
       if
       :: state == running -> give_up()
       :: else -> skip
       fi;
       end_as(cancelled) }
  :: atomic { (state == failed || state == cancelled) && retries < RETRIES ->
       retries++; state = queued; attempt = 0; losses = 0; outcomes = 0
#ifdef TOKEN_RESET_BY_RETRY
       ; token = 0
#endif
     }
  :: break
  od
}

init {
  byte nr;
  atomic {
    for (nr : 1 .. WORKERS) { run Worker() }
    run Time(); run Person();
#ifndef NO_REAPER
    run Reaper()
#endif
  }
  timeout -> assert(ENDED || (state == queued && claims == CLAIMS))
}
